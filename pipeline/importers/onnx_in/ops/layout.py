"""Ops that move, widen and rename dimensions."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.ops.reshaping import follow_sizes
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.values import Items, Number, probes_of


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
