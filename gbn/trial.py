"""Try a cut with values, for networks that cannot run without, and find the op where it goes wrong.

A forward may have a size baked in: a view, a pad, a split with numbers of its own. The pruned
network then crashes, or gives another result. Both are found by running it: each op's output must
have the size that the ids say, and the outputs must equal the gated network's. What meets the first
op that disagrees is frozen (`gbn.faults`), with the line of code as the reason, and the cut is
tried again.
"""

import math
import sys
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from gbn.choices import FollowChoices, NoteChoices
from gbn.distance import distance
from gbn.errors import ProofFailed, TraceError
from gbn.expected import ALIAS, SLICE, Expected, Shapes, place_of, place_of_error
from gbn.faults import Fault, OpRecord
from gbn.groups import ChannelGroups, Mask
from gbn.proof import cast_floats, gate_to_zero, in_precision, outputs_of, reference_outputs
from gbn.prune_plan import PrunePlan
from gbn.rules import tensors_in
from gbn.running import WatchEnded, run_model, tracing_mode
from gbn.surgery import prune
from gbn.survivors import survivor_statistics

_FLOAT64_LIMIT = 30_000_000  # parameters; above, the copies would cost more than the run itself


def find_fault(
    model: nn.Module,
    groups: ChannelGroups,
    alive: Mask,
    records: list[OpRecord],
    example_inputs: Any,
) -> Fault | None:
    """Keep the atoms `alive` (num_atoms,) alone and compare; None if all agrees."""
    if alive.all():
        return None
    plan = PrunePlan.of(groups, alive)
    small = prune(model, plan)
    num_params = sum(p.numel() for p in model.parameters())
    dtype = torch.float64 if num_params < _FLOAT64_LIMIT else torch.float32
    expected = Expected(groups, alive)
    gated = gate_to_zero(model, plan)
    uncut = _Shapes()
    with tracing_mode(gated), survivor_statistics(plan), NoteChoices() as notes, uncut:
        run_model(gated, example_inputs)
    watch = _ShapeWatch(records, expected, uncut.ops)
    with tracing_mode(small), FollowChoices(notes.choices), watch:
        try:
            run_model(small, example_inputs)
        except _Disagreement:
            return watch.fault
        except TraceError as error:
            return Fault(watch.count, None, place_of_error(error))
    inputs = tree_map(lambda value: cast_floats(value, dtype), example_inputs)
    try:
        gated = in_precision(gated, dtype)
        reference, choices = reference_outputs(gated, plan, inputs)
    except TraceError:
        dtype, inputs = torch.float32, example_inputs
        gated = gate_to_zero(model, plan)
        reference, choices = reference_outputs(gated, plan, inputs)
    try:
        with FollowChoices(choices):
            result = outputs_of(in_precision(small, dtype), inputs)
        off = max(distance(reference, result), choices.max_abs_diff)
    except (ProofFailed, TraceError):
        off = math.inf
    if off <= (1e-6 if dtype is torch.float64 else 1e-4):
        return None
    with survivor_statistics(plan):
        sums = _sums_of(gated, inputs, records, expected)
    return _first_difference(sums, _sums_of(small, inputs, records, None), records)


class _Disagreement(WatchEnded):
    """Stops a watched run at the first op that is not as expected."""


class _Shapes(TorchDispatchMode):
    """Name and output shapes of each op of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[str, Shapes]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.ops.append((str(func), tuple(tuple(t.shape) for t in tensors_in(out))))
        return out


class _ShapeWatch(TorchDispatchMode):
    """Compares each op of a run with the record, stopping at the first disagreement.

    Sizes that depend on values (how many boxes are found) are held against `uncut`, the run of the
    gated network. Where that run takes another way than the record, or a size that no channel has
    a part in differs (two boxes that overlap just so much, after rounding), nothing more is
    watched: the outputs tell.
    """

    def __init__(
        self, records: list[OpRecord], expected: Expected, uncut: list[tuple[str, Shapes]]
    ) -> None:
        super().__init__()
        self._records = records
        self._expected = expected
        self._uncut = uncut
        self.count = 0
        self.fault: Fault | None = None
        self._blind = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        op = str(func)
        while self.count < len(self._records) and self._expected.left_out(
            self._records[self.count], op
        ):
            self.count += 1
        index = min(self.count, len(self._records) - 1)
        record = self._records[index]
        actual = tuple(tuple(tensor.shape) for tensor in tensors_in(out))
        self._blind = self._blind or self._apart(index, actual)
        if self._blind:
            return out
        self.count += 1
        same = op == record.op or (op == ALIAS and record.op == SLICE)
        if not same or actual != self._expected.shapes(record, self._uncut[index][1]):
            self.fault = Fault(index, actual, place_of(sys._getframe(1)))
            raise _Disagreement
        return out

    def _apart(self, index: int, actual: Shapes) -> bool:
        if index >= len(self._uncut) or self._uncut[index][0] != self._records[index].op:
            return True
        uncut, ids = self._uncut[index][1], self._records[index].outputs
        if [len(shape) for shape in uncut] != [len(s) for s in self._records[index].shapes]:
            return True  # as many parts as there are boxes
        if [len(shape) for shape in actual] != [len(shape) for shape in uncut]:
            return False
        differs = {
            d in own
            for now, was, own in zip(actual, uncut, ids, strict=True)
            for d, size in enumerate(now)
            if size != was[d] - (self._expected.num_lost(own[d]) if d in own else 0)
        }
        return differs == {False}


class _Sums(TorchDispatchMode):
    """One number per op: the sum of what survives, to find where two networks part.

    Run in another precision than the record, a network may cast more or less often: ops are
    matched by name, and casts that the record lacks are passed over. So are slices that take
    everything.
    """

    def __init__(self, records: list[OpRecord], expected: Expected | None) -> None:
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
        self.places[index] = place_of(sys._getframe(1))
        return out

    def _match(self, op: str) -> int | None:
        for index in range(self._next, len(self._records)):
            recorded = self._records[index].op
            if recorded == op or (op == ALIAS and recorded == SLICE):
                self._next = index + 1
                return index
            if "_to_copy" in op or ("_to_copy" not in recorded and recorded != SLICE):
                return None
        return None


def _sums_of(
    model: nn.Module, inputs: Any, records: list[OpRecord], select: Expected | None
) -> _Sums:
    sums = _Sums(records, select)
    with tracing_mode(model), sums:
        run_model(model, inputs)
    return sums


def _first_difference(gated: _Sums, small: _Sums, records: list[OpRecord]) -> Fault:
    for index, a in gated.sums.items():
        if records[index].op == SLICE and index not in small.sums:
            continue
        b = small.sums.get(index, math.nan)
        if not abs(a - b) <= 1e-5 * max(abs(a), abs(b)):
            return Fault(index, None, gated.places[index])
    return Fault(len(records) - 1, None, "the output")
