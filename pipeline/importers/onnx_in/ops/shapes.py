"""Constants and shape arithmetic: sizes stay Python numbers of the run."""

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.emit import MAX_FOLDED_BYTES
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.tensors import from_sparse, torch_dtype
from pipeline.importers.onnx_in.values import Const, Items


@importer("Constant")
def constant(op: Op) -> Result:
    """A tensor, a number, a list of numbers or a sparse tensor."""
    if op.has_attr("value"):
        return op.builder.constant(op.raw_attr("value"))
    if op.has_attr("sparse_value"):
        return Const(from_sparse(op.raw_attr("sparse_value"), op.builder.folder))
    for name, dtype in (("int", torch.int64), ("float", torch.float32)):
        for ending in ("", "s"):
            if op.has_attr(f"value_{name}{ending}"):
                return Const(torch.tensor(op.attr(f"value_{name}{ending}"), dtype=dtype))
    raise op.refuse("holds no number: strings are not supported")


@importer("Shape")
def shape(op: Op) -> Result:
    """From opset 15 on a part of it may be asked for."""
    rank = op.rank(op.value(0))
    dims = range(rank)[op.attr("start", 0) : op.attr("end", rank)]
    sizes = tuple(op.size(op.value(0), dim) for dim in dims)
    return Items(sizes, (len(sizes),), torch.int64)


@importer("Size")
def size(op: Op) -> Result:
    """The number of elements."""
    total: Any = 1
    for dim in range(op.rank(op.value(0))):
        total = op.call(operator.mul, total, op.size(op.value(0), dim))
    return Items((total,), (), torch.int64)


def filled(anchor: Tensor, sizes: list[Any], value: Any, dtype: torch.dtype) -> Tensor:
    """A tensor of one value, on the device of `anchor`."""
    return torch.full(sizes, value, dtype=dtype, device=anchor.device)


@importer("ConstantOfShape")
def constant_of_shape(op: Op) -> Result:
    """Zeros, or the value of the attribute."""
    value: Any = 0.0
    dtype = torch.float32
    if op.has_attr("value"):
        tensor = op.builder.constant(op.raw_attr("value")).tensor
        if tensor.numel() != 1:
            raise op.refuse(f"its value has {tensor.numel()} elements, not one")
        value, dtype = tensor.item(), tensor.dtype
    sizes = op.numbers(0)
    known = [s for s in sizes if isinstance(s, int)]
    if any(s < 0 for s in known):
        raise op.refuse(f"has a negative size: {known}")
    if len(known) < len(sizes):
        return op.call(filled, op.builder.anchor, sizes, value, dtype)
    if math.prod(known) * dtype.itemsize > MAX_FOLDED_BYTES:
        raise op.refuse(f"would make a tensor {known}: refused")
    return Const(torch.full(known, value, dtype=dtype))


def counted(anchor: Tensor, start: Any, limit: Any, step: Any, dtype: torch.dtype) -> Tensor:
    """start, start + step, ... below limit, on the device of `anchor`."""
    return torch.arange(start, limit, step, dtype=dtype, device=anchor.device)


@importer("Range")
def count(op: Op) -> Result:
    """start, start + step, ... below limit."""
    dtype = op.dtype(op.value(0))
    numbers = [op.numbers(i)[0] for i in range(3)]
    if any(isinstance(n, fx.Node) for n in numbers):
        return op.call(counted, op.builder.anchor, *numbers, dtype)
    start, limit, step = (op.number(i) for i in range(3))
    length = max(math.ceil((limit - start) / step), 0)
    if length * dtype.itemsize > MAX_FOLDED_BYTES:
        raise op.refuse(f"would count {length} numbers: refused")
    if length == 0:
        return Const(torch.empty(0, dtype=dtype))
    return Const(start + step * torch.arange(length, dtype=dtype))


def eye_like_of(x: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """Ones on the k-th diagonal."""
    ones = torch.ones_like(x, dtype=torch.float32)
    return (ones.triu(k) * ones.tril(k)).to(dtype)


@importer("EyeLike")
def eye_like(op: Op) -> Result:
    """Of the size of a matrix."""
    code = op.attr("dtype")
    dtype = op.dtype(op.value(0)) if code is None else torch_dtype(code, f"node {op.node.name!r}")
    return op.call(eye_like_of, op.value(0), op.attr("k", 0), dtype)


def one_hot_of(places: Tensor, depth: int, values: Tensor, axis: int) -> Tensor:
    """values[1] where the place is, else values[0]; negative places count from the end."""
    whole = places.to(torch.int64)
    wrapped = torch.where(whole < 0, whole + depth, whole).unsqueeze(axis)
    shape = [1] * wrapped.ndim
    shape[axis] = depth
    hit = wrapped == torch.arange(depth, device=places.device).reshape(shape)
    return torch.where(hit, values[1], values[0])


@importer("OneHot")
def one_hot(op: Op) -> Result:
    """A new dimension of `depth` at `axis`."""
    rank = op.rank(op.value(0)) + 1
    depth = op.numbers(1)[0]
    if isinstance(depth, float):
        depth = int(depth)
    if isinstance(depth, fx.Node) and op.dtype(op.value(1)).is_floating_point:
        raise op.refuse("its depth is a float that is computed while the network runs")
    return op.call(one_hot_of, op.value(0), depth, op.value(2), op.axis(op.attr("axis", -1), rank))


_RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike")


@importer("Bernoulli", "Multinomial", *_RANDOM)
def random(op: Op) -> Result:
    """Refused: two runs of such a network cannot be compared, so nothing could be proven."""
    raise op.refuse("draws random numbers: the result could not be proven; export in eval mode")
