"""Channel ids: the algebra below the tracer.

What enters: while a model runs, every channel-carrying dimension of every tensor gets a table of
ids (`Rows`, int64 of shape (k, n)): position p of a dimension of size n survives only if all k ids
of column p survive. Almost always k is 1; k > 1 arises where one dimension is the product of
several (attention's heads x dims, a grouped convolution's groups x members).

What leaves: `IdSpace.resolve()` gives for every id the set of *atoms* (smallest things that can be
removed alone) that it depends on, or a reason why it can never go.

While tracing, facts are only appended; one connected-components call at the end unites them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Rows = npt.NDArray[np.int64]

FIXED = 0  # the id of a position that can never be removed
NONE = -1  # fills a column of `Rows` that has fewer conditions than its neighbours


@dataclass(frozen=True, kw_only=True)
class Block:
    """Ids start .. start + size - 1, issued together for one dimension of one tensor."""

    start: int
    size: int
    tensor: str | None  # state-dict name, or None for ids issued by an op
    dim: int
    origin: str  # the module path in which the ids were issued


@dataclass(frozen=True)
class Resolution:
    """What every id came to after all facts were united.

    `label[id]` is the class of an id; `frozen[class]` holds the reason of classes that stay;
    `parts[class]` the atoms of a class that is a product of others. A class in neither is an atom.
    """

    label: npt.NDArray[np.int64]
    frozen: dict[int, str]
    parts: dict[int, frozenset[int]]

    def atoms_of(self, label: int) -> frozenset[int]:
        """The atoms that must all survive for this class to survive; empty if it cannot go."""
        if label in self.frozen:
            return frozenset()
        if label not in self.parts:
            return frozenset((label,))
        return frozenset().union(*(self.atoms_of(part) for part in self.parts[label]))

    @cached_property
    def _atoms(self) -> "_Table":
        products = {own: self._atoms_of_product(own) for own in self.parts}
        return _table(int(self.label.max()) + 1, self.frozen, products)

    def _atoms_of_product(self, own: int) -> list[int]:
        factors = self.parts[own]
        if own in self.frozen or not self.parts.keys().isdisjoint(factors):
            return sorted(self.atoms_of(own))
        return sorted(f for f in factors if f not in self.frozen)  # almost all: of plain atoms

    def conditions(self, rows: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Pairs (position, atom) that say which atoms each position of a dimension needs.

        Sorted by position and atom, each pair once; shapes (e,) and (e,).
        """
        return _conditions(
            np.where(rows > FIXED, self.label[np.maximum(rows, 0)], NONE), self._atoms
        )

    def columns(self, rows: Rows) -> list[frozenset[int]]:
        """Atoms of each position of a dimension, shape (n,)."""
        found: list[set[int]] = [set() for _ in range(rows.shape[1])]
        for position, atom in zip(*(part.tolist() for part in self.conditions(rows)), strict=True):
            found[position].add(atom)
        return [frozenset(atoms) for atoms in found]


