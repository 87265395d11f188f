"""Paddings of convolutions and poolings, and the Pad op.

ONNX pads the two ends of a dimension on their own; torch's layers pad both alike. What differs
becomes a padding before the layer.
"""

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.values import Number, Value

Pads: TypeAlias = list[tuple[int, int]]
"""(front, end) of each spatial dimension."""


def explicit_pads(
    op: Op, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> Pads:
    """What `pads` or `auto_pad` say."""
    count = len(kernel)
    auto = op.attr("auto_pad", "NOTSET") or "NOTSET"
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return _same(op, auto, kernel, strides, dilations)
    if auto not in ("NOTSET", "VALID"):
        raise op.refuse(f"auto_pad {auto!r} is not in the ONNX standard")
    pads = op.attr("pads", [0] * 2 * count) if auto == "NOTSET" else [0] * 2 * count
    if len(pads) != 2 * count:
        raise op.refuse(f"pads {pads} do not fit {count} spatial dimensions")
    return [(pads[i], pads[i + count]) for i in range(count)]


def _same(
    op: Op,
    auto: str,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> Pads:
    """So much that the result has ceil(size / stride) places."""
    shape = op.shape(op.value(0))
    sizes = (shape or ())[2:]
    if len(sizes) != len(kernel) or any(size is None for size in sizes):
        raise op.refuse(f"auto_pad {auto} needs input sizes that are known at import")
    result: Pads = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        assert size is not None, "checked above"
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        front = total // 2 if auto == "SAME_UPPER" else total - total // 2
        result.append((front, total - front))
    return result


def pad_before(op: Op, x: Value, pads: Pads, value: float = 0.0) -> tuple[Value, tuple[int, ...]]:
    """The input, padded where a layer cannot, and the padding left to the layer."""
    if all(front == end and front >= 0 for front, end in pads):
        return x, tuple(front for front, _ in pads)
    flat = [amount for pair in reversed(pads) for amount in pair]
    return op.call(F.pad, x, flat, "constant", value), (0,) * len(pads)


def pad_tensor(x: Tensor, pads: list[int], mode: str, value: Any) -> Tensor:
    """ONNX's Pad: amounts (front, end) from the last dimension on; negative ones cut.

    `edge`, `reflect` and `wrap` repeat positions of each dimension, so they are gathers.
    """
    if mode == "constant":
        fill = value.item() if isinstance(value, Tensor) else value
        return F.pad(x, pads, "constant", fill)
    for index in range(len(pads) // 2):
        front, end = pads[2 * index], pads[2 * index + 1]
        if front or end:
            dim = x.ndim - 1 - index
            x = x.index_select(dim, _positions(x, dim, front, end, mode))
    return x


def _positions(x: Tensor, dim: int, front: int, end: int, mode: str) -> Tensor:
    size = x.shape[dim]
    places = torch.arange(-front, size + end, device=x.device)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places.remainder(size)
    period = max(2 * (size - 1), 1)
    folded = places.remainder(period)
    return torch.where(folded < size, folded, period - folded)


_BUILT_IN = {"reflect": "reflect", "edge": "replicate"}


@importer("Pad", since=11)
def pad(op: Op) -> Result:
    """Amounts, value and (from opset 18) axes are inputs."""
    rank = op.rank(op.value(0))
    amounts = op.numbers(1)
    axes = [op.axis(a, rank) for a in op.const_ints(3)] if op.has(3) else list(range(rank))
    if len(amounts) != 2 * len(axes):
        raise op.refuse(f"{len(amounts)} amounts for {len(axes)} axes")
    value: Any = op.number(2, 0) if op.has(2) else 0
    return _padded(op, amounts, axes, value)


@importer("Pad", since=1)
def pad_1(op: Op) -> Result:
    """Amounts and value are attributes."""
    rank = op.rank(op.value(0))
    amounts = op.attr("pads", op.attr("paddings"))
    if amounts is None or len(amounts) != 2 * rank:
        raise op.refuse(f"pads {amounts} do not fit {rank} dimensions")
    return _padded(op, amounts, list(range(rank)), op.attr("value", 0.0))


def _padded(op: Op, amounts: list[Number], axes: list[int], value: Any) -> Result:
    rank = op.rank(op.value(0))
    pairs: list[tuple[Number, Number]] = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        pairs[axis] = (amounts[i], amounts[i + len(axes)])
    while len(pairs) > 1 and pairs[0] == (0, 0):
        pairs.pop(0)
    flat = [amount for pair in reversed(pairs) for amount in pair]
    mode = op.attr("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise op.refuse(f"mode {mode!r} is not in the ONNX standard")
    if all(amount == 0 for amount in flat if isinstance(amount, int)) and all(
        isinstance(amount, int) for amount in flat
    ):
        return op.value(0)
    if mode == "constant":
        return op.call(F.pad, op.value(0), flat, "constant", value)
    if mode in _BUILT_IN and len(pairs) == rank - 2 and _fits(op, pairs):
        return op.call(F.pad, op.value(0), flat, _BUILT_IN[mode])
    return op.call(pad_tensor, op.value(0), flat, mode, value)


def _fits(op: Op, pairs: list[tuple[Number, Number]]) -> bool:
    """Whether torch's own reflection can do it: amounts below the size, none negative."""
    sizes = (op.shape(op.value(0)) or ())[2:]
    return all(
        isinstance(amount, int) and size is not None and 0 <= amount < size
        for pair, size in zip(pairs, sizes, strict=True)
        for amount in pair
    )
