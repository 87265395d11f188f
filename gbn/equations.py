"""Classes of ids that are products of others, and which atoms each comes to.

What enters: the class of each id, classes that stay, and equations between products of classes.
What leaves: definitions of classes as products, what must be united or frozen before the next
pass, and tables that say which atoms each position of a dimension needs.

All steps work on whole dimensions at a time: a network may have tens of thousands of products.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Rows = Ints

FIXED = 0  # the id of a position that can never be removed
NONE = -1  # fills a column of `Rows` that has fewer conditions than its neighbours

# Where the atoms of each class start (num_classes + 1,), and the atoms themselves.
Table = tuple[Ints, Ints]


class Products:
    """Definitions of classes as products: a class has its factors in row `place[class]`."""

    def __init__(self, num_classes: int) -> None:
        self.place = np.full(num_classes, -1, dtype=np.int64)
        self.factors = np.full((0, 2), NONE, dtype=np.int64)  # (m, k), descending, NONE at the end

    def owners(self) -> Ints:
        """Classes that are products, ascending."""
        return np.flatnonzero(self.place >= 0)

    def of(self, own: int) -> list[int] | None:
        """Factors of one class; None where it is no product."""
        if self.place[own] < 0:
            return None
        row = self.factors[self.place[own]]
        return row[row != NONE].tolist()

    def define(self, own: Ints, factors: Ints) -> Bools:
        """Define classes (p,) as products (p, k) where they have no definition and are no factors.

        Returns (p,): which now have just this definition.
        """
        width = max(factors.shape[1], self.factors.shape[1])
        factors, self.factors = _widened(factors, width), _widened(self.factors, width)
        new = (self.place[own] < 0) & ~(factors == own[:, None]).any(axis=1)
        classes, first = np.unique(own[new], return_index=True)
        self.place[classes] = len(self.factors) + np.arange(len(classes))
        self.factors = np.concatenate([self.factors, factors[new][first]])
        known = self.place[own] >= 0
        if not known.any():  # and perhaps there is no definition yet
            return known
        return known & (self.factors[self.place[own]] == factors).all(axis=1)

    def nested(self, owners: Ints) -> Bools:
        """Which of these have a factor that is a product itself."""
        factors = self.factors[self.place[owners]]
        of_products = (factors != NONE) & (self.place[np.maximum(factors, 0)] >= 0)
        return np.asarray(of_products.any(axis=1))


def _widened(factors: Ints, width: int) -> Ints:
    missing = width - factors.shape[1]
    return np.pad(factors, ((0, 0), (0, missing)), constant_values=NONE) if missing else factors


@dataclass(frozen=True)
class Resolution:
    """What every id came to after all facts were united.

    `label[id]` is the class of an id; `frozen[class]` holds the reason of classes that stay;
    `parts` the factors of classes that are products of others. A class in neither is an atom.
    """

    label: Ints
    frozen: dict[int, str]
    parts: Products
    _expanded: dict[int, frozenset[int]] = field(default_factory=dict, compare=False)

    @cached_property
    def stays(self) -> Bools:
        """(num_classes,): which stay."""
        stays = np.zeros(len(self.parts.place), dtype=np.bool_)
        stays[list(self.frozen)] = True
        return stays

    def atoms_of(self, own: int, above: frozenset[int] = frozenset()) -> frozenset[int]:
        """The atoms that must all survive for this class to survive; empty if it cannot go.

        A class that turns out to be defined by itself is made an atom.
        """
        known = self._expanded.get(own)
        if known is not None:
            return known
        factors = self.parts.of(own)
        if own in self.frozen:
            known = frozenset()
        elif factors is None:
            known = frozenset((own,))
        elif own in above:
            self.parts.place[own] = -1
            return frozenset((own,))
        else:
            below = above | {own}
            known = frozenset().union(*(self.atoms_of(part, below) for part in factors))
        self._expanded[own] = known
        return known

    @cached_property
    def _table(self) -> Table:
        """Each class itself, none of those that stay, the factors' atoms of products."""
        owners = self.parts.owners()
        owners = owners[~self.stays[owners]]
        nested = self.parts.nested(owners)
        deep = {own: sorted(self.atoms_of(own)) for own in owners[nested].tolist()}
        plain = owners[~nested]
        factors = np.sort(self.parts.factors[self.parts.place[plain]], axis=1)
        needed = (factors != NONE) & ~self.stays[np.maximum(factors, 0)]
        counts = np.where(self.stays, 0, 1)
        counts[plain] = needed.sum(axis=1)
        counts[list(deep)] = [len(atoms) for atoms in deep.values()]
        starts = np.concatenate([[0], np.cumsum(counts)])
        atoms = np.repeat(np.arange(len(counts)), counts)
        atoms[_runs(starts[plain], counts[plain])] = factors[needed]
        for own, parts in deep.items():
            atoms[starts[own] : starts[own] + len(parts)] = parts
        return starts, atoms

    def conditions(self, rows: Rows) -> tuple[Ints, Ints]:
        """Pairs (position, atom) that say which atoms each position of a dimension needs.

        Sorted by position and atom, each pair once; shapes (e,) and (e,).
        """
        return self.conditions_of(self.classes(rows))

    def classes(self, rows: Rows) -> Rows:
        """Classes of ids; NONE where there is no condition."""
        if rows.min(initial=1) > FIXED:
            return self.label[rows]
        return np.where(rows > FIXED, self.label[np.maximum(rows, 0)], NONE)

    def conditions_of(self, labels: Rows) -> tuple[Ints, Ints]:
        """The same for classes (k, n), NONE where there is none."""
        starts, atoms = self._table
        real = labels != NONE
        positions, classes = np.nonzero(real)[1], labels[real]
        counts = starts[classes + 1] - starts[classes]
        if len(labels) == 1 and counts.max(initial=0) <= 1:
            needs = counts > 0
            return positions[needs], atoms[starts[classes[needs]]]
        positions = np.repeat(positions, counts)
        needed = atoms[_runs(starts[classes], counts)]
        if len(labels) > 1:
            key = np.sort(positions * len(starts) + needed)
            key = key[np.diff(key, prepend=-1) > 0]
            positions, needed = key // len(starts), key % len(starts)
        return positions, needed

    def columns(self, rows: Rows) -> list[frozenset[int]]:
        """Atoms of each position of a dimension, shape (n,)."""
        found: list[set[int]] = [set() for _ in range(rows.shape[1])]
        for position, atom in zip(*(part.tolist() for part in self.conditions(rows)), strict=True):
            found[position].add(atom)
        return [frozenset(atoms) for atoms in found]