@dataclass
class IdSpace:
    """Collects facts about ids: which are the same channel, which stay, which are products."""

    blocks: list[Block] = field(default_factory=list)
    _by_start: dict[int, Block] = field(default_factory=dict)
    _next: int = 1
    _left: list[Rows] = field(default_factory=list)
    _right: list[Rows] = field(default_factory=list)
    _products: list[tuple[Rows, Rows]] = field(default_factory=list)
    _frozen: list[tuple[Rows, str]] = field(default_factory=list)
    _stays: npt.NDArray[np.bool_] = field(default_factory=lambda: np.ones(1, np.bool_))

    def fresh(self, size: int, origin: str, tensor: str | None = None, dim: int = 0) -> Rows:
        """Issue `size` new ids, shape (1, size)."""
        block = Block(start=self._next, size=size, tensor=tensor, dim=dim, origin=origin)
        self.blocks.append(block)
        self._by_start[block.start] = block
        self._next += size
        return np.arange(block.start, block.start + size, dtype=np.int64)[None]

    def block_start(self, rows: Rows) -> int | None:
        """Start of the tensor's block that `rows` is, if it is one whole block of a tensor."""
        start = int(rows[0, 0]) if rows.size else FIXED
        block = self._by_start.get(start)
        whole = block is not None and block.tensor is not None and rows.shape == (1, block.size)
        return start if whole and int(rows[0, -1]) == start + rows.shape[1] - 1 else None

    def owners(self, starts: Iterable[int]) -> set[str | None]:
        """Tensors that the blocks with these starts belong to."""
        return {self._by_start[start].tensor for start in starts}

    def tie(self, a: Rows, b: Rows, reason: str) -> None:
        """Position p of `a` and position p of `b` are one channel: they live or go together.

        `reason` is what freezes one side where the other is fixed.
        """
        if a is b:
            return
        if a.shape[0] == b.shape[0] == 1:
            if a.shape == b.shape and a.min(initial=1) > FIXED < b.min(initial=1):  # as a rule
                self._left.append(a[0])
                self._right.append(b[0])
                return
            self.freeze(b[a == FIXED][None], reason)
            self.freeze(a[b == FIXED][None], reason)
            free = (a != FIXED) & (b != FIXED)
            self._left.append(a[free])
            self._right.append(b[free])
        elif a.shape != b.shape or not np.array_equal(a, b):
            self._products.append((a, b))

    def freeze(self, rows: Rows, reason: str) -> None:
        """No position of `rows` may ever be removed."""
        ids = rows[rows > FIXED] if rows.min(initial=1) <= FIXED else rows.reshape(-1)
        if ids.size:
            self._frozen.append((ids, reason))
            self._stay_known()[ids] = True

    def stays(self, rows: Rows) -> bool:
        """Whether all of these positions were frozen by name; ties may freeze more later."""
        known = self._stay_known()
        if rows.min(initial=0) >= FIXED:
            return bool(known[rows].all())
        return bool(((rows == NONE) | known[np.maximum(rows, FIXED)]).all())

    def _stay_known(self) -> npt.NDArray[np.bool_]:
        missing = self._next - len(self._stays)
        if missing > 0:
            more = np.zeros(missing + self._next, dtype=np.bool_)
            self._stays = np.concatenate([self._stays, more])
        return self._stays

    def resolve(self) -> Resolution:
        """Unite all facts.

        Two products that stand for the same channels but have different factors cannot both be
        kept rectangular. Then the smallest factor in dispute is frozen (two halves of a shuffle
        rather than the channels in them), which is always right, and the rest is tried again.
        """
        while True:
            label = self._components()
            frozen: dict[int, str] = {}
            for ids, why in reversed(self._frozen):
                frozen.update(dict.fromkeys(label[ids].tolist(), why))
            equations = _Equations(label, frozen)
            said_new = [equations.simplify(a, b) for a, b in self._products]
            if not any(said_new):
                open_ones = [(a, b) for a, b in self._products if not equations.define(a, b)]
                for a, b in open_ones:
                    equations.check(a, b)
            for one, other in equations.unions:
                self._left.append(one)
                self._right.append(other)
            if not equations.unions and equations.conflicts:
                self._freeze_smallest(label, equations.conflicts)
            elif not equations.unions:
                return equations.now

    def _freeze_smallest(self, label: npt.NDArray[np.int64], classes: set[int]) -> None:
        disputed = np.isin(label, list(classes))
        touched = [b for b in self.blocks if disputed[b.start : b.start + b.size].any()]
        factors = [b for b in touched if b.tensor is None] or touched
        size = min(b.size for b in factors)
        reason = "its channels are reshaped in two ways that no common cut keeps rectangular"
        for block in factors:
            if block.size == size:
                ids = np.arange(block.start, block.start + size, dtype=np.int64)
                self._frozen.append((ids[disputed[ids]], reason))

    def _components(self) -> npt.NDArray[np.int64]:
        a = np.concatenate([*self._left, np.zeros(0, np.int64)])
        b = np.concatenate([*self._right, np.zeros(0, np.int64)])
        graph = coo_matrix((np.ones(len(a), np.bool_), (a, b)), shape=(self._next, self._next))
        _, label = connected_components(graph, directed=False)
        return np.asarray(label, dtype=np.int64)


