"""Poolings: torch's functions where they mean the same, else unfolded windows.

ONNX and torch differ in: pads that are not the same at both ends or larger than half a kernel,
windows that `ceil_mode` starts in the padding at the end, dilated averages, and whether the
elements that `ceil_mode` adds at the end are counted.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.ops.padding import Pads, explicit_pads
from pipeline.importers.onnx_in.registry import Result, importer

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class _Window:
    """The attributes that all poolings share, checked."""

    def __init__(self, op: Op) -> None:
        self.kernel = tuple(op.attr("kernel_shape", []))
        count = len(self.kernel)
        if count not in _MAX or op.rank(op.value(0)) != count + 2:
            raise op.refuse(f"kernel_shape {list(self.kernel)} does not fit its input")
        self.strides = tuple(op.attr("strides", [1] * count))
        self.dilations = tuple(op.attr("dilations", [1] * count))
        lists = (self.kernel, self.strides, self.dilations)
        if any(len(v) != count or min(v) < 1 for v in lists):
            raise op.refuse(f"strides {self.strides} or dilations {self.dilations} do not fit")
        self.pads: Pads = explicit_pads(op, self.kernel, self.strides, self.dilations)
        padded = str(op.attr("auto_pad", "NOTSET")).startswith("SAME")  # that rounds up itself
        self.ceil = bool(op.attr("ceil_mode", 0)) and not padded
        self.extra = self._extra(op)

    def _extra(self, op: Op) -> tuple[int, ...]:
        """Places beyond the end pads that the last window of ceil_mode reaches.

        A window that would start in the end padding is left out, as in onnxruntime and torch.
        """
        if not self.ceil:
            return (0,) * len(self.kernel)
        sizes = (op.shape(op.value(0)) or ())[2:]
        found = []
        for i, size in enumerate(sizes):
            if size is None:
                raise op.refuse("ceil_mode needs input sizes that are known at import")
            front, end = self.pads[i]
            reach = (self.kernel[i] - 1) * self.dilations[i] + 1
            span = size + front + end - reach
            windows = -(-span // self.strides[i]) + 1
            if (windows - 1) * self.strides[i] >= size + front:
                windows -= 1
            found.append(max((windows - 1) * self.strides[i] - span, 0))
        return tuple(found)

    @property
    def torch_pads(self) -> tuple[int, ...] | None:
        """The padding as torch's poolings take it; None where they cannot."""
        fits = all(
            a == b and 0 <= a <= k // 2 for (a, b), k in zip(self.pads, self.kernel, strict=True)
        )
        return tuple(a for a, _ in self.pads) if fits else None

    def flat(self, *, with_extra: bool) -> list[int]:
        """Amounts for F.pad."""
        pairs = [
            (a, b + (e if with_extra else 0))
            for (a, b), e in zip(self.pads, self.extra, strict=True)
        ]
        return [amount for pair in reversed(pairs) for amount in pair]


@importer("MaxPool")
def max_pool(op: Op) -> Result:
    """Padding never wins. The indices of the second output count over the whole tensor."""
    window = _Window(op)
    count = len(window.kernel)
    if op.attr("storage_order", 0) and len(op.node.output) > 1:
        raise op.refuse("column-major indices are not supported")
    x: Any = op.value(0)
    padding = window.torch_pads
    dtype = op.dtype(x)
    if len(op.node.output) > 1:
        if padding is None or window.ceil:
            raise op.refuse("indices together with uneven pads or ceil_mode are not supported")
        return op.unpack(
            op.call(max_with_indices, x, window.kernel, window.strides, padding, window.dilations),
            2,
        )
    if not dtype.is_floating_point:
        x = op.call(Tensor.to, x, torch.float64)
    if padding is None:
        x = op.call(F.pad, x, window.flat(with_extra=True), "constant", float("-inf"))
        result = op.call(
            _MAX[count], x, window.kernel, window.strides, 0, dilation=window.dilations
        )
    else:
        result = op.call(
            _MAX[count], x, window.kernel, window.strides, padding,
            dilation=window.dilations, ceil_mode=window.ceil,
        )  # fmt: skip
    return result if dtype.is_floating_point else op.call(Tensor.to, result, dtype)


