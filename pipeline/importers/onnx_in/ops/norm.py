"""Normalisations: modules where scale and shift are constants."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.values import Const

_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@importer("BatchNormalization", since=7)
def batch_norm(op: Op) -> Result:
    """nn.BatchNorm, which trains as such; ONNX's momentum is the share that the past keeps.

    The statistics a file in training mode would compute are refused: they are of one batch.
    """
    if op.attr("training_mode", 0):
        raise op.refuse("is in training mode: export the model in eval mode")
    if op.opset < 9 and not op.attr("spatial", 1):
        raise op.refuse("spatial=0, a norm with statistics of each place, is not supported")
    if sum(bool(name) for name in op.node.output) > 1 and op.opset >= 14:
        raise op.refuse("gives running statistics: export the model in eval mode")
    x, (scale, shift, mean, var) = op.value(0), (op.value(i) for i in range(1, 5))
    epsilon, momentum = op.attr("epsilon", 1e-5), op.attr("momentum", 0.9)
    rank = op.rank(x)
    known = all(isinstance(v, Const) for v in (scale, shift, mean, var))
    if not known or rank not in _BATCH_NORMS or not isinstance(x, fx.Node):
        return op.call(F.batch_norm, x, mean, var, scale, shift, False, 1 - momentum, epsilon)
    assert isinstance(scale, Const) and isinstance(shift, Const)
    assert isinstance(mean, Const) and isinstance(var, Const)
    width = scale.tensor.numel()
    for tensor in (scale.tensor, shift.tensor, mean.tensor, var.tensor):
        if tuple(tensor.shape) != (width,):
            raise op.refuse(f"scale, shift, mean and variance are not all of {width} channels")
    module = _BATCH_NORMS[rank](width, epsilon, round(1 - momentum, 6), device="meta")
    gamma, beta = op.builder.parameter(scale), op.builder.parameter(shift)
    tensors: dict[str, nn.Parameter | Tensor] = {
        "weight": gamma,
        "bias": beta,
        "running_mean": mean.tensor.clone(),
        "running_var": var.tensor.clone(),
        "num_batches_tracked": torch.tensor(0),
    }
    key = ("BatchNorm", op.node.output[0])  # never shared: each has statistics of its own
    return op.module(module, key, scale.name, (x,), tensors)


@importer("InstanceNormalization")
def instance_norm(op: Op) -> Result:
    """Over the places of each channel of each sample."""
    return op.call(
        F.instance_norm, op.value(0), None, None, op.value(1), op.value(2),
        True, 0.0, op.attr("epsilon", 1e-5),
    )  # fmt: skip


def layer_norm_of(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, axis: int, epsilon: float
) -> Tensor:
    """Over the dimensions from `axis` on; scale and shift broadcast."""
    dims = tuple(range(axis, x.ndim))
    centred = x - x.mean(dims, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + epsilon)
    scaled = normed if scale is None else normed * scale
    return scaled if shift is None else scaled + shift


def norm_statistics(x: Tensor, axis: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation, the optional outputs."""
    dims = tuple(range(axis, x.ndim))
    mean = x.mean(dims, keepdim=True)
    return mean, torch.rsqrt((x - mean).square().mean(dims, keepdim=True) + epsilon)


@importer("LayerNormalization")
def layer_norm(op: Op) -> Result:
    """nn.LayerNorm where scale and shift are constants of the normalised sizes."""
    x, scale, shift = op.value(0), op.value(1), op.maybe(2)
    rank = op.rank(x)
    axis, epsilon = op.axis(op.attr("axis", -1), rank), op.attr("epsilon", 1e-5)
    sizes = (op.shape(x) or ())[axis:]
    rest: tuple[Any, ...] = ()
    if sum(bool(name) for name in op.node.output) > 1:
        rest = op.unpack(op.call(norm_statistics, x, axis, epsilon), 2)
    fits = isinstance(scale, Const) and scale.tensor.shape == sizes and isinstance(x, fx.Node)
    both = isinstance(shift, Const) and shift.tensor.shape == sizes
    if not fits or not (both or shift is None):
        return (op.call(layer_norm_of, x, scale, shift, axis, epsilon), *rest)
    assert isinstance(scale, Const) and isinstance(x, fx.Node)
    module = nn.LayerNorm(scale.tensor.shape, epsilon, bias=shift is not None, device="meta")
    tensors: dict[str, nn.Parameter | Tensor] = {"weight": op.builder.parameter(scale)}
    if isinstance(shift, Const):
        tensors["bias"] = op.builder.parameter(shift)
    key = ("LayerNorm", op.node.output[0])
    return (op.module(module, key, scale.name, (x,), tensors), *rest)


