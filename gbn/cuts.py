"""Cuts to try on a network before any plan is made.

What enters: the groups as they stand. What leaves: masks of surviving atoms that no width is empty
in. Together they take every atom that can go at least once, in company that differs: a size or a
bound that a forward has of its own agrees with one cut by chance, but not with all of them.
"""

import numpy as np

from gbn.groups import ChannelGroups, Mask

NUM_CUTS = 5
_HALVES = (1, 2)
_RANDOM_SHARES = {0: 0.5, 3: 0.75}


def cut(groups: ChannelGroups, number: int) -> Mask:
    """Atoms that survive cut `number` (from 0 to NUM_CUTS - 1), shape (num_atoms,).

    Two cuts are random; one takes the first half of each group, one the second (halves of a width
    lose unequally there, and what is bounded by a number loses on one side of the bound); the last
    takes a share of each group, evenly spread, and whatever was never taken before.
    """
    generator = np.random.default_rng(number)
    if number in _RANDOM_SHARES:
        alive = generator.random(groups.num_atoms) < _RANDOM_SHARES[number]
    elif number in _HALVES:
        alive = _half_of_each(groups, first=number == _HALVES[0])
    else:
        untouched = np.logical_and.reduce([cut(groups, earlier) for earlier in range(number)])
        alive = ~untouched & (generator.random(groups.num_atoms) < 0.8)
    return _revive(groups, alive, generator)


def _half_of_each(groups: ChannelGroups, *, first: bool) -> Mask:
    alive = np.ones(groups.num_atoms, dtype=np.bool_)
    for group in groups.groups:
        middle = (len(group.atoms) + 1) // 2
        gone = group.atoms[:middle] if first else group.atoms[middle:]
        alive[list(gone)] = False
    return alive


def _revive(groups: ChannelGroups, alive: Mask, generator: np.random.Generator) -> Mask:
    """Every width keeps a position: one of an empty dim comes back, with all that it needs."""
    while True:
        empty = np.flatnonzero(groups.counts(alive) == 0)
        if not len(empty):
            return alive
        dim = groups.dims[empty[0]]
        position = generator.choice(dim.positions)
        alive[dim.atoms[dim.positions == position]] = True