def _runs(starts: Ints, counts: Ints) -> Ints:
    """start, start + 1, .. of each run, one after the other."""
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + within


class Equations:
    """One pass over all products, noting what must be united or frozen before the next pass."""

    def __init__(self, label: Ints, frozen: dict[int, str]) -> None:
        self.label = label
        self.now = Resolution(label, frozen, Products(int(label.max()) + 1))
        self.unions: list[Ints] = []
        self.conflicts: set[int] = set()

    @cached_property
    def _member(self) -> Ints:
        """(num_classes,): an id of each class."""
        return np.unique(self.label, return_index=True)[1]

    def live(self, rows: Rows) -> Rows:
        """Classes of ids, sorted in each column; NONE for what is no condition."""
        label = self.now.classes(rows)
        label[(label >= 0) & self.now.stays[np.maximum(label, 0)]] = NONE
        label = np.sort(label, axis=0)[::-1]
        label[1:][label[1:] == label[:-1]] = NONE
        return label

    def simplify(self, left: Rows, right: Rows) -> bool:
        """Where both sides have one class left, they are one. True if that said something new."""
        a, b = self.live(left), self.live(right)
        single = ((a != NONE).sum(0) == 1) & ((b != NONE).sum(0) == 1)
        new = single & (a.max(0) != b.max(0))
        if new.any():
            pair = np.stack([a.max(0)[new], b.max(0)[new]])
            self.unions.append(self._member[pair])
        return bool(new.any())

    def define(self, left: Rows, right: Rows) -> bool:
        """Where one plain class stands on a side, it is the product of the other side.

        True if that is all that the equation says.
        """
        a, b = self.live(left), self.live(right)
        settled = (a == NONE).all(0) & (b == NONE).all(0)
        if a.shape == b.shape:
            settled |= (a == b).all(0)
        for single, others in ((a, b), (b, a)):
            chosen = ((single != NONE).sum(0) == 1) & ((others != NONE).sum(0) > 1)
            if chosen.any():
                own = single[:, chosen].max(0)
                factors = np.sort(others[:, chosen].T, axis=1)[:, ::-1]
                settled[chosen] |= self.now.parts.define(own, factors)
        return bool(settled.all())

    def check(self, left: Rows, right: Rows) -> None:
        """Both sides must come to the same atoms; unite or dispute where they do not."""
        a, b = self.live(left), self.live(right)
        here, there = self.now.conditions_of(a), self.now.conditions_of(b)
        if all(map(np.array_equal, here, there)):
            return
        own, other = _footprints(*here), _footprints(*there)
        same = [(own[at], other[at]) for at in own.keys() & other.keys() if own[at] != other[at]]
        if same:
            self.unions.append(self._member[np.array(same, dtype=np.int64).T])
        else:
            n = len(self.now.stays)
            unlike = np.setxor1d(here[0] * n + here[1], there[0] * n + there[1])
            self.conflicts |= set((unlike % n).tolist())


def _footprints(positions: Ints, atoms: Ints) -> dict[bytes, int]:
    """Positions at which an atom occurs -> that atom: equal footprints are equal factors."""
    order = np.argsort(atoms, kind="stable")
    found, first = np.unique(atoms[order], return_index=True)
    at = np.split(positions[order], first[1:])
    return {held.tobytes(): atom for held, atom in zip(at, found.tolist(), strict=bool(len(found)))}
