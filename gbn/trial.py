"""Try a random cut before any plan is made, and find the op where it goes wrong.

A forward may have a size baked in: a view, a pad, a split with numbers of its own. The pruned
network then crashes, or gives another result. Both are found by running it: each op's output must
have the size that the ids say, and the outputs must equal the gated network's. What meets the first
op that disagrees is frozen, with the line of code as the reason, and the next cut is tried.
"""

import math
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from gbn.errors import TraceError
from gbn.groups import ChannelGroups, Mask
from gbn.ids import FIXED, Block, Rows
from gbn.proof import cast_floats, distance, gate_to_zero, outputs_of
from gbn.prune_plan import PrunePlan
from gbn.rules import Facts, tensors_in
from gbn.running import run_model, tracing_mode
from gbn.surgery import prune

_FLOAT64_LIMIT = 30_000_000  # parameters; above, the copies would cost more than the run itself
_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)


@dataclass(frozen=True, kw_only=True)
class OpRecord:
    """One executed op: where it ran, and the ids of what went in and came out."""

    op: str
    module: str
    site: tuple[type[nn.Module], int]  # class of the module, ordinal of the op in its forward
    shapes: tuple[tuple[int, ...], ...]
    inputs: tuple[dict[int, Rows], ...]
    outputs: tuple[dict[int, Rows], ...]
    blocks: range  # ids issued by this op, as numbers of the id space's blocks


@dataclass(frozen=True)
class Fault:
    """The op (index into the records) at which a cut goes wrong, and the line of code."""

    index: int
    actual: tuple[tuple[int, ...], ...] | None  # output shapes, None if it crashed
    place: str


def find_fault(
    model: nn.Module,
    groups: ChannelGroups,
    records: list[OpRecord],
    example_inputs: Any,
    seed: int,
) -> Fault | None:
    """Cut about half of all atoms at random and compare; None if all agrees."""
    alive = _random_cut(groups, seed)
    if alive.all():
        return None
    plan = PrunePlan.of(groups, alive)
    small = prune(model, plan)
    num_params = sum(p.numel() for p in model.parameters())
    dtype = torch.float64 if num_params < _FLOAT64_LIMIT else torch.float32
    expected = _Expected(groups, alive)
    watch = _ShapeWatch(records, expected)
    with tracing_mode(small), watch:
        try:
            run_model(small, example_inputs)
        except _Disagreement:
            return watch.fault
        except TraceError as error:
            return Fault(watch.count, None, _place_of_error(error))
    inputs = tree_map(lambda value: cast_floats(value, dtype), example_inputs)
    try:
        gated = gate_to_zero(model, plan).to(dtype)
        reference = outputs_of(gated, inputs)
    except TraceError:
        dtype, inputs = torch.float32, example_inputs
        gated = gate_to_zero(model, plan)
        reference = outputs_of(gated, inputs)
    off = distance(reference, outputs_of(small.to(dtype), inputs))
    if off <= (1e-6 if dtype is torch.float64 else 1e-4):
        return None
    return _first_difference(gated, small, inputs, records, expected)


def _random_cut(groups: ChannelGroups, seed: int) -> Mask:
    generator = np.random.default_rng(seed)
    alive = generator.random(groups.num_atoms) < 0.5
    while True:  # every width keeps something
        empty = np.flatnonzero(groups.counts(alive) == 0)
        if not len(empty):
            return alive
        for index in empty:
            alive[groups.dims[index].atoms] = True


class _Expected:
    """Sizes and positions that tensors should have after the cut."""

    def __init__(self, groups: ChannelGroups, alive: Mask) -> None:
        self._groups = groups
        self._alive = alive
        self._known: dict[bytes, Any] = {}

    def kept(self, rows: Rows) -> Any:
        """Surviving positions of a dimension with these ids."""
        key = rows.tobytes() + b"%d" % len(rows)
        if key not in self._known:
            self._known[key] = np.flatnonzero(self._groups.survives(rows, self._alive))
        return self._known[key]

    def shapes(self, record: OpRecord) -> tuple[tuple[int, ...], ...]:
        """Shapes of all outputs."""
        return tuple(
            tuple(len(self.kept(ids[d])) if d in ids else n for d, n in enumerate(shape))
            for shape, ids in zip(record.shapes, record.outputs, strict=True)
        )

    def select(self, tensor: Tensor, ids: dict[int, Rows]) -> Tensor:
        """The surviving part of a tensor of the uncut network."""
        for dim, rows in ids.items():
            index = torch.from_numpy(self.kept(rows)).to(tensor.device)
            tensor = tensor.index_select(dim, index)
        return tensor


class _Disagreement(Exception):  # noqa: N818 - ends a watched run, is no failure
    """Stops a watched run at the first op that is not as expected."""


class _ShapeWatch(TorchDispatchMode):
    """Compares each op of a run with the record, stopping at the first disagreement."""

    def __init__(self, records: list[OpRecord], expected: _Expected) -> None:
        super().__init__()
        self._records = records
        self._expected = expected
        self.count = 0
        self.fault: Fault | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        index = min(self.count, len(self._records) - 1)
        record = self._records[index]
        self.count += 1
        actual = tuple(tuple(tensor.shape) for tensor in tensors_in(out))
        if str(func) != record.op or actual != self._expected.shapes(record):
            self.fault = Fault(index, actual, _place(sys._getframe(1)))
            raise _Disagreement
        return out


