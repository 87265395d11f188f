"""Convolutions: modules where the weight is a constant, else torch's functions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.ops.padding import Pads, explicit_pads, pad_before
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.values import Const, Value

_CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED_FUNCTIONS = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def _spatial(op: Op, weight: Value) -> int:
    rank = op.rank(weight)
    if rank - 2 not in _CONVS or op.rank(op.value(0)) != rank:
        raise op.refuse(
            f"an input of {op.rank(op.value(0))} and a weight of {rank} dimensions: 1 to 3 "
            "spatial dimensions are supported"
        )
    shape, kernel = op.shape(weight), op.attr("kernel_shape")
    if kernel is not None and shape is not None and tuple(kernel) != shape[2:]:
        raise op.refuse(f"kernel_shape {kernel} is not that of its weight {list(shape)}")
    return rank - 2


def _list(op: Op, name: str, count: int, default: int) -> tuple[int, ...]:
    values = op.attr(name, [default] * count)
    if len(values) != count or any(v < (0 if name == "output_padding" else 1) for v in values):
        raise op.refuse(f"{name} {values} does not fit {count} spatial dimensions")
    return tuple(values)


def _known_shape(op: Op, value: Value) -> tuple[int, ...]:
    shape = op.shape(value)
    if shape is None or any(size is None for size in shape):
        raise op.refuse("the size of its weight is not known")
    return tuple(size or 0 for size in shape)


@importer("Conv")
def conv(op: Op) -> Result:
    """Pads that differ at the two ends become a padding of their own before the convolution."""
    x, weight = op.value(0), op.value(1)
    count = _spatial(op, weight)
    shape = _known_shape(op, weight)
    strides, dilations = _list(op, "strides", count, 1), _list(op, "dilations", count, 1)
    groups = op.attr("group", 1)
    pads = explicit_pads(op, shape[2:], strides, dilations)
    x, padding = pad_before(op, x, pads)
    options = {"stride": strides, "padding": padding, "dilation": dilations, "groups": groups}
    if groups < 1 or shape[0] % groups:
        raise op.refuse(f"{shape[0]} output channels do not divide into {groups} groups")
    _require_channels(op, shape[1] * groups)
    bias = op.maybe(2)
    if not isinstance(x, fx.Node) or not _are_const(weight, bias):
        return op.call(_FUNCTIONS[count], x, weight, bias, **options)
    module = _CONVS[count](
        shape[1] * groups, shape[0], shape[2:], bias=bias is not None, device="meta", **options
    )
    return _placed(op, module, x, options)


def _require_channels(op: Op, needed: int) -> None:
    """Refused where the input (N, C, ...) has not as many; torch says so without the numbers."""
    shape = op.shape(op.value(0))
    if shape is not None and len(shape) > 1 and shape[1] != needed:
        found = "a free number of" if shape[1] is None else shape[1]
        raise op.refuse(f"its input has {found} channels, its weight is for {needed}")


def _are_const(weight: Value, bias: Value | None) -> bool:
    floats = isinstance(weight, Const) and weight.tensor.is_floating_point()
    return floats and (bias is None or isinstance(bias, Const))


def _placed(op: Op, module: nn.Module, x: fx.Node, options: dict[str, Any]) -> fx.Node:
    weight, bias = op.value(1), op.maybe(2)
    assert isinstance(weight, Const), "checked by the caller"
    tensors: dict[str, nn.Parameter | Tensor] = {"weight": op.builder.parameter(weight)}
    if isinstance(bias, Const):
        needed: Any = module.bias.shape
        if bias.tensor.shape != needed:
            raise op.refuse(f"its bias is {list(bias.tensor.shape)}, it needs {list(needed)}")
        tensors["bias"] = op.builder.parameter(bias)
    key = (op.node.op_type, id(tensors["weight"]), _identity(bias), repr(options))
    return op.module(module, key, weight.name, (x,), tensors)


def _identity(value: Value | None) -> Any:
    return (value.name or id(value.tensor)) if isinstance(value, Const) else None


@importer("ConvTranspose")
def conv_transpose(op: Op) -> Result:
    """Pads that differ at the two ends become a cut after the convolution."""
    x, weight = op.value(0), op.value(1)
    count = _spatial(op, weight)
    shape = _known_shape(op, weight)
    strides, dilations = _list(op, "strides", count, 1), _list(op, "dilations", count, 1)
    extra = _list(op, "output_padding", count, 0)
    groups = op.attr("group", 1)
    pads = _transposed_pads(op, shape[2:], strides, dilations, extra)
    even = all(a == b for a, b in pads) and all(a >= 0 for a, _ in pads)
    # torch takes an output padding below the stride or the dilation only
    small = all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
    direct = even and small
    options: dict[str, Any] = {
        "stride": strides,
        "padding": tuple(a for a, _ in pads) if direct else (0,) * count,
        "output_padding": extra if direct else (0,) * count,
        "groups": groups,
        "dilation": dilations,
    }
    bias = op.maybe(2)
    if not isinstance(x, fx.Node) or not _are_const(weight, bias):
        result = op.call(_TRANSPOSED_FUNCTIONS[count], x, weight, bias, **options)
    else:
        module = _TRANSPOSED[count](
            shape[0], shape[1] * groups, shape[2:], bias=bias is not None, device="meta", **options
        )
        result = _placed(op, module, x, options)
    if direct:
        return result
    cut = [
        v for (a, b), e in zip(reversed(pads), reversed(extra), strict=True) for v in (-a, e - b)
    ]
    if bias is not None and any(v > 0 for v in cut):
        raise op.refuse(f"output_padding {extra} beyond its stride, with a bias: not supported")
    return op.call(F.pad, result, cut)


def _transposed_pads(
    op: Op,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    extra: tuple[int, ...],
) -> Pads:
    count = len(kernel)
    auto, wanted = op.attr("auto_pad", "NOTSET"), op.attr("output_shape")
    if wanted is None and auto in ("NOTSET", "VALID"):
        pads = op.attr("pads", [0] * 2 * count) if auto == "NOTSET" else [0] * 2 * count
        if len(pads) != 2 * count:
            raise op.refuse(f"pads {pads} do not fit {count} spatial dimensions")
        return [(pads[i], pads[i + count]) for i in range(count)]
    sizes = (op.shape(op.value(0)) or ())[2:]
    if len(sizes) != count or any(size is None for size in sizes):
        raise op.refuse("its padding depends on a size that is not known at import")
    result: Pads = []
    for i, size in enumerate(sizes):
        reach = (kernel[i] - 1) * dilations[i] + 1
        target = wanted[-count:][i] if wanted is not None else (size or 0) * strides[i]
        total = strides[i] * ((size or 0) - 1) + extra[i] + reach - target
        if wanted is None:
            total = max(total, 0)  # where a stride is longer than the kernel nothing is cut off
        half = total // 2
        # ONNX: the odd one goes to the end for SAME_UPPER, to the front otherwise
        front = half if auto == "SAME_UPPER" else total - half
        result.append((front, total - front))
    return result


@importer("DeformConv")
def deform_conv(op: Op) -> Result:
    """torchvision's, which takes the same offsets and mask."""
    from torchvision.ops import deform_conv2d

    x, weight, offset = op.value(0), op.value(1), op.value(2)
    if _spatial(op, weight) != 2:
        raise op.refuse("2 spatial dimensions are supported")
    pads = op.attr("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        raise op.refuse(f"pads {pads} differ at the two ends: not supported")
    return op.call(
        deform_conv2d, x, offset, weight, op.maybe(3),
        stride=_list(op, "strides", 2, 1), padding=tuple(pads[:2]),
        dilation=_list(op, "dilations", 2, 1), mask=op.maybe(4),
    )  # fmt: skip


def flat_col2im(
    x: Tensor, image: list[Any], block: list[int], *, dilation: Any, padding: Any, stride: Any
) -> Tensor:
    """Put the columns (N, C k, L) back where they came from, adding where they overlap."""
    return F.fold(x, tuple(image), tuple(block), dilation, padding, stride)


@importer("Col2Im")
def col2im(op: Op) -> Result:
    """For two spatial dimensions and pads that are the same at both ends."""
    block = op.const_ints(2)
    pads = op.attr("pads", [0] * 2 * len(block))
    if len(block) != 2 or pads[:2] != pads[2:]:
        raise op.refuse("only two spatial dimensions and even pads are supported")
    return op.call(
        flat_col2im, op.value(0), op.numbers(1), block,
        dilation=_list(op, "dilations", 2, 1), padding=tuple(pads[:2]),
        stride=_list(op, "strides", 2, 1),
    )  # fmt: skip


@importer("Einsum")
def einsum(op: Op) -> Result:
    """The same notation as torch's."""
    equation = op.attr("equation").replace(" ", "")
    return op.call(torch.einsum, equation, *op.inputs)