class _Equations:
    """One pass over all products, noting what must be united or frozen before the next pass."""

    def __init__(self, label: npt.NDArray[np.int64], frozen: dict[int, str]) -> None:
        self.label = label
        self.now = Resolution(label, frozen, {})
        self.unions: list[npt.NDArray[np.int64]] = []
        self.conflicts: set[int] = set()
        self._stays = np.zeros(label.max() + 1, dtype=np.bool_)
        self._stays[list(frozen)] = True
        _, self._member = np.unique(label, return_index=True)
        self._expanded: dict[int, frozenset[int]] = {}

    def live(self, rows: Rows) -> Rows:
        """Classes of ids, sorted in each column; NONE for what is no condition."""
        label = np.where(rows > FIXED, self.label[np.maximum(rows, 0)], NONE)
        label[(label >= 0) & self._stays[np.maximum(label, 0)]] = NONE
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
        parts = self.now.parts
        for single, others in ((a, b), (b, a)):
            chosen = ((single != NONE).sum(0) == 1) & ((others != NONE).sum(0) > 1)
            owns = single[:, chosen].max(0, initial=NONE).tolist()
            products = [frozenset(c) - {NONE} for c in others[:, chosen].T.tolist()]
            for own, factors in zip(owns, products, strict=True):
                if own not in factors:
                    parts.setdefault(own, factors)
            agrees = [parts.get(own) == f for own, f in zip(owns, products, strict=True)]
            settled[chosen] |= np.array(agrees, dtype=np.bool_)
        return bool(settled.all())

    def check(self, left: Rows, right: Rows) -> None:
        """Both sides must come to the same atoms; unite or dispute where they do not."""
        a, b = self.live(left), self.live(right)
        here, there = _conditions(a, self._table), _conditions(b, self._table)
        if all(map(np.array_equal, here, there)):
            return
        own, other = _footprints(*here), _footprints(*there)
        same = [(own[at], other[at]) for at in own.keys() & other.keys() if own[at] != other[at]]
        if same:
            self.unions.append(self._member[np.array(same, dtype=np.int64).T])
        else:
            n = len(self._stays)
            unlike = np.setxor1d(here[0] * n + here[1], there[0] * n + there[1])
            self.conflicts |= set((unlike % n).tolist())

    @cached_property
    def _table(self) -> "_Table":
        parts, stays = self.now.parts, self.now.frozen
        products = {}
        for own, factors in [*parts.items()]:
            if own in stays or not parts.keys().isdisjoint(factors):
                products[own] = sorted(self._atoms(own, frozenset()))
            else:  # almost all: a product of plain atoms
                products[own] = sorted(f for f in factors if f not in stays)
        return _table(len(self._stays), stays, products)

    def _atoms(self, own: int, seen: frozenset[int]) -> frozenset[int]:
        known = self._expanded.get(own)
        if known is not None:
            return known
        if own in self.now.frozen:
            known = frozenset()
        elif own not in self.now.parts:
            known = frozenset((own,))
        elif own in seen:
            del self.now.parts[own]  # defined by itself: treat it as an atom
            return frozenset((own,))
        else:
            below = seen | {own}
            known = frozenset().union(*(self._atoms(p, below) for p in self.now.parts[own]))
        self._expanded[own] = known
        return known


# Where the atoms of each class start (num_classes + 1,), and the atoms themselves.
_Table = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _table(size: int, frozen: Iterable[int], products: Mapping[int, list[int]]) -> _Table:
    counts = np.ones(size, dtype=np.int64)
    counts[list(frozen)] = 0
    counts[list(products)] = [len(atoms) for atoms in products.values()]
    starts = np.concatenate([[0], np.cumsum(counts)])
    atoms = np.repeat(np.arange(len(counts)), counts)
    for own, parts in products.items():
        atoms[starts[own] : starts[own] + len(parts)] = parts
    return starts, atoms


def _conditions(labels: Rows, table: _Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs (position, atom) of classes (k, n), NONE where there is none; as in `conditions`."""
    starts, atoms = table
    real = labels != NONE
    positions, classes = np.nonzero(real)[1], labels[real]
    counts = starts[classes + 1] - starts[classes]
    if len(labels) == 1 and counts.max(initial=0) <= 1:
        needs = counts > 0
        return positions[needs], atoms[starts[classes[needs]]]
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    positions = np.repeat(positions, counts)
    needed = atoms[np.repeat(starts[classes], counts) + within]
    if len(labels) > 1:
        key = np.sort(positions * len(starts) + needed)
        key = key[np.diff(key, prepend=-1) > 0]
        positions, needed = key // len(starts), key % len(starts)
    return positions, needed


def _footprints(positions: npt.NDArray[np.int64], atoms: npt.NDArray[np.int64]) -> dict[bytes, int]:
    """Positions at which an atom occurs -> that atom: equal footprints are equal factors."""
    order = np.argsort(atoms, kind="stable")
    found, first = np.unique(atoms[order], return_index=True)
    at = np.split(positions[order], first[1:])
    return {held.tobytes(): atom for held, atom in zip(at, found.tolist(), strict=bool(len(found)))}
