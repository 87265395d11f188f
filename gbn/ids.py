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

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from gbn.equations import FIXED, NONE, Equations, Resolution, Rows

__all__ = ["FIXED", "NONE", "Block", "IdSpace", "Resolution", "Rows"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Ids start .. start + size - 1, issued together for one dimension of one tensor."""

    start: int
    size: int
    tensor: str | None  # state-dict name, or None for ids issued by an op
    dim: int
    origin: str  # the module path in which the ids were issued


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
        a = np.concatenate([*self._left, np.zeros(0, np.int64)])
        b = np.concatenate([*self._right, np.zeros(0, np.int64)])
        graph = coo_matrix((np.ones(len(a), np.bool_), (a, b)), shape=(self._next, self._next))
        _, label = connected_components(graph, directed=False)
        return np.asarray(label, dtype=np.int64)
