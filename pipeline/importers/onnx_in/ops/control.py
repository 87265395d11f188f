"""If and Loop whose decisions are known at import, sequences, and what only passes through."""

from typing import Any

import onnx
import torch

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.errors import label
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.values import Const, Items, Sequence, Value

MAX_TRIPS = 5000
"""Of one loop that is written out: more would be a network that no exporter can write."""


def _decision(op: Op, value: Value) -> bool:
    """A condition known now, or one that hangs on sizes and comes out alike for all trial sizes."""
    items = op.as_items(value)
    if items is None and isinstance(value, Const) and value.tensor.numel() == 1:
        return bool(value.tensor.item())
    if items is None or len(items.values) != 1:
        raise op.refuse("its condition depends on the data: only constant ones are supported")
    decided = op.decided(items.values[0])
    if decided is None:
        raise op.refuse("its condition depends on the batch: only constant ones are supported")
    if not items.is_known:
        _say_decided_by_sizes(op)
    return bool(decided)


def _say_decided_by_sizes(op: Op) -> None:
    op.builder.note(
        f"{label(op.node)} is decided by sizes: taken as for the input size that was given"
    )


@importer("If")
def branch(op: Op) -> Result:
    """The branch that is taken takes the node's place."""
    taken = op.raw_attr("then_branch" if _decision(op, op.value(0)) else "else_branch")
    return op.builder.run_subgraph(taken, {})


@importer("Loop")
def loop(op: Op) -> Result:
    """Unrolled: the trip count, and each condition, must be known at import."""
    body: onnx.GraphProto = op.raw_attr("body")
    trips = _trips(op)
    condition: Value | None = op.maybe(1)
    names = [value.name for value in body.input]
    carried = [op.value(i) for i in range(2, len(op.inputs))]
    if len(names) != len(carried) + 2 or len(body.output) < len(carried) + 1:
        raise op.refuse("its body does not take what it is given")
    collected: list[list[Value]] = [[] for _ in body.output[1 + len(carried) :]]
    trip = 0
    while (trips is None or trip < trips) and (condition is None or _decision(op, condition)):
        now: Value = condition or Const(torch.tensor(True))
        if max(trip, trips or 0) >= MAX_TRIPS:
            raise op.refuse(f"runs its body {trips or 'over ' + str(trip)} times: too often")
        given = dict(zip(names, [Const(torch.tensor(trip)), now, *carried], strict=True))
        results = op.builder.run_subgraph(body, given)
        condition = results[0] if op.has(1) else None
        carried = list(results[1 : 1 + len(carried)])
        for rows, row in zip(collected, results[1 + len(carried) :], strict=True):
            rows.append(row)
        trip += 1
    op.builder.note(f"{label(op.node)}: written out, {trip} runs of its body one after another")
    scans = []
    for rows in collected:
        if not rows:
            raise op.refuse("runs zero times and gives lists: not supported")
        scans.append(op.call(torch.stack, [op.tensor(row) for row in rows]))
    return (*carried, *scans)


def _trips(op: Op) -> int | None:
    if not op.has(0):
        return None
    items = op.as_items(op.value(0))
    known = items is not None and len(items.values) == 1
    trips = op.decided(items.values[0]) if items is not None and known else None
    if items is None or trips is None:
        raise op.refuse("its number of runs depends on the data: only constant ones are supported")
    if not items.is_known:
        _say_decided_by_sizes(op)
    return int(trips)


@importer("SequenceConstruct")
def sequence_construct(op: Op) -> Result:
    """A list of tensors."""
    return Sequence(tuple(_element(op, op.value(i)) for i in range(len(op.inputs))))


def _element(op: Op, value: Value) -> Any:
    if isinstance(value, Sequence):
        raise op.refuse("sequences of sequences are not supported")
    return value


@importer("SequenceEmpty")
def sequence_empty(_op: Op) -> Result:
    """A list of nothing."""
    return Sequence(())


def _sequence(op: Op) -> tuple[Any, ...]:
    value = op.value(0)
    if not isinstance(value, Sequence):
        raise op.refuse("its input is no sequence")
    return value.values


@importer("SequenceAt")
def sequence_at(op: Op) -> Result:
    """One element."""
    values, place = _sequence(op), int(op.number(1))
    if not -len(values) <= place < len(values):
        raise op.refuse(f"position {place} of {len(values)} elements")
    return values[place]


@importer("SequenceInsert", "SequenceErase")
def sequence_change(op: Op) -> Result:
    """One element more or less, at the end where no place is given."""
    values = list(_sequence(op))
    if op.node.op_type == "SequenceInsert":
        values.insert(int(op.number(2, len(values))), _element(op, op.value(1)))
    else:
        values.pop(int(op.number(1, -1)))
    return Sequence(tuple(values))


@importer("SequenceLength")
def sequence_length(op: Op) -> Result:
    """The number of elements."""
    return Items((len(_sequence(op)),), (), torch.int64)


@importer("ConcatFromSequence")
def concat_from_sequence(op: Op) -> Result:
    """All elements along one axis, which may be a new one."""
    values = [op.tensor(value) for value in _sequence(op)]
    function = torch.stack if op.attr("new_axis", 0) else torch.cat
    return op.call(function, values, op.attr("axis"))
