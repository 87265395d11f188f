"""Resize and Upsample: torch's interpolation where it means the same, else products with weights.

An interpolation along one dimension is a matrix product: each new place is a weighted sum of old
ones. The matrix is built at import, exactly as the ONNX standard words it, for every mode: nearest
(all roundings), linear, cubic, antialias, exclude_outside, all coordinate transformations.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.ops.resize_free import free_interpolation
from pipeline.importers.onnx_in.ops.resize_plan import RESIZE_10, Plan, by_scales, by_sizes, floats
from pipeline.importers.onnx_in.ops.resize_weights import inside_of, matrix
from pipeline.importers.onnx_in.registry import Result, importer


@importer("Upsample", since=7)
def upsample(op: Op) -> Result:
    """Scales as an attribute (opset 7) or an input (9); places scale from the front edge."""
    scales = op.attr("scales") if op.opset < 9 else floats(op, op.numbers(1))
    plan = Plan(op)
    by_scales(op, plan, scales, range(len(plan.shape)))
    return _resized(op, plan)


@importer("Resize", since=10)
def resize_10(op: Op) -> Result:
    """As Upsample; to fewer places, onnxruntime takes the next one behind, not in front."""
    plan = Plan(op)
    plan.nearest = RESIZE_10
    by_scales(op, plan, floats(op, op.numbers(1)), range(len(plan.shape)))
    return _resized(op, plan)


@importer("Resize", since=11)
def resize(op: Op) -> Result:
    """By scales or by sizes, of some or all dimensions."""
    transform = op.attr("coordinate_transformation_mode", "half_pixel")
    nearest = op.attr("nearest_mode", "round_prefer_floor")
    free = free_interpolation(op, transform, nearest)
    if free is not None:
        return op.call(F.interpolate, op.value(0), **free)
    plan = Plan(op)
    plan.transform, plan.nearest = transform, nearest
    rank = len(plan.shape)
    axes = [op.axis(a, rank) for a in op.attr("axes", list(range(rank)))]
    if plan.transform == "tf_crop_and_resize":
        plan.roi = floats(op, op.numbers(1))
    if op.has(3) and op.shape(op.value(3)) != (0,):
        by_sizes(op, plan, op.numbers(3), axes)
    else:
        by_scales(op, plan, floats(op, op.numbers(2)), axes)
    return _resized(op, plan)


def _resized(op: Op, plan: Plan) -> Result:
    unmoved = all(plan.shape[a] == n for a, n in zip(plan.axes, plan.sizes, strict=True))
    if unmoved and not plan.roi:
        return op.value(0)  # onnxruntime copies, whatever the scales
    direct = _as_interpolate(op, plan)
    if direct is not None:
        return op.call(F.interpolate, op.value(0), **direct)
    result: Any = op.value(0)
    for i, axis in enumerate(plan.axes):
        size = plan.shape[axis] or 0
        rows = matrix(op, plan, i, size)
        outside = None
        if plan.roi:
            outside = inside_of(op, plan, i, size)
        if plan.mode == "nearest":
            result = op.call(take, result, axis, [int(p) for p in rows])
        else:
            weights = torch.from_numpy(rows).to(op.dtype(op.value(0)))
            result = op.call(weighted, result, axis, op.builder.fixed(op.node, weights))
        if outside is not None:
            keep = op.builder.fixed(op.node, torch.from_numpy(outside))
            result = op.call(fill_outside, result, axis, keep, op.attr("extrapolation_value", 0.0))
    return result


def take(x: Tensor, axis: int, places: list[int]) -> Tensor:
    """Slices at `places`."""
    return x.index_select(axis, torch.tensor(places, device=x.device))


def weighted(x: Tensor, axis: int, weights: Tensor) -> Tensor:
    """weights (new, old) times the dimension `axis`."""
    return torch.tensordot(x, weights, dims=([axis], [1])).movedim(-1, axis)


def fill_outside(x: Tensor, axis: int, inside: Tensor, value: float) -> Tensor:
    """`value` at places that lie outside of the old ones."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return torch.where(inside.reshape(shape), x, value)


def _as_interpolate(op: Op, plan: Plan) -> dict[str, Any] | None:
    """The arguments of F.interpolate that mean the same; None where there are none."""
    rank = len(plan.shape)
    spatial = list(range(2, rank))
    if not set(plan.axes) <= set(spatial) or rank not in (3, 4, 5) or plan.roi:
        return None
    if op.attr("antialias", 0) or op.attr("exclude_outside", 0):
        return None
    if not op.dtype(op.value(0)).is_floating_point:
        return None
    sizes = [plan.sizes[plan.axes.index(a)] if a in plan.axes else plan.shape[a] for a in spatial]
    ratios = [(new or 1) / (plan.shape[a] or 1) for new, a in zip(sizes, spatial, strict=True)]
    exact = all(
        scale == size / (plan.shape[axis] or 1)
        or np.float32(scale) == np.float32(size / (plan.shape[axis] or 1))
        for axis, scale, size in zip(plan.axes, plan.scales, plan.sizes, strict=True)
    )
    if not exact:
        return None
    whole = all(ratio == int(ratio) for ratio in ratios)
    size_option: dict[str, Any] = (
        {"scale_factor": [float(r) for r in ratios]} if whole else {"size": sizes}
    )
    if plan.mode == "nearest":
        same = plan.transform == "asymmetric" and plan.nearest.startswith("floor") and whole
        # Where each place is repeated a whole number of times every rounding agrees but the ceil.
        same |= (
            whole
            and plan.transform == "half_pixel"
            and plan.nearest != "ceil"
            and (plan.nearest.startswith("round"))
        )
        return size_option | {"mode": "nearest"} if same else None
    linear = {3: "linear", 4: "bilinear", 5: "trilinear"}[rank]
    corners = plan.transform == "align_corners"
    half = plan.transform == "half_pixel" or (
        plan.transform == "pytorch_half_pixel" and all(s > 1 for s in plan.sizes)
    )
    if plan.mode in ("linear", "bilinear", "trilinear") and (corners or half):
        return size_option | {"mode": linear, "align_corners": corners}
    cubic = plan.mode == "cubic" and rank == 4 and op.attr("cubic_coeff_a", -0.75) == -0.75
    if cubic and (corners or half):
        return size_option | {"mode": "bicubic", "align_corners": corners}
    return None