def rms_norm_of(x: Tensor, scale: Tensor, axis: int, epsilon: float) -> Tensor:
    """x over the root of its mean square over the dimensions from `axis` on."""
    dims = tuple(range(axis, x.ndim))
    return x * torch.rsqrt(x.square().mean(dims, keepdim=True) + epsilon) * scale


@importer("RMSNormalization")
def rms_norm(op: Op) -> Result:
    """x over the root of its mean square."""
    axis = op.axis(op.attr("axis", -1), op.rank(op.value(0)))
    return op.call(rms_norm_of, op.value(0), op.value(1), axis, op.attr("epsilon", 1e-5))


def group_norm_21(x: Tensor, groups: int, scale: Tensor, shift: Tensor, epsilon: float) -> Tensor:
    """Scale and shift of each channel."""
    return F.group_norm(x, groups, scale, shift, epsilon)


def group_norm_18(x: Tensor, groups: int, scale: Tensor, shift: Tensor, epsilon: float) -> Tensor:
    """Scale and shift of each group, as opset 18 had them."""
    per_group = x.shape[1] // groups
    wide = [v.repeat_interleave(per_group) for v in (scale, shift)]
    return F.group_norm(x, groups, wide[0], wide[1], epsilon)


@importer("GroupNormalization", since=18)
def group_norm_per_group(op: Op) -> Result:
    """Opset 18 to 20: one scale a group."""
    return _group_norm(op, group_norm_18)


@importer("GroupNormalization", since=21)
def group_norm(op: Op) -> Result:
    """From opset 21 on: one scale a channel."""
    return _group_norm(op, group_norm_21)


def _group_norm(op: Op, function: Any) -> Result:
    return op.call(
        function, op.value(0), op.attr("num_groups"), op.value(1), op.value(2),
        op.attr("epsilon", 1e-5),
    )  # fmt: skip


def lrn_of(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """x over (bias + alpha / size times the sum of squares of neighbouring channels) ** beta."""
    front = (size - 1) // 2
    rest = [0, 0] * (x.ndim - 2)
    squares = F.pad(x.square(), [*rest, front, size - 1 - front])
    total = squares.unfold(1, size, 1).sum(-1)
    return x / (bias + alpha / size * total) ** beta


@importer("LRN")
def lrn(op: Op) -> Result:
    """Over neighbouring channels."""
    return op.call(
        lrn_of, op.value(0), op.attr("size"), op.attr("alpha", 1e-4), op.attr("beta", 0.75),
        op.attr("bias", 1.0),
    )  # fmt: skip


def lp_norm_of(x: Tensor, p: int, axis: int) -> Tensor:
    """x over its p-norm along `axis`; zero where the norm is."""
    norm = x.norm(p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@importer("LpNormalization")
def lp_norm(op: Op) -> Result:
    """Along one axis, p is 1 or 2."""
    axis = op.axis(op.attr("axis", -1), op.rank(op.value(0)))
    return op.call(lp_norm_of, op.value(0), op.attr("p", 2), axis)


def mean_variance_of(x: Tensor, axes: list[int]) -> Tensor:
    """Mean zero and variance one over `axes`."""
    mean = x.mean(axes, keepdim=True)
    deviation = ((x * x).mean(axes, keepdim=True) - mean * mean).sqrt()
    return (x - mean) / (deviation + 1e-9)


@importer("MeanVarianceNormalization", since=9)
def mean_variance(op: Op) -> Result:
    """Mean zero and variance one."""
    return op.call(mean_variance_of, op.value(0), op.attr("axes", [0, 2, 3]))
