"""Reductions. Axes are attributes in old opsets, inputs in new ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.values import Items


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = torch.prod(x, dim, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(function: Callable[..., Tensor], x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return function(x, dims, keepdim=keep)


def sum_of(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    """The sum, in the type of x."""
    return x.sum(dims, keepdim=keep, dtype=x.dtype)


def mean_of(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    """The mean; of integers cut towards zero."""
    if x.is_floating_point():
        return x.mean(dims, keepdim=keep)
    return x.double().mean(dims, keepdim=keep).to(x.dtype)


def max_of(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    """The maximum; of nothing, the least number there is."""
    if any(x.shape[d] == 0 for d in dims):
        return _of_nothing(x, dims, keep, lowest=True)
    return x.amax(dims, keepdim=keep)


def min_of(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    """The minimum; of nothing, the greatest number there is."""
    if any(x.shape[d] == 0 for d in dims):
        return _of_nothing(x, dims, keep, lowest=False)
    return x.amin(dims, keepdim=keep)


def _of_nothing(x: Tensor, dims: list[int], keep: bool, *, lowest: bool) -> Tensor:
    sizes = [1 if d in dims else size for d, size in enumerate(x.shape) if keep or d not in dims]
    if x.is_floating_point():
        return x.new_full(sizes, float("-inf") if lowest else float("inf"))
    info: Any = torch.iinfo(x.dtype) if x.dtype is not torch.bool else None
    value = (not lowest) if info is None else (info.min if lowest else info.max)
    return x.new_full(sizes, value)


def norm_1(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    """The sum of magnitudes."""
    return sum_of(x.abs(), dims, keep)


def norm_2(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    """The root of the sum of squares."""
    return sum_of(x * x, dims, keep).sqrt().to(x.dtype)


def log_sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    """The logarithm of the sum."""
    return sum_of(x, dims, keep).log().to(x.dtype)


def log_sum_exp(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    """The logarithm of the sum of exponentials."""
    return torch.logsumexp(x, dims, keepdim=keep).to(x.dtype)


def sum_square(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    """The sum of squares."""
    return sum_of(x * x, dims, keep)


def product_of(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    """The product."""
    return _product(x, dims, keep)


_REDUCE: dict[str, Callable[..., Tensor]] = {
    "ReduceSum": sum_of, "ReduceMean": mean_of, "ReduceMax": max_of, "ReduceMin": min_of,
    "ReduceProd": product_of, "ReduceL1": norm_1, "ReduceL2": norm_2, "ReduceLogSum": log_sum,
    "ReduceLogSumExp": log_sum_exp, "ReduceSumSquare": sum_square,
}  # fmt: skip


def _reduced(op: Op, axes: list[int] | None) -> Result:
    x = op.value(0)
    if isinstance(x, Items) and op.node.op_type == "ReduceProd" and not x.is_known:
        product: Any = 1
        for value in x.values:
            product = op.call(_times, product, value)
        return Items((product,), (1,) * len(x.shape) if op.attr("keepdims", 1) else (), x.dtype)
    rank = op.rank(x)
    if not axes and op.attr("noop_with_empty_axes", 0):
        axes = []  # nothing is summed, what is done to each element is done all the same
    dims = [
        op.axis(a, rank)
        for a in (
            axes
            if axes is not None and (axes or op.attr("noop_with_empty_axes", 0))
            else range(rank)
        )
    ]
    if not dims:
        # one more dimension of one element, taken away by the reduction
        return op.call(of_single, x, op.node.op_type)
    keep = bool(op.attr("keepdims", 1))
    if op.node.op_type in ("ReduceMean", "ReduceSum") and op.dtype(x).is_floating_point:
        function = torch.mean if op.node.op_type == "ReduceMean" else torch.sum
        return op.call(function, x, dims, keepdim=keep)
    return op.call(_REDUCE[op.node.op_type], x, dims, keep)


def _times(a: Any, b: Any) -> Any:
    return a * b


def of_single(x: Tensor, kind: str) -> Tensor:
    """A reduction over each element alone."""
    return _REDUCE[kind](x.unsqueeze(-1), [x.ndim], False)


@importer(*_REDUCE)
def reduce_attributes(op: Op) -> Result:
    """Axes are an attribute."""
    return _reduced(op, op.attr("axes"))


@importer(*sorted(set(_REDUCE) - {"ReduceSum"}), since=18)
def reduce_inputs(op: Op) -> Result:
    """Axes are an input."""
    return _reduced(op, op.const_ints(1) if op.has(1) else None)


@importer("ReduceSum", since=13)
def reduce_sum(op: Op) -> Result:
    """Axes are an input, five opsets earlier than elsewhere."""
    return _reduced(op, op.const_ints(1) if op.has(1) else None)


def last_extreme(x: Tensor, dim: int, largest: bool) -> Tensor:
    """The last place at which the extreme stands."""
    flipped = x.flip(dim)
    place = flipped.argmax(dim, keepdim=True) if largest else flipped.argmin(dim, keepdim=True)
    return x.shape[dim] - 1 - place


@importer("ArgMax", "ArgMin")
def arg_extreme(op: Op) -> Result:
    """The first such place, or the last."""
    axis = op.axis(op.attr("axis", 0), op.rank(op.value(0)))
    keep, largest = bool(op.attr("keepdims", 1)), op.node.op_type == "ArgMax"
    if op.attr("select_last_index", 0):
        found = op.call(last_extreme, op.value(0), axis, largest)
        return found if keep else op.call(torch.squeeze, found, axis)
    function = torch.argmax if largest else torch.argmin
    return op.call(function, op.value(0), axis, keepdim=keep)


def running_total(x: Tensor, axis: int, exclusive: bool, reverse: bool, product: bool) -> Tensor:
    """Totals along an axis, with or without the element itself, from the front or the end."""
    if reverse:
        x = x.flip(axis)
    total = (torch.cumprod if product else torch.cumsum)(x, axis, dtype=x.dtype)
    if exclusive:
        first = torch.full_like(x.narrow(axis, 0, 1), 1 if product else 0)
        total = torch.cat([first, total.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return total.flip(axis) if reverse else total


@importer("CumSum", "CumProd")
def cumulative(op: Op) -> Result:
    """Along one axis."""
    axis = op.axis(op.number(1), op.rank(op.value(0)))
    function = torch.cumsum if op.node.op_type == "CumSum" else torch.cumprod
    exclusive, reverse = bool(op.attr("exclusive", 0)), bool(op.attr("reverse", 0))
    if not exclusive and not reverse:
        return op.call(function, op.value(0), axis, dtype=op.dtype(op.value(0)))
    product = function is torch.cumprod
    return op.call(running_total, op.value(0), axis, exclusive, reverse, product)


@importer("TopK")
def top_k(op: Op) -> Result:
    """k is an input from opset 10 on."""
    axis = op.axis(op.attr("axis", -1), op.rank(op.value(0)))
    k = op.numbers(1)[0] if op.opset >= 10 else op.attr("k")
    if op.is_wide_unsigned(op.value(0)):
        raise op.refuse("torch does not sort wide unsigned integers")
    found = op.call(first_k, op.value(0), k, axis, bool(op.attr("largest", 1)))
    return op.unpack(found, 2)


def first_k(x: Tensor, k: Any, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The k extremes in order; of equal ones the first, which torch.topk does not give.

    torch sorts stably on the CPU, asked or not; asked, its exporter has no translation.
    """
    values, places = torch.sort(x, dim=axis, descending=largest)
    return values.narrow(axis, 0, k), places.narrow(axis, 0, k)