class _Sums(TorchDispatchMode):
    """One number per op: the sum of what survives, to find where two networks part.

    Run in another precision than the record, a network may cast more or less often: ops are
    matched by name, and casts that the record lacks are passed over.
    """

    def __init__(self, records: list[OpRecord], expected: _Expected | None) -> None:
        super().__init__()
        self._records = records
        self._expected = expected
        self._next = 0
        self.sums: dict[int, float] = {}  # by index into the records
        self.places: dict[int, str] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        index = self._match(str(func))
        if index is None:
            return out
        record = self._records[index]
        total = 0.0
        for tensor, ids in zip(tensors_in(out), record.outputs, strict=True):
            if self._expected is not None:
                tensor = self._expected.select(tensor, ids)
            known = tensor.is_floating_point() and "empty" not in record.op
            total += float(tensor.abs().sum()) if known else 0.0
        self.sums[index] = total
        self.places[index] = _place(sys._getframe(1))
        return out

    def _match(self, op: str) -> int | None:
        for index in range(self._next, len(self._records)):
            if self._records[index].op == op:
                self._next = index + 1
                return index
            if "_to_copy" in op or "_to_copy" not in self._records[index].op:
                return None
        return None


def _first_difference(
    gated: nn.Module, small: nn.Module, inputs: Any, records: list[OpRecord], expected: _Expected
) -> Fault:
    runs = []
    for model, select in ((gated, expected), (small, None)):
        sums = _Sums(records, select)
        with tracing_mode(model), sums:
            run_model(model, inputs)
        runs.append(sums)
    for index, a in runs[0].sums.items():
        b = runs[1].sums.get(index, math.nan)
        if not abs(a - b) <= 1e-5 * max(abs(a), abs(b)):
            return Fault(index, None, runs[0].places[index])
    return Fault(len(records) - 1, None, "the output")


def freeze_fault(
    fault: Fault,
    groups: ChannelGroups,
    facts: Facts,
    records: list[OpRecord],
    tried: Sequence[str],
) -> str:
    """Freeze what meets the faulty op; returns the reason.

    First the ids that the op issued itself (what a pad adds, what a view splits into); then what
    enters and leaves the op; if neither had anything removable, what enters the last op before it
    that had; if that was `tried`, everything that has been seen up to there. All modules of the
    same class have the same code, so they are treated alike; torch's own layers have no code of
    the user's, so there only the one is meant.
    """
    record = records[fault.index]
    where = record.module or "the model itself"
    reason = f"has a size baked in at {fault.place} ({record.op} in {where})"
    own_code = not record.site[0].__module__.startswith("torch.")
    alike = [r for r in records if own_code and r.site == record.site and r.op == record.op]
    alike = alike or [record]
    issued = [
        block
        for r in alike
        for block in _issued(r, facts, fault)
        if _removable(groups, _ids(block))
    ]
    rows = [_ids(block) for block in issued]
    if not rows:
        sides = [side for r in alike for side in (r.outputs, r.inputs)]
        rows = [ids for side in sides for t in side for ids in t.values()]
        rows = [r for r in rows if _removable(groups, r)]
    if not rows and reason not in tried:
        rows = _nearest_removable(groups, records[: fault.index])
    if not rows:
        earlier = records[: fault.index + 1]
        rows = [ids for r in earlier for t in r.outputs for ids in t.values()]
    for ids in rows:
        facts.space.freeze(ids, reason)
    return reason


def _nearest_removable(groups: ChannelGroups, earlier: Sequence[OpRecord]) -> list[Rows]:
    for record in reversed(earlier):
        rows = [ids for t in record.inputs for ids in t.values() if _removable(groups, ids)]
        if rows:
            return rows
    return []


def _issued(record: OpRecord, facts: Facts, fault: Fault) -> list[Block]:
    """Ids issued by the op; where its result is known, only those whose size did not follow."""
    blocks = [facts.space.blocks[i] for i in record.blocks]
    if fault.actual is None:
        return blocks
    stuck = [b for b in blocks if any(b.size in shape for shape in fault.actual)]
    return stuck or blocks


def _ids(block: Block) -> Rows:
    return np.arange(block.start, block.start + block.size, dtype=np.int64)[None]


def _removable(groups: ChannelGroups, rows: Rows) -> bool:
    nothing = np.zeros(groups.num_atoms, dtype=np.bool_)
    return bool(rows.size and (rows > FIXED).any() and not groups.survives(rows, nothing).all())


def _place_of_error(error: TraceError) -> str:
    cause = error.__cause__
    frames = traceback.extract_tb(cause.__traceback__) if cause is not None else []
    own = [f for f in frames if not f.filename.startswith((_TORCH, _HERE))]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "an unknown line"


def _place(frame: FrameType | None) -> str:
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _HERE)):
            return f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "an unknown line"
