"""Activations. Those that torch has as modules become modules, so that the network reads well."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.values import Const


def _emit(op: Op, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Result:
    return op.call(function, op.value(0), *args, **kwargs)


@importer("Relu")
def relu(op: Op) -> Result:
    """max(x, 0)."""
    return _emit(op, F.relu)


@importer("Sigmoid")
def sigmoid(op: Op) -> Result:
    """1 / (1 + exp(-x))."""
    return _emit(op, torch.sigmoid)


@importer("Elu")
def elu(op: Op) -> Result:
    """x, or alpha (exp(x) - 1) below zero."""
    return _emit(op, F.elu, op.attr("alpha", 1.0))


@importer("Celu")
def celu(op: Op) -> Result:
    """x, or alpha (exp(x / alpha) - 1) below zero."""
    return _emit(op, F.celu, op.attr("alpha", 1.0))


def scaled_elu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    """gamma times x, or gamma alpha (exp(x) - 1) below zero."""
    return torch.where(x > 0, gamma * x, gamma * alpha * torch.expm1(x.clamp(max=0)))


@importer("Selu")
def selu(op: Op) -> Result:
    """torch's own where the constants are its own."""
    alpha, gamma = (
        op.attr("alpha", 1.67326319217681884765625),
        op.attr("gamma", 1.05070102214813232421875),
    )
    own = abs(alpha - 1.6732632) < 1e-6 and abs(gamma - 1.050701) < 1e-6
    return _emit(op, F.selu) if own else _emit(op, scaled_elu, alpha, gamma)


@importer("Gelu")
def gelu(op: Op) -> Result:
    """Exact, or with tanh."""
    return _emit(op, F.gelu, approximate=op.attr("approximate", "none"))


def hard_sigmoid_of(x: Tensor, alpha: float, beta: float) -> Tensor:
    """clamp(alpha x + beta, 0, 1)."""
    return (x * alpha + beta).clamp(0, 1)


@importer("HardSigmoid")
def hard_sigmoid(op: Op) -> Result:
    """torch's own where the slope is its own, 1/6."""
    alpha, beta = op.attr("alpha", 0.2), op.attr("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-8 and beta == 0.5:
        return _emit(op, F.hardsigmoid)
    return _emit(op, hard_sigmoid_of, alpha, beta)


@importer("HardSwish")
def hard_swish(op: Op) -> Result:
    """x clamp(x / 6 + 1/2, 0, 1)."""
    return _emit(op, F.hardswish)


@importer("LeakyRelu")
def leaky_relu(op: Op) -> Result:
    """x, or alpha x below zero."""
    return _emit(op, F.leaky_relu, op.attr("alpha", 0.01))


def thresholded(x: Tensor, alpha: float) -> Tensor:
    """x above alpha, else 0."""
    return torch.where(x > alpha, x, 0)


@importer("ThresholdedRelu")
def thresholded_relu(op: Op) -> Result:
    """x above alpha, else 0."""
    return _emit(op, thresholded, op.attr("alpha", 1.0))


@importer("Softplus")
def softplus(op: Op) -> Result:
    """log(1 + exp(x)), without overflow."""
    return _emit(op, F.softplus, threshold=1000.0)


@importer("Softsign")
def softsign(op: Op) -> Result:
    """x / (1 + |x|)."""
    return _emit(op, F.softsign)


@importer("Mish")
def mish(op: Op) -> Result:
    """x tanh(softplus(x))."""
    return _emit(op, F.mish)


def swish_of(x: Tensor, alpha: float) -> Tensor:
    """x sigmoid(alpha x)."""
    return x * torch.sigmoid(alpha * x)


@importer("Swish")
def swish(op: Op) -> Result:
    """x sigmoid(alpha x)."""
    alpha = op.attr("alpha", 1.0)
    return _emit(op, F.silu) if alpha == 1.0 else _emit(op, swish_of, alpha)


def shrink_of(x: Tensor, lambd: float, bias: float) -> Tensor:
    """Towards zero by `bias`, and zero within `lambd`."""
    moved = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, moved).to(x.dtype)


@importer("Shrink")
def shrink(op: Op) -> Result:
    """Towards zero by `bias`, and zero within `lambd`."""
    return _emit(op, shrink_of, op.attr("lambd", 0.5), op.attr("bias", 0.0))


