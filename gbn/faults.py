"""Where a cut went wrong, and what is frozen there.

What enters: the op at which a trial disagreed with the record. What leaves: facts that freeze what
meets that op, and the reason, with the line of code.
"""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from gbn.errors import TraceError
from gbn.groups import ChannelGroups, surviving
from gbn.ids import Block, Rows
from gbn.rules import Facts

# Ops whose results have other sizes than their inputs without taking a part by number.
_WHOLE = {
    *("convolution", "_convolution", "addmm", "mm", "bmm", "baddbmm", "linear", "matmul"),
    *("permute", "transpose", "t", "squeeze", "unsqueeze"),
    *("mean", "sum", "amax", "amin", "max", "min", "var_mean", "native_batch_norm", "cat"),
    *("mul", "add", "sub", "div"),
}
_MORE_OPS = 8
"""Of a flat graph, frozen one by one before all of it is."""


class OpRecord(NamedTuple):
    """One executed op: where it ran, and the ids of what went in and came out."""

    op: str
    module: str
    site: tuple[type[nn.Module], int]  # class of the module, ordinal of the op in its forward
    is_leaf: bool  # the module is made of no others
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    numbers: tuple[int | float, ...]  # among the arguments
    values: tuple[object, ...]  # of what came out with values in a run without them
    inputs: tuple[dict[int, Rows], ...]
    outputs: tuple[dict[int, Rows], ...]
    blocks: range  # ids issued by this op, as numbers of the id space's blocks


@dataclass(frozen=True)
class Fault:
    """The op (index into the records) at which a cut goes wrong, and the line of code."""

    index: int
    actual: tuple[tuple[int, ...], ...] | None  # output shapes, None if it crashed
    place: str
    expected: tuple[tuple[int, ...], ...] = ()

    @property
    def is_number(self) -> bool:
        """All sizes are right, and a number that the op was told is not."""
        return self.actual is not None and self.actual == self.expected


def freeze_fault(
    fault: Fault,
    groups: ChannelGroups,
    facts: Facts,
    records: list[OpRecord],
    tried: Mapping[str, int],
) -> str:
    """Freeze what meets the faulty op; returns the reason. `tried`: how often each was before.

    Raises TraceError where nothing is left to freeze. All modules of the same class have the same
    code, so they are treated alike; in torch's own layers, which all kinds of code call, only the
    one is meant.
    """
    record = records[fault.index]
    where = record.module or "the model itself"
    reason = f"has a size baked in at {fault.place} ({record.op} in {where})"
    own_code = not (record.is_leaf and record.site[0].__module__.startswith("torch."))
    alike = [r for r in records if own_code and r.site == record.site and r.op == record.op]
    told = {(size.module, size.old) for size in groups.sizes}
    for suspects in _suspects(fault, alike or [record], facts, records, tried.get(reason, 0), told):
        rows = [ids for ids in suspects if _removable(groups, ids)]
        for ids in rows:
            facts.space.freeze(ids, reason)
        if rows:
            return reason
    raise TraceError(
        f"a cut changes what the network computes at {fault.place} ({record.op} in {where}), and "
        "nothing that is left to freeze there helps. Freeze the layers there"
    )


def takes_parts(records: Sequence[OpRecord], groups: ChannelGroups) -> bool:
    """Whether an op takes part of a dimension that cuts make smaller, splits it, or adds to it.

    Such parts may be told by numbers that agree with a cut by chance (a minimum, a half, rounded).
    Layers and sums are about whole dimensions.
    """
    for record in records:
        if record.op.split(".")[1].rstrip("_") not in _WHOLE:
            sizes = {(d, rows.shape[1]) for t in record.inputs for d, rows in t.items()}
            for ids in record.outputs:
                for d, rows in ids.items():
                    if (d, rows.shape[1]) not in sizes and _removable(groups, rows):
                        return True
    return False


def _suspects(
    fault: Fault,
    alike: list[OpRecord],
    facts: Facts,
    records: list[OpRecord],
    again: int,
    told: Container[tuple[str, int]],
) -> Iterator[list[Rows]]:
    """Ids that may be what the forward has a size of, the likeliest first.

    What the op issued itself (what a pad adds, what a view splits into); where sizes are right and
    a number is not, widths that the module is told and that the number is made of (1 / sqrt of a
    size), then the last dimension, which it mostly is of; then what
    enters and leaves the op, or what entered ops shortly before it; where that did not help
    (`again`: how often), what enters its module, and in the end all that was seen before. The model
    itself, which a flat graph is, is no module to freeze at once: some more ops before come first.
    """
    yield [_ids(block) for r in alike for block in _issued(r, facts, fault, told)]
    if fault.is_number and not again:
        yield [rows for r in alike for rows in _told_in_numbers(r, facts)]
        for back in (1, 2, 3):
            yield [ids for r in alike for ids in _dim_from_the_end(r, back)]
    yield [ids for r in alike for t in (*r.outputs, *r.inputs) for ids in t.values()]
    modules = {r.module for r in alike}
    if again < (_MORE_OPS if modules == {""} else 1):
        for record in reversed(records[: fault.index]):
            yield [ids for t in record.inputs for ids in t.values()]
    yield [ids for r in records if r.module in modules for t in r.inputs for ids in t.values()]
    earlier = records[: fault.index + 1]
    yield [ids for r in earlier for t in r.outputs for ids in t.values()]


def guesses_near(module: str, groups: ChannelGroups) -> set[str]:
    """Modules with a guessed size that hold `module`, or that it holds: they are in doubt first."""
    return {
        size.module
        for size in groups.sizes
        if size.guessed
        and (f"{module}.".startswith(f"{size.module}.") or size.module.startswith(f"{module}."))
    }


def _told_in_numbers(record: OpRecord, facts: Facts) -> list[Rows]:
    """Widths that the module is told, of which a number of the op is a usual function."""
    numbers = [abs(number) for number in record.numbers if abs(number) > 1e-9]
    return [
        use.rows
        for use in facts.sized
        if use.module == record.module
        and use.rows.size  # a slice may have taken nothing
        and any(
            math.isclose(number, use.rows.shape[1] ** power, rel_tol=1e-6)
            for number in numbers
            for power in (1, -1, 0.5, -0.5)
        )
    ]


def _dim_from_the_end(record: OpRecord, back: int) -> list[Rows]:
    """Ids of that dimension of each tensor of the op."""
    found = []
    for tensors, shapes in ((record.outputs, record.shapes), (record.inputs, ())):
        for number, ids in enumerate(tensors):
            ndim = len(shapes[number]) if number < len(shapes) else len(record.shapes[0])
            found += [ids[ndim - back]] if ndim - back in ids else []
    return found


def _issued(
    record: OpRecord, facts: Facts, fault: Fault, told: Container[tuple[str, int]]
) -> list[Block]:
    """Ids issued by the op, only those whose size did not follow.

    Where it crashed that is not known: then those that no attribute of the module follows. `told`:
    (module, size) of the others.
    """
    blocks = [facts.space.blocks[i] for i in record.blocks]
    if fault.actual is None:
        return [b for b in blocks if (record.module, b.size) not in told] or blocks
    return [b for b in blocks if any(b.size in shape for shape in fault.actual)] or blocks


def _ids(block: Block) -> Rows:
    return np.arange(block.start, block.start + block.size, dtype=np.int64)[None]


def _removable(groups: ChannelGroups, rows: Rows) -> bool:
    return not surviving(rows, groups.removable_ids).all()
