"""Ops that cut a tensor into parts and join parts: Concat, Split, Slice, CenterCropPad."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.values import Items, Number, Value


@importer("Concat")
def concat(op: Op) -> Result:
    """Lists of sizes stay lists."""
    items = op.all_items()
    if items is not None:
        return _joined(items, op.attr("axis", 1))
    values_in = [op.tensor(op.value(i)) for i in range(len(op.inputs))]
    axis = op.axis(op.attr("axis", 1), op.rank(values_in[0]))
    if len(values_in) == 1:
        return values_in[0]
    return op.call(torch.cat, values_in, axis)


def _joined(items: list[Items], axis: int) -> Items:
    values: tuple[Number, ...] = ()
    places = []
    for item in items:
        places.append(item.places + len(values))
        values += item.values
    joined = Items(values, (len(values),), items[0].dtype)
    return joined.moved(np.concatenate(places, axis))


@importer("Split", since=1)
def split(op: Op) -> Result:
    """Sizes as an attribute (to opset 12) or an input; equal parts where none are given."""
    x = op.value(0)
    count = len(op.node.output)
    axis = op.axis(op.attr("axis", 0), op.rank(x))
    sizes: list[Number] | None = None
    if op.opset >= 13 and op.has(1):
        sizes = op.numbers(1)
    elif op.opset < 13:
        sizes = op.attr("split")
    if isinstance(x, Items):
        return _split_items(op, x, sizes, count)
    whole = (op.shape(x) or ())[axis]
    if sizes is None:
        parts = op.attr("num_outputs", count)
        return _even_parts(op, x, axis, whole, parts)
    if len(sizes) != count:
        raise op.refuse(f"{len(sizes)} sizes for {count} outputs")
    known = [s for s in sizes if isinstance(s, int)]
    if whole is not None and len(known) == count and sum(known) != whole:
        raise op.refuse(f"sizes {sizes} do not add up to {whole}")
    if len(set(sizes)) == 1 and known and whole is not None and count > 1:
        return op.unpack(op.call(torch.chunk, x, count, axis), count)  # stays right when pruned
    return op.unpack(op.call(torch.split, x, sizes, axis), count)


def _even_parts(op: Op, x: Value, axis: int, whole: int | None, parts: int) -> Result:
    if parts < 1:
        raise op.refuse(f"num_outputs is {parts}")
    if parts == 1:
        return (x,)
    if whole is None:
        raise op.refuse("cuts a dimension whose size depends on the batch into equal parts")
    if whole % parts == 0:
        return op.unpack(op.call(torch.chunk, x, parts, axis), parts)
    if op.opset < 18:
        raise op.refuse(f"cuts {whole} places into {parts} equal parts")
    step = -(-whole // parts)
    sizes = [max(min(step, whole - i * step), 0) for i in range(parts)]
    return op.unpack(op.call(torch.split, x, sizes, axis), parts)


def _split_items(op: Op, x: Items, sizes: list[Number] | None, count: int) -> Result:
    total = x.shape[0] if len(x.shape) == 1 else -1
    sizes = [total // count] * count if sizes is None else sizes
    known = [s for s in sizes if isinstance(s, int)]
    if len(known) != count or sum(known) != total:
        raise op.refuse(f"sizes {sizes} do not add up to {total}")
    parts, start = [], 0
    for size in known:
        parts.append(Items(x.values[start : start + size], (size,), x.dtype))
        start += size
    return tuple(parts)


@importer("Slice", since=10)
def slice_inputs(op: Op) -> Result:
    """Starts, ends, axes and steps are inputs."""
    starts, ends = op.numbers(1), op.numbers(2)
    axes = op.const_ints(3) if op.has(3) else list(range(len(starts)))
    steps = op.const_ints(4) if op.has(4) else [1] * len(starts)
    return _sliced(op, starts, ends, axes, steps)


@importer("Slice", since=1)
def slice_attributes(op: Op) -> Result:
    """They are attributes, without steps."""
    starts, ends = op.attr("starts"), op.attr("ends")
    axes = op.attr("axes", list(range(len(starts))))
    return _sliced(op, starts, ends, axes, [1] * len(starts))


def _sliced(
    op: Op, starts: list[Number], ends: list[Number], axes: list[int], steps: list[int]
) -> Result:
    x = op.value(0)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise op.refuse(f"starts {starts}, ends {ends}, axes {axes} and steps {steps} do not fit")
    if isinstance(x, Items) and not x.is_known:
        return _sliced_items(op, x, [op.decided(v) for v in (*starts, *ends)], axes, steps)
    if len(axes) == 1 and steps == [1]:
        part = _equal_part(op, x, op.axis(axes[0], op.rank(x)), starts[0], ends[0])
        if part is not None:
            return part
    result: Any = x
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        dim = op.axis(axis, op.rank(x))
        size = (op.shape(result) or ())[dim] if op.shape(result) is not None else None
        if step == 1:
            begin = 0 if isinstance(start, int) and size is not None and start < -size else start
            if begin == 0 and isinstance(end, int) and (end >= 2**31 - 1 or (size or 2**62) <= end):
                continue
            stop = None if isinstance(end, int) and end >= 2**31 - 1 else end
            result = op.call(narrowed, result, dim, begin, stop)
        else:
            result = op.call(strided, result, dim, start, end, step)
    return result


def _equal_part(op: Op, x: Value, dim: int, start: Number, end: Number) -> Result | None:
    """The slice as one of the equal parts into which the file's slices cut `x`, or None.

    Exporters write a chunk so. As a chunk it stays right when channels go, half of each part.
    """
    shape = op.shape(x)
    size = None if shape is None else shape[dim]
    begin, stop = op.known(start), op.known(end)
    if not isinstance(x, fx.Node) or size is None or begin is None or stop is None:
        return None
    begin, stop = int(begin), min(int(stop), size)
    width = stop - begin
    if begin < 0 or width < 1 or size % width or begin % width or size == width:
        return None
    count = size // width
    if op.builder.num_slices(op.node) < count:
        return None
    op.decided(start), op.decided(end)  # from here on it matters
    parts: tuple[Any, ...] = op.builder.parts_of(op, x, count, dim)
    return parts[begin // width]


def _sliced_items(
    op: Op, x: Items, bounds: list[int | None], axes: list[int], steps: list[int]
) -> Items:
    if None in bounds:
        raise op.refuse("cuts a list of sizes at a place that depends on the batch or the data")
    places = x.places
    for i, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        dim = op.axis(axis, len(x.shape))
        start: int = bounds[i] or 0
        stop: int | None = bounds[i + len(axes)] or 0
        if step < 0:
            start, stop = _backwards(start, stop, x.shape[dim])
        places = places[(slice(None),) * dim + (slice(start, stop, step),)]
    return x.moved(places)


def narrowed(x: Tensor, dim: int, start: Any, stop: Any) -> Tensor:
    """x[..., start:stop, ...] along `dim`."""
    return x[(slice(None),) * dim + (slice(start, stop),)]


def strided(x: Tensor, dim: int, start: Any, stop: Any, step: int) -> Tensor:
    """x[..., start:stop:step, ...]; a negative step runs backwards, as in numpy."""
    if step > 0:
        return x[(slice(None),) * dim + (slice(start, stop, step),)]
    start, stop = _backwards(start, stop, x.shape[dim])
    places = range(x.shape[dim])[start:stop:step]
    if len(places) == x.shape[dim] and step == -1:
        return x.flip(dim)
    index = torch.tensor(list(places), dtype=torch.int64, device=x.device)
    return x.index_select(dim, index)


def _backwards(start: Any, stop: Any, size: int) -> tuple[Any, Any]:
    """Bounds of a slice that runs backwards, as Python has them.

    ONNX writes "past the front" as an end below -size, Python as None; a start there is the first
    place.
    """
    return max(start, -size), None if stop < -size else stop


def crop_or_pad(x: Tensor, wanted: list[int], dims: list[int]) -> Tensor:
    """Cut or pad with zeros around the middle."""
    for size, dim in zip(wanted, dims, strict=True):
        have = x.shape[dim]
        if size <= have:
            x = x.narrow(dim, (have - size) // 2, size)
        else:
            front = (size - have) // 2
            pads = [0] * (2 * (x.ndim - dim - 1)) + [front, size - have - front]
            x = torch.nn.functional.pad(x, pads)
    return x


@importer("CenterCropPad")
def center_crop_pad(op: Op) -> Result:
    """To given sizes, around the middle."""
    rank = op.rank(op.value(0))
    dims = [op.axis(a, rank) for a in op.attr("axes", list(range(rank)))]
    return op.call(crop_or_pad, op.value(0), op.numbers(1), dims)