def max_with_indices(
    x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> tuple[Tensor, Tensor]:
    """Maxima, and their places in the flattened (N, C, ...) tensor."""
    function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[x.ndim - 2]
    values, places = function(x, kernel, stride, padding, dilation, return_indices=True)
    plane = x[0, 0].numel()
    starts = torch.arange(x.shape[0] * x.shape[1], device=x.device) * plane
    return values, places + starts.reshape(x.shape[0], x.shape[1], *[1] * (x.ndim - 2))


def windows_of(x: Tensor, kernel: Any, strides: Any, dilations: Any) -> Tensor:
    """(N, C, out..., k...): every window as dimensions of its own."""
    for i, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        x = x.unfold(i + 2, (k - 1) * d + 1, s)
        x = x[..., ::d]
    return x


def uneven_avg_pool(
    x: Tensor, kernel: Any, strides: Any, dilations: Any, pads: Any, count_pads: Any
) -> Tensor:
    """Sums of windows over the number of places that count: those of x, or of x and its pads."""
    dims = tuple(range(-len(kernel), 0))
    total = windows_of(F.pad(x, pads), kernel, strides, dilations).sum(dims)
    ones = torch.ones_like(x[:1, :1])
    if count_pads is not None:
        ones = F.pad(ones, count_pads, "constant", 1.0)
        rest = [a - b for a, b in zip(pads, count_pads, strict=True)]
    else:
        rest = pads
    counted = windows_of(F.pad(ones, rest), kernel, strides, dilations).sum(dims)
    return total / counted


@importer("AveragePool")
def average_pool(op: Op) -> Result:
    """With ceil_mode what lies beyond the pads never counts; torch agrees."""
    window = _Window(op)
    include = bool(op.attr("count_include_pad", 0))
    padding = window.torch_pads
    plain = padding is not None and all(d == 1 for d in window.dilations)
    if plain:
        return op.call(
            _AVG[len(window.kernel)], op.value(0), window.kernel, window.strides, padding,
            ceil_mode=window.ceil, count_include_pad=include,
        )  # fmt: skip
    return op.call(
        uneven_avg_pool, op.value(0), window.kernel, window.strides, window.dilations,
        window.flat(with_extra=True), window.flat(with_extra=False) if include else None,
    )  # fmt: skip


def lp_pool_of(x: Tensor, kernel: Any, strides: Any, dilations: Any, pads: Any, p: int) -> Tensor:
    """The p-norm of each window."""
    dims = tuple(range(-len(kernel), 0))
    windows = windows_of(F.pad(x, pads), kernel, strides, dilations)
    return windows.abs().pow(p).sum(dims).pow(1 / p)


@importer("LpPool")
def lp_pool(op: Op) -> Result:
    """The p-norm of each window."""
    window = _Window(op)
    return op.call(
        lp_pool_of, op.value(0), window.kernel, window.strides, window.dilations,
        window.flat(with_extra=True), op.attr("p", 2),
    )  # fmt: skip


def global_lp(x: Tensor, p: int) -> Tensor:
    """The p-norm over all places of a channel."""
    dims = tuple(range(2, x.ndim))
    return x.abs().pow(p).sum(dims, keepdim=True).pow(1 / p)


@importer("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(op: Op) -> Result:
    """Over all places of a channel."""
    x, rank = op.value(0), op.rank(op.value(0))
    dims = list(range(2, rank))
    if op.node.op_type == "GlobalLpPool":
        return op.call(global_lp, x, op.attr("p", 2))
    if op.node.op_type == "GlobalMaxPool":
        return op.call(torch.amax, x, dims, keepdim=True)
    if rank == 4:
        return op.call(F.adaptive_avg_pool2d, x, 1)
    return op.call(torch.mean, x, dims, keepdim=True)


def unpool(x: Tensor, places: Tensor, size: list[Any]) -> Tensor:
    """Put the maxima back at their places in the flattened tensor of `size`."""
    flat = x.new_zeros(size).reshape(-1)
    return flat.scatter(0, places.reshape(-1), x.reshape(-1)).reshape(size)


@importer("MaxUnpool")
def max_unpool(op: Op) -> Result:
    """Indices count over the whole tensor of the size without `output_shape`."""
    kernel = op.attr("kernel_shape")
    count = len(kernel)
    strides, pads = op.attr("strides", [1] * count), op.attr("pads", [0] * 2 * count)
    shape = op.shape(op.value(0)) or ()
    sizes: list[Any] = [op.size(op.value(0), i) for i in range(2)]
    for i, size in enumerate(shape[2:]):
        if size is None:
            raise op.refuse("needs input sizes that are known at import")
        sizes.append((size - 1) * strides[i] + kernel[i] - pads[i] - pads[i + count])
    result = op.call(unpool, op.value(0), op.value(1), sizes)
    if not op.has(2):
        return result
    wanted = op.const_ints(2)
    amounts = [v for i in range(count) for v in (0, wanted[-1 - i] - sizes[-1 - i])]
    return op.call(F.pad, result, amounts)
