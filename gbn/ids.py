"""Channel ids: the algebra below the tracer.

What enters: while a model runs, every channel-carrying dimension of every tensor gets a table of
ids (`Rows`, int64 of shape (k, n)): position p of a dimension of size n survives only if all k ids
of column p survive. Almost always k is 1; k > 1 arises where one dimension is the product of
several (attention's heads x dims, a grouped convolution's groups x members).

What leaves: `IdSpace.resolve()` gives for every id the set of *atoms* (smallest things that can be
removed alone) that it depends on, or a reason why it can never go.

While tracing, facts are only appended; one connected-components call at the end unites them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from gbn.equations import FIXED, NONE, Equations, Resolution, Rows

__all__ = ["FIXED", "NONE", "Block", "IdSpace", "Resolution", "Rows"]


class Block(NamedTuple):
    """Ids start .. start + size - 1, issued together for one dimension of one tensor."""

    start: int
    size: int
    tensor: str | None  # state-dict name, or None for ids issued by an op
    dim: int
    origin: str  # the module path in which the ids were issued


@dataclass
class IdSpace:
    """Collects facts about ids: which are the same channel, which stay, which are products.

    Most facts are about whole blocks. A block is known by its array of ids, which is passed on as
    it is and never written into; so such facts are noted without a look at the ids.
    """

    blocks: list[Block] = field(default_factory=list)
    _by_start: dict[int, Block] = field(default_factory=dict)
    _rows: dict[int, Rows] = field(default_factory=dict)  # of each block, by its start
    _whole: dict[int, Block] = field(default_factory=dict)  # by the `id` of these arrays
    _next: int = 1
    _equal: dict[tuple[int, int], None] = field(default_factory=dict)  # starts of whole blocks
    _left: list[Rows] = field(default_factory=list)
    _right: list[Rows] = field(default_factory=list)
    _root: dict[int, int] = field(default_factory=dict)  # of blocks, when last resolved
    _products: list[tuple[Rows, Rows]] = field(default_factory=list)
    _frozen: list[tuple[Rows, str]] = field(default_factory=list)
    _stays: npt.NDArray[np.bool_] = field(default_factory=lambda: np.ones(1, np.bool_))

    def fresh(self, size: int, origin: str, tensor: str | None = None, dim: int = 0) -> Rows:
        """Issue `size` new ids, shape (1, size), not to be written into."""
        start = self._next
        block = Block(start, size, tensor, dim, origin)
        rows = np.arange(start, start + size, dtype=np.int64)[None]
        rows.flags.writeable = False
        self.blocks.append(block)
        self._by_start[start] = self._whole[id(rows)] = block
        self._rows[start] = rows
        self._next += size
        return rows

    def rows_of(self, start: int) -> Rows:
        """The ids of the block that starts there, (1, size)."""
        return self._rows[start]

    def root_start(self, rows: Rows) -> int | None:
        """Start of the first block that `rows`, if it is a whole block, was found equal to."""
        block = self._whole.get(id(rows))
        return None if block is None else self._root.get(block.start, block.start)

    def block_start(self, rows: Rows) -> int | None:
        """Start of the tensor's block that `rows` is, if it is one whole block of a tensor."""
        block = self._whole.get(id(rows))
        if block is None:
            block = self._by_start.get(int(rows[0, 0]) if rows.size else FIXED)
            if block is None or not np.array_equal(rows, self._rows[block.start]):
                return None
        return None if block.tensor is None else block.start

    def owners(self, starts: Iterable[int]) -> set[str | None]:
        """Tensors that the blocks with these starts belong to."""
        return {self._by_start[start].tensor for start in starts}

    def tie(self, a: Rows, b: Rows, reason: str) -> None:
        """Position p of `a` and position p of `b` are one channel: they live or go together.

        `reason` is what freezes one side where the other is fixed.
        """
        if a is b:
            return
        one, other = self._whole.get(id(a)), self._whole.get(id(b))
        if one is not None and other is not None and one.size == other.size:  # as a rule
            self._equal[one.start, other.start] = None
        elif a.shape[0] == b.shape[0] == 1:
            self.freeze(b[a == FIXED][None], reason)
            self.freeze(a[b == FIXED][None], reason)
            free = (a != FIXED) & (b != FIXED)
            self._left.append(a[free])
            self._right.append(b[free])
        elif a.shape != b.shape or not np.array_equal(a, b):
            self._products.append((a, b))

    def freeze(self, rows: Rows, reason: str) -> None:
        """No position of `rows` may ever be removed."""
        block = self._whole.get(id(rows))
        if block is not None:
            if block.size:
                self._frozen.append((rows[0], reason))
                self._stay_known()[block.start : block.start + block.size] = True
            return
        ids = rows[rows > FIXED]
        if ids.size:
            self._frozen.append((ids, reason))
            self._stay_known()[ids] = True

    def stays(self, rows: Rows) -> bool:
        """Whether all of these positions were frozen by name; ties may freeze more later."""
        known = self._stay_known()
        block = self._whole.get(id(rows))
        if block is not None:
            return bool(known[block.start : block.start + block.size].all())
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
            equations = Equations(label, frozen)
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
        """(num_ids,): the class of each id, numbered by their first ids."""
        first = np.arange(self._next)  # of the ids that are one by whole blocks
        self._root = self._roots()
        for start, root in self._root.items():
            size = self._by_start[start].size
            first[start : start + size] = first[root : root + size]
        own = np.cumsum(first == np.arange(self._next)) - 1
        number = own[first]
        if not any(len(part) for part in self._left):
            return number
        a, b = number[np.concatenate(self._left)], number[np.concatenate(self._right)]
        size = int(number.max()) + 1
        graph = coo_matrix((np.ones(len(a)), (a, b)), shape=(size, size))
        _, label = connected_components(graph, directed=False)
        return np.asarray(label, dtype=np.int64)[number]

    def _roots(self) -> dict[int, int]:
        """Start of the first block that each block but itself is equal to."""
        above: dict[int, int] = {}

        def root(start: int) -> int:
            while (up := above.get(start, start)) != start:
                above[start] = start = above.get(up, up)
            return start

        for one, other in self._equal:
            low, high = sorted((root(one), root(other)))
            if low != high:
                above[high] = low
        return {start: root(start) for start in sorted(above)}
