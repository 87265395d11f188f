"""Ops that move, cut and join dimensions."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.ops.reshaping import follow_sizes
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.values import Items, Number, Value, probes_of


@importer("Reshape", since=5)
def reshape(op: Op) -> Result:
    """0 takes the input's size, -1 what is left; sizes that are the input's own stay dynamic."""
    x = op.value(0)
    wanted = op.numbers(1)
    if isinstance(x, Items):
        return _reshaped_items(op, x, wanted)
    if any(isinstance(w, fx.Node) and probes_of(w) is None for w in wanted):
        return op.call(reshape_to, x, wanted, bool(op.attr("allowzero", 0)))
    if not op.attr("allowzero", 0):
        if any(isinstance(w, int) and w == 0 for w in wanted[op.rank(x) :]):
            raise op.refuse(f"asks for the size of a dimension that its input lacks: {wanted}")
        wanted = [
            op.size(x, i) if w == 0 and isinstance(w, int) else w for i, w in enumerate(wanted)
        ]
    if isinstance(x, fx.Node):
        wanted = _dynamic(op, x, wanted)
    return op.call(torch.reshape, x, wanted)


def reshape_to(x: Tensor, wanted: list[Any], allow_zero: bool) -> Tensor:
    """Reshape to sizes that are data, where a 0 takes the size of x."""
    return x.reshape([x.shape[i] if w == 0 and not allow_zero else w for i, w in enumerate(wanted)])


def _reshaped_items(op: Op, x: Items, wanted: list[Number]) -> Result:
    known = [w for w in wanted if isinstance(w, int)]
    if len(known) < len(wanted):
        return op.call(torch.reshape, op.tensor(x), wanted)
    return x.moved(x.places.reshape(known))


def _dynamic(op: Op, x: fx.Node, wanted: list[Number]) -> list[Number]:
    """Replace written sizes that are those of the input by its sizes in the run."""
    probes = probes_of(x)
    if not probes or not isinstance(probes[0], Tensor):
        return wanted
    shapes = [tuple(probe.shape) for probe in probes]
    written = [w if isinstance(w, int) else None for w in wanted]
    result = list(wanted)
    for place, source in follow_sizes(shapes, written).items():
        size: Any = 1
        for dim in source.dims:
            factor = op.size(x, dim)
            size = factor if isinstance(size, int) and size == 1 else op.call(_times, size, factor)
        result[place] = size if source.divisor == 1 else op.call(_over, size, source.divisor)
    return result


def _times(a: Any, b: Any) -> Any:
    return a * b


def _over(a: Any, b: Any) -> Any:
    return a // b


@importer("Flatten")
def flatten(op: Op) -> Result:
    """To a matrix: what lies before the axis, what lies from it on."""
    rank = op.rank(op.value(0))
    axis = op.attr("axis", 1)
    axis = axis + rank if axis < 0 else axis
    if not 0 <= axis <= rank:
        raise op.refuse(f"axis {axis} is out of range for {rank} dimensions")
    if axis == 1 and rank > 1:
        return op.call(torch.flatten, op.value(0), 1)
    return op.call(flatten_at, op.value(0), axis)


def flatten_at(x: Tensor, axis: int) -> Tensor:
    """To a matrix, split at `axis`."""
    rows = 1
    for size in x.shape[:axis]:
        rows = rows * size
    return x.reshape(rows, -1) if x.numel() else x.reshape(rows, 0)


@importer("Transpose")
def transpose(op: Op) -> Result:
    """Any order of the dimensions; reversed where none is given."""
    rank = op.rank(op.value(0))
    order = op.attr("perm", list(reversed(range(rank))))
    if sorted(order) != list(range(rank)):
        raise op.refuse(f"perm {order} is no order of {rank} dimensions")
    x = op.value(0)
    if isinstance(x, Items) and not x.is_known:
        return x.moved(x.places.transpose(order))
    return op.call(torch.permute, op.value(0), tuple(order))


def _axes(op: Op) -> list[int] | None:
    if op.opset >= 13:
        return op.const_ints(1) if op.has(1) else None
    found: list[int] | None = op.attr("axes")
    return found


@importer("Squeeze")
def squeeze(op: Op) -> Result:
    """Only dimensions of one element; all of them where none are named."""
    x, axes = op.value(0), _axes(op)
    if isinstance(x, Items):
        chosen = None if axes is None else tuple(op.axis(a, len(x.shape)) for a in axes)
        return x.moved(x.places.squeeze(chosen))
    shape = op.shape(x)
    if axes is None:
        if shape is None:
            raise op.refuse("names no axes, and the sizes of its input are not known")
        axes = [i for i, size in enumerate(shape) if size == 1]
    dims = tuple(op.axis(axis, op.rank(x)) for axis in axes)
    if shape is not None and any(shape[d] not in (1, None) for d in dims):
        raise op.refuse(f"axes {axes} of {list(shape)} are not of one element")
    return op.call(torch.squeeze, x, dims)


@importer("Unsqueeze")
def unsqueeze(op: Op) -> Result:
    """Axes count in the result."""
    x, axes = op.value(0), _axes(op)
    if not axes:
        return x
    if isinstance(x, Items):
        return x.moved(np.expand_dims(x.places, tuple(axes)))
    rank = op.rank(x) + len(axes)
    dims = sorted(op.axis(axis, rank) for axis in axes)
    if len(set(dims)) != len(dims):
        raise op.refuse(f"axes {axes} name one dimension twice")
    result: Any = x
    for dim in dims:
        result = op.call(torch.unsqueeze, result, dim)
    return result


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


def _sliced_items(
    op: Op, x: Items, bounds: list[int | None], axes: list[int], steps: list[int]
) -> Items:
    if None in bounds:
        raise op.refuse("cuts a list of sizes at a place that depends on the batch or the data")
    places = x.places
    for i, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        dim = op.axis(axis, len(x.shape))
        start, stop = bounds[i] or 0, bounds[i + len(axes)] or 0
        end = _stop_before(stop, x.shape[dim]) if step < 0 else stop
        places = places[(slice(None),) * dim + (slice(start, end, step),)]
    return x.moved(places)


def narrowed(x: Tensor, dim: int, start: Any, stop: Any) -> Tensor:
    """x[..., start:stop, ...] along `dim`."""
    return x[(slice(None),) * dim + (slice(start, stop),)]


def strided(x: Tensor, dim: int, start: Any, stop: Any, step: int) -> Tensor:
    """x[..., start:stop:step, ...]; a negative step runs backwards, as in numpy."""
    if step > 0:
        return x[(slice(None),) * dim + (slice(start, stop, step),)]
    places = range(x.shape[dim])[start : _stop_before(stop, x.shape[dim]) : step]
    if len(places) == x.shape[dim] and step == -1:
        return x.flip(dim)
    index = torch.tensor(list(places), dtype=torch.int64, device=x.device)
    return x.index_select(dim, index)


def _stop_before(stop: Any, size: int) -> Any:
    """ONNX writes "past the front" as a number below -size, Python's slices as None."""
    return None if stop < -size else stop


