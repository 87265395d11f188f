"""Resize and Upsample: torch's interpolation where it means the same, else products with weights.

An interpolation along one dimension is a matrix product: each new place is a weighted sum of old
ones. The matrix is built at import, exactly as the ONNX standard words it, for every mode: nearest
(all roundings), linear, cubic, antialias, exclude_outside, all coordinate transformations.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.values import Number, probes_of

MAX_MATRIX_ELEMENTS = 2**24


class _Plan:
    """What one Resize does to each dimension."""

    def __init__(self, op: Op) -> None:
        shape = op.shape(op.value(0))
        if shape is None:
            raise op.refuse("the sizes of its input depend on the data")
        self.shape = shape
        self.axes: list[int] = []
        self.scales: list[float] = []
        self.sizes: list[int] = []
        self.mode = op.attr("mode", "nearest")
        self.transform = "asymmetric"
        self.nearest = "floor"
        self.roi: list[float] = []

    def add(self, op: Op, axis: int, scale: float, size: int) -> None:
        """One dimension that changes."""
        if size < 1 or not math.isfinite(scale) or scale <= 0:
            raise op.refuse(f"dimension {axis} would get the size {size} (scale {scale})")
        self.axes.append(axis)
        self.scales.append(scale)
        self.sizes.append(size)


@importer("Upsample", since=7)
def upsample(op: Op) -> Result:
    """Scales as an attribute (opset 7) or an input (9); places scale from the front edge."""
    scales = op.attr("scales") if op.opset < 9 else _floats(op, op.numbers(1))
    plan = _Plan(op)
    _by_scales(op, plan, scales, range(len(plan.shape)))
    return _resized(op, plan)


@importer("Resize", since=10)
def resize_10(op: Op) -> Result:
    """As Upsample."""
    plan = _Plan(op)
    _by_scales(op, plan, _floats(op, op.numbers(1)), range(len(plan.shape)))
    return _resized(op, plan)


@importer("Resize", since=11)
def resize(op: Op) -> Result:
    """By scales or by sizes, of some or all dimensions."""
    plan = _Plan(op)
    plan.transform = op.attr("coordinate_transformation_mode", "half_pixel")
    plan.nearest = op.attr("nearest_mode", "round_prefer_floor")
    rank = len(plan.shape)
    axes = [op.axis(a, rank) for a in op.attr("axes", list(range(rank)))]
    if plan.transform == "tf_crop_and_resize":
        plan.roi = _floats(op, op.numbers(1))
    if op.has(3) and op.shape(op.value(3)) != (0,):
        _by_sizes(op, plan, op.numbers(3), axes)
    else:
        _by_scales(op, plan, _floats(op, op.numbers(2)), axes)
    return _resized(op, plan)


def _floats(op: Op, numbers: list[Number]) -> list[float]:
    decided = [op.decided(n) for n in numbers]
    if any(value is None for value in decided):
        raise op.refuse("its scales depend on the batch or the data: not supported")
    return [float(value) for value in decided]


def _by_scales(op: Op, plan: _Plan, scales: list[float], axes: Any) -> None:
    if scales is None or len(scales) != len(axes):
        raise op.refuse(f"scales {scales} do not fit {len(axes)} dimensions")
    for axis, scale in zip(axes, scales, strict=True):
        size = plan.shape[axis]
        if scale == 1 and not plan.roi:
            continue
        if size is None:
            raise op.refuse(f"dimension {axis}, which it scales, depends on the batch")
        length = 1.0
        if plan.roi:
            index = list(axes).index(axis)
            length = plan.roi[index + len(axes)] - plan.roi[index]
        plan.add(op, axis, scale, math.floor(float(np.float32(size) * np.float32(scale)) * length))


def _by_sizes(op: Op, plan: _Plan, wanted: list[Number], axes: list[int]) -> None:
    if len(wanted) != len(axes):
        raise op.refuse(f"sizes {wanted} do not fit {len(axes)} dimensions")
    policy = op.attr("keep_aspect_ratio_policy", "stretch")
    pairs = []
    for axis, target in zip(axes, wanted, strict=True):
        if _is_own_size(op, axis, target):
            continue
        size, decided = plan.shape[axis], op.decided(target)
        if size is None or decided is None:
            raise op.refuse(f"the size it gives dimension {axis} depends on the batch or the data")
        pairs.append((axis, size, int(decided)))
    ratios = [target / size for _, size, target in pairs]
    for axis, size, target in pairs:
        if policy != "stretch":
            scale = min(ratios) if policy == "not_larger" else max(ratios)
            plan.add(op, axis, scale, math.floor(scale * size + 0.5))
        elif size != target or plan.roi:
            plan.add(op, axis, target / size, target)


def _is_own_size(op: Op, axis: int, target: Number) -> bool:
    """Whether a size that depends on the batch is that of the input itself."""
    value = op.value(0)
    if not isinstance(target, fx.Node) or not isinstance(value, fx.Node):
        return False
    sizes, probes = probes_of(target), probes_of(value)
    return bool(sizes and probes) and all(
        size == probe.shape[axis] for size, probe in zip(sizes or (), probes or (), strict=True)
    )


def _resized(op: Op, plan: _Plan) -> Result:
    if not plan.axes:
        return op.value(0)
    direct = _as_interpolate(op, plan)
    if direct is not None:
        return op.call(F.interpolate, op.value(0), **direct)
    result: Any = op.value(0)
    for i, axis in enumerate(plan.axes):
        size = plan.shape[axis] or 0
        matrix = _matrix(op, plan, i, size)
        outside = None
        if plan.roi:
            outside = _outside(op, plan, i, size)
        if plan.mode == "nearest":
            result = op.call(take, result, axis, [int(p) for p in matrix])
        else:
            weights = torch.from_numpy(matrix).to(op.dtype(op.value(0)))
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


def _as_interpolate(op: Op, plan: _Plan) -> dict[str, Any] | None:
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
        same = plan.transform == "asymmetric" and plan.nearest == "floor" and whole
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


def _coordinates(op: Op, plan: _Plan, index: int, old: int) -> Any:
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


def _outside(op: Op, plan: _Plan, index: int, old: int) -> Any:
    where = _coordinates(op, plan, index, old)
    return (where >= 0) & (where <= old - 1)


def _matrix(op: Op, plan: _Plan, index: int, old: int) -> Any:
    """Old places (nearest), or weights (new, old)."""
    where = _coordinates(op, plan, index, old)
    if plan.mode == "nearest":
        return np.clip(_rounded(op, where, plan.nearest), 0, old - 1)
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


def _rounded(op: Op, where: Any, mode: str) -> Any:
    # A coordinate that is a whole number or a half up to rounding errors is taken as that.
    where = np.round(where * 2**24) / 2**24
    if mode == "round_prefer_floor":
        return np.ceil(where - 0.5)
    if mode == "round_prefer_ceil":
        return np.floor(where + 0.5)
    if mode in ("floor", "ceil"):
        return np.floor(where) if mode == "floor" else np.ceil(where)
    raise op.refuse(f"nearest_mode {mode!r} is not in the ONNX standard")