def flat_softmax(x: Tensor, axis: int, kind: str) -> Tensor:
    """Before opset 13: over all dimensions from `axis` on, taken together."""
    flat = x.flatten(axis) if axis < x.ndim else x.unsqueeze(-1)
    return _SOFT[kind](flat, axis if axis < x.ndim else -1).reshape(x.shape)


def hardmax_of(x: Tensor, axis: int) -> Tensor:
    """1 at the first maximum, else 0."""
    first = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1)


_SOFT: dict[str, Callable[..., Tensor]] = {
    "Softmax": torch.softmax,
    "LogSoftmax": torch.log_softmax,
    "Hardmax": hardmax_of,
}


@importer("Softmax", "LogSoftmax", "Hardmax", since=13)
def soft(op: Op) -> Result:
    """Over one axis."""
    rank = op.rank(op.value(0))
    return _emit(op, _SOFT[op.node.op_type], op.axis(op.attr("axis", -1), rank))


@importer("Softmax", "LogSoftmax", "Hardmax", since=1)
def soft_from_axis(op: Op) -> Result:
    """Over the last dimensions from `axis` on; over one where the others have one element."""
    rank = op.rank(op.value(0))
    axis = op.axis(op.attr("axis", 1), rank)
    sizes = (op.shape(op.value(0)) or ())[axis + 1 :]
    if all(size == 1 for size in sizes):
        return _emit(op, _SOFT[op.node.op_type], axis)
    return _emit(op, flat_softmax, axis, op.node.op_type)


@importer("Clip", since=11)
def clip(op: Op) -> Result:
    """Bounds are inputs, each optional."""
    low, high = op.maybe(1), op.maybe(2)
    if all(v is None or (isinstance(v, Const) and v.tensor.numel() == 1) for v in (low, high)):
        return _clamped(op, op.number(1), op.number(2))
    for function, bound in ((torch.maximum, low), (torch.minimum, high)):
        if bound is not None:
            op.inputs = (op.call(function, op.value(0), bound),)
    return op.value(0)


@importer("Clip", since=6)
def clip_6(op: Op) -> Result:
    """Bounds are attributes."""
    return _clamped(op, op.attr("min"), op.attr("max"))


def _clamped(op: Op, low: float | None, high: float | None) -> Result:
    # What says "no bound" in float32; torch keeps such numbers in graphs and reports.
    low = None if low is not None and low <= -3.4e38 else low
    high = None if high is not None and high >= 3.4e38 else high
    if low is None and high is None:
        return op.value(0)
    if low is not None and high is not None and low > high:
        raise op.refuse(f"its bounds are {low} to {high}")
    if (low, high) == (0, 6) and op.dtype(op.value(0)).is_floating_point:
        return _emit(op, F.relu6)
    return _emit(op, torch.clamp, min=low, max=high)


@importer("PRelu")
def prelu(op: Op) -> Result:
    """A module where the slope is one number or one a channel, else arithmetic."""
    x, slope = op.value(0), op.value(1)
    shape = op.shape(x)
    if isinstance(slope, Const) and isinstance(x, fx.Node) and shape is not None and len(shape) > 1:
        per_channel = tuple(slope.tensor.shape) in (
            (shape[1], *[1] * (len(shape) - 2)),
            (1, shape[1], *[1] * (len(shape) - 2)),
        )
        if slope.tensor.numel() == 1 or per_channel:
            parameter = op.builder.parameter(slope, "flat", slope.tensor.reshape(-1))
            module = nn.PReLU(parameter.numel(), device="meta")
            key = ("PReLU", id(parameter))
            return op.module(module, key, slope.name, (x,), {"weight": parameter})
    return op.call(sloped, x, slope)


def sloped(x: Tensor, slope: Tensor) -> Tensor:
    """x, or slope x below zero; the slope broadcasts."""
    return torch.where(x < 0, x * slope, x)


@importer("Dropout", since=1)
def dropout(op: Op) -> Result:
    """A module, so that training drops again what it dropped; the identity in eval mode.

    From opset 12 on the rate is an input, and the file may ask for training mode.
    """
    rate = op.attr("ratio", 0.5)
    if op.opset >= 12:
        rate = op.number(1, 0.5)
        if op.number(2, False) and rate:
            raise op.refuse("is in training mode: export the model in eval mode")
    x = op.value(0)
    result = x
    if isinstance(x, fx.Node) and 0 <= rate < 1:
        result = op.module(nn.Dropout(rate), ("Dropout", op.node.output[0]), "", (x,))
    mask = op.call(torch.ones_like, x, dtype=torch.bool) if len(op.node.output) > 1 else None
    return result, mask
