"""Ops that pick and put by position."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.values import Const, Items


@importer("Gather")
def gather(op: Op) -> Result:
    """Whole slices by position; negative positions count from the end."""
    x, places = op.value(0), op.value(1)
    if isinstance(x, Items) and not x.is_known:
        return _picked_items(op, x)
    axis = op.axis(op.attr("axis", 0), op.rank(x))
    if isinstance(places, Const) and isinstance(x, fx.Node):
        size = (op.shape(x) or ())[axis]
        positions = places.tensor.reshape(-1).tolist()
        if size is not None and any(not -size <= p < size for p in positions):
            raise op.refuse(f"position {positions} is out of range for {size} places")
        if places.tensor.ndim == 0:
            return op.call(torch.select, x, axis, int(places.tensor))
    return op.call(gather_slices, x, places, axis)


def _picked_items(op: Op, x: Items) -> Result:
    axis = op.axis(op.attr("axis", 0), len(x.shape))
    return x.moved(np.take(x.places, op.const(1).numpy(), axis))


def wrapped(places: Tensor, size: Any) -> Tensor:
    """Positions counted from the front."""
    places = places.to(torch.int64)
    return torch.where(places < 0, places + size, places)


def gather_slices(x: Tensor, places: Tensor, axis: int) -> Tensor:
    """Slices along `axis`, in the shape of the positions."""
    flat = wrapped(places, x.shape[axis]).reshape(-1)
    picked = x.index_select(axis, flat)
    return picked.reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


def gather_elements_of(x: Tensor, places: Tensor, axis: int) -> Tensor:
    """Single elements along `axis`."""
    return x.gather(axis, wrapped(places, x.shape[axis]))


@importer("GatherElements")
def gather_elements(op: Op) -> Result:
    """Single elements."""
    axis = op.axis(op.attr("axis", 0), op.rank(op.value(0)))
    return op.call(gather_elements_of, op.value(0), op.value(1), axis)


def gather_nd_of(x: Tensor, places: Tensor, batch_dims: int) -> Tensor:
    """Slices at positions given as rows; the first `batch_dims` dimensions go together."""
    depth = places.shape[-1]
    rows = [wrapped(places[..., i], x.shape[batch_dims + i]) for i in range(depth)]
    grids = []
    for dim in range(batch_dims):
        shape = [1] * (places.ndim - 1)
        shape[dim] = x.shape[dim]
        grids.append(torch.arange(x.shape[dim], device=x.device).reshape(shape))
    return x[tuple(grids + rows)]


@importer("GatherND")
def gather_nd(op: Op) -> Result:
    """Slices at positions given as rows."""
    return op.call(gather_nd_of, op.value(0), op.value(1), op.attr("batch_dims", 0))


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_of(x: Tensor, places: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    """Put single elements along `axis`."""
    places = wrapped(places, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCTIONS[reduction])


@importer("ScatterElements", "Scatter")
def scatter(op: Op) -> Result:
    """Put single elements."""
    axis = op.axis(op.attr("axis", 0), op.rank(op.value(0)))
    reduction = op.attr("reduction", "none")
    return op.call(scatter_of, op.value(0), op.value(1), op.value(2), axis, reduction)


def scatter_nd_of(x: Tensor, places: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """Put slices at positions given as rows."""
    depth = places.shape[-1]
    rows = tuple(wrapped(places[..., i], x.shape[i]) for i in range(depth))
    if reduction == "none":
        return x.index_put(rows, updates)
    if reduction == "add":
        return x.index_put(rows, updates, accumulate=True)
    flat = torch.zeros_like(rows[0])
    for i in range(depth):
        flat = flat * x.shape[i] + rows[i]
    rest = x.shape[depth:]
    count = 1
    for size in x.shape[:depth]:
        count = count * size
    wide = flat.reshape(-1, *[1] * len(rest)).expand(-1, *rest)
    values = updates.reshape(-1, *rest)
    base = x.reshape(count, *rest)
    return base.scatter_reduce(0, wide, values, _REDUCTIONS[reduction]).reshape(x.shape)


@importer("ScatterND")
def scatter_nd(op: Op) -> Result:
    """Put slices."""
    reduction = op.attr("reduction", "none")
    return op.call(scatter_nd_of, op.value(0), op.value(1), op.value(2), reduction)


def non_zero_of(x: Tensor) -> Tensor:
    """Positions of what is not zero, one row a dimension."""
    return x.nonzero().t() if x.ndim else x.reshape(1).nonzero().t()[:0]


@importer("NonZero")
def non_zero(op: Op) -> Result:
    """Positions of what is not zero."""
    return op.call(non_zero_of, op.value(0))


def compressed(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    """The slices for which the condition holds; of the flat tensor without an axis."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, condition.nonzero().reshape(-1))


@importer("Compress")
def compress(op: Op) -> Result:
    """The slices for which the condition holds."""
    axis = op.attr("axis")
    axis = None if axis is None else op.axis(axis, op.rank(op.value(0)))
    return op.call(compressed, op.value(0), op.value(1), axis)


def reversed_sequences(x: Tensor, lengths: Tensor, batch: int, time: int) -> Tensor:
    """The first steps of each sequence backwards, as many as its length says."""
    shape = [1] * x.ndim
    shape[time] = x.shape[time]
    steps = torch.arange(x.shape[time], device=x.device).reshape(shape)
    shape = [1] * x.ndim
    shape[batch] = x.shape[batch]
    limits = lengths.reshape(shape)
    places = torch.where(steps < limits, limits - 1 - steps, steps)
    return x.gather(time, places.expand(x.shape))


@importer("ReverseSequence")
def reverse_sequence(op: Op) -> Result:
    """The first steps of each sequence backwards."""
    return op.call(
        reversed_sequences, op.value(0), op.value(1), op.attr("batch_axis", 1),
        op.attr("time_axis", 0),
    )  # fmt: skip