@importer("Expand")
def expand(op: Op) -> Result:
    """Sizes of one give way to the input's."""
    x = op.value(0)
    wanted = op.numbers(1)
    rank = op.rank(x)
    shape: Any = op.shape(x)
    front = len(wanted) - rank
    if all(isinstance(w, int) and w == 1 for w in wanted) and front <= 0:
        return x
    sizes = list(wanted)
    for i, size in enumerate(wanted):
        own = shape[i - front] if i >= front else None
        if (isinstance(size, int) and i >= front and (size == 1 or size == own)) or (
            not isinstance(size, int) and i >= front and own is not None and own != 1
        ):
            sizes[i] = -1
        elif i >= front and own is None:
            sizes[i] = -1 if op.decided(size) is None else size
    sizes = [-1] * max(-front, 0) + sizes
    return op.call(Tensor.expand, x, sizes)


@importer("Tile", since=6)
def tile(op: Op) -> Result:
    """Repeats each dimension."""
    repeats = op.numbers(1)
    if len(repeats) != op.rank(op.value(0)):
        raise op.refuse(f"{len(repeats)} repeats for {op.rank(op.value(0))} dimensions")
    if all(isinstance(r, int) and r == 1 for r in repeats):
        return op.value(0)
    return op.call(Tensor.repeat, op.value(0), repeats)


def depth_to_space_of(x: Tensor, block: int) -> Tensor:
    """(N, b b C, H, W) to (N, C, H b, W b)."""
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // (block * block), h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // (block * block), h * block, w * block)


@importer("DepthToSpace")
def depth_to_space(op: Op) -> Result:
    """In the order of pixel_shuffle (CRD), or block by block (DCR)."""
    block = op.attr("blocksize")
    if op.attr("mode", "DCR") == "CRD":
        return op.call(torch.pixel_shuffle, op.value(0), block)
    return op.call(depth_to_space_of, op.value(0), block)


def space_to_depth_of(x: Tensor, block: int, channel_first: bool) -> Tensor:
    """(N, C, H b, W b) to (N, b b C, H, W), or to (N, C b b, H, W)."""
    n, c, h, w = x.shape
    order = (0, 1, 3, 5, 2, 4) if channel_first else (0, 3, 5, 1, 2, 4)
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(order)
    return parts.reshape(n, c * block * block, h // block, w // block)


@importer("SpaceToDepth")
def space_to_depth(op: Op) -> Result:
    """Block by block (DCR), or in the order of pixel_unshuffle (CRD)."""
    channel_first = op.attr("mode", "DCR") == "CRD"
    return op.call(space_to_depth_of, op.value(0), op.attr("blocksize"), channel_first)


@importer("Trilu")
def trilu(op: Op) -> Result:
    """One side of the matrix from the k-th diagonal on."""
    function = torch.triu if op.attr("upper", 1) else torch.tril
    return op.call(function, op.value(0), op.number(1, 0))


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
