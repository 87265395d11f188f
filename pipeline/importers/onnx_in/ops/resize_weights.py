"""One dimension of an interpolation as a matrix, exactly as the ONNX standard words it.

What enters: a `Plan`. What leaves: the old place of each new one (nearest), or weights (new, old).
Refused: modes that are not in the standard, and matrices larger than any image needs.
"""

import math
from typing import Any

import numpy as np

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.ops.resize_plan import RESIZE_10, Plan

MAX_MATRIX_ELEMENTS = 2**24


def _coordinates(op: Op, plan: Plan, index: int, old: int) -> Any:
    """The old place of each new one."""
    new, scale = plan.sizes[index], plan.scales[index]
    places = np.arange(new, dtype=np.float64)
    if plan.transform in ("half_pixel", "pytorch_half_pixel"):
        if plan.transform == "pytorch_half_pixel" and new == 1:
            return np.full(1, 0.0)
        return (places + 0.5) / scale - 0.5
    if plan.transform == "half_pixel_symmetric":
        real = scale * old
        adjustment = new / real
        centre = old / 2
        return centre * (1 - adjustment) + (places + 0.5) / scale - 0.5
    if plan.transform == "align_corners":
        return places * (old - 1) / (new - 1) if new > 1 else places * 0
    if plan.transform == "asymmetric":
        return places / scale
    if plan.transform == "tf_half_pixel_for_nn":
        return (places + 0.5) / scale
    if plan.transform == "tf_crop_and_resize":
        count = len(plan.roi) // 2
        position = index if count == len(plan.axes) else plan.axes[index]
        start, end = plan.roi[position], plan.roi[position + count]
        if new == 1:
            return np.full(1, (start + end) * (old - 1) / 2)
        return start * (old - 1) + places * (end - start) * (old - 1) / (new - 1)
    raise op.refuse(f"coordinate_transformation_mode {plan.transform!r} is not supported")


def inside_of(op: Op, plan: Plan, index: int, old: int) -> Any:
    """Whether each new place lies within the old ones."""
    where = _coordinates(op, plan, index, old)
    return (where >= 0) & (where <= old - 1)


def matrix(op: Op, plan: Plan, index: int, old: int) -> Any:
    """Old places (nearest), or weights (new, old)."""
    if plan.mode == "nearest":
        return np.clip(_nearest(op, plan, index, old), 0, old - 1)
    where = _coordinates(op, plan, index, old)
    if len(where) * old > MAX_MATRIX_ELEMENTS:
        raise op.refuse(f"from {old} to {len(where)} places: too large")
    shrink = plan.scales[index] if op.attr("antialias", 0) and plan.scales[index] < 1 else 1.0
    reach = 2.0 if plan.mode == "cubic" else 1.0
    a = op.attr("cubic_coeff_a", -0.75)
    if plan.mode not in ("cubic", "linear", "bilinear", "trilinear"):
        raise op.refuse(f"mode {plan.mode!r} is not in the ONNX standard")
    span = math.ceil(reach / shrink)
    weights = np.zeros((len(where), old))
    for row, place in enumerate(where):
        base = math.floor(place)
        taps = np.arange(base - span, base + span + 2)
        values = _kernel(plan.mode, (taps - place) * shrink, a)
        inside = (taps >= 0) & (taps < old)
        if op.attr("exclude_outside", 0):
            values = np.where(inside, values, 0.0)
        if op.attr("exclude_outside", 0) or op.attr("antialias", 0):
            values = values / values.sum()
        for tap, value in zip(np.clip(taps, 0, old - 1), values, strict=True):
            weights[row, tap] += value
    return weights


def _kernel(mode: str, distance: Any, a: float) -> Any:
    d = np.abs(distance)
    if mode != "cubic":
        return np.maximum(1 - d, 0)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _nearest(op: Op, plan: Plan, index: int, old: int) -> Any:
    """Old places; computed in float32 where runtimes do, since a rounding decides the place."""
    mode, scale = plan.nearest, np.float32(plan.scales[index])
    if mode == RESIZE_10:
        mode = "ceil" if scale < 1 else "floor"
    places = np.arange(plan.sizes[index], dtype=np.float32)
    if plan.transform == "asymmetric":
        return _rounded(op, places / scale, mode)
    many = plan.sizes[index] > 1
    if plan.transform == "half_pixel" or (plan.transform == "pytorch_half_pixel" and many):
        half = np.float32(0.5)
        return _rounded(op, (places + half) / scale - half, mode)
    where = _coordinates(op, plan, index, old)
    # A coordinate that is a whole number or a half up to rounding errors is taken as that.
    return _rounded(op, np.round(where * 2**24) / 2**24, mode)


def _rounded(op: Op, where: Any, mode: str) -> Any:
    if mode == "round_prefer_floor":
        return np.ceil(where - 0.5)
    if mode == "round_prefer_ceil":
        return np.floor(where + 0.5)
    if mode in ("floor", "ceil"):
        return np.floor(where) if mode == "floor" else np.ceil(where)
    raise op.refuse(f"nearest_mode {mode!r} is not in the ONNX standard")
