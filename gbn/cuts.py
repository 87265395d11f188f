"""Cuts to try on a network before any plan is made.

What enters: the groups as they stand. What leaves: masks of surviving atoms that no width is empty
in. Together they take nearly all atoms of every group, in company that differs: a size or a bound
that a forward has of its own agrees with one cut by chance, but not with all of them.
"""

from collections import Counter

import numpy as np

from gbn.groups import LEAST_WIDTH, ChannelGroups, Mask

NUM_CUTS = 5
WHOLE_WIDTHS = (0, 1)  # each group loses some, then half: enough for sizes of whole widths
_HALVES = (1, 2)
_UNEVEN = {0: 1, 3: -1}


def cut(groups: ChannelGroups, number: int) -> Mask:
    """Atoms that survive cut `number` (from 0 to NUM_CUTS - 1), shape (num_atoms,).

    Two cuts are random and leave different sizes of groups that had one; one takes the first half
    of each group, one the second (halves of a width lose unequally there, and what is bounded by a
    number loses on one side of the bound); the last takes a share of each group, evenly spread,
    and whatever was never taken before.
    """
    generator = np.random.default_rng(number)
    if number in _UNEVEN:
        alive = _unevenly(groups, generator, _UNEVEN[number])
    elif number in _HALVES:
        alive = _half_of_each(groups, first=number == _HALVES[0])
    else:
        untouched = np.logical_and.reduce([cut(groups, earlier) for earlier in range(number)])
        alive = ~untouched & (generator.random(groups.num_atoms) < 0.8)
    return _revive(groups, alive, generator)


def _unevenly(groups: ChannelGroups, generator: np.random.Generator, step: int) -> Mask:
    """Groups of one size keep 30 to 90 % of it, each another count while there are counts left.

    A forward that confuses two widths of one size would otherwise pass by chance.
    """
    alive = np.zeros(groups.num_atoms, dtype=np.bool_)
    seen: Counter[int] = Counter()
    for group in groups.groups:
        size = len(group.atoms)
        counts = np.arange(max(round(0.3 * size), 1), max(round(0.9 * size), 1) + 1)
        count = counts[(len(counts) // 2 + step * seen[size]) % len(counts)]
        seen[size] += 1
        alive[generator.permutation(np.array(group.atoms, dtype=np.int64))[:count]] = True
    return alive


def _half_of_each(groups: ChannelGroups, *, first: bool) -> Mask:
    alive = np.ones(groups.num_atoms, dtype=np.bool_)
    for group in groups.groups:
        middle = (len(group.atoms) + 1) // 2
        gone = group.atoms[:middle] if first else group.atoms[middle:]
        alive[list(gone)] = False
    return alive


def _revive(groups: ChannelGroups, alive: Mask, generator: np.random.Generator) -> Mask:
    """Every dimension keeps a position, a width of the network two: some come back for that.

    Torch leaves out ops on a dimension of 1 (a copy, a view), which says nothing about the forward.
    """
    least = np.ones(len(groups.dims), dtype=np.int64)
    for dim in groups.own_widths:
        least[dim] = min(LEAST_WIDTH, groups.dims[dim].size)
    while True:
        narrow = np.flatnonzero(groups.counts(alive) < least)
        if not len(narrow):
            return alive
        dim = groups.dims[narrow[0]]
        gone = np.unique(dim.positions[~alive[dim.atoms]])
        alive[dim.atoms[dim.positions == generator.choice(gone)]] = True
