"""What one Resize does to each dimension: new sizes and scales, from scales or from sizes.

What enters: a Resize or Upsample node. What leaves: a `Plan`. Refused: sizes and scales that are
not known at import.
"""

import math
from typing import Any

import numpy as np
from torch import fx

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.values import Number, probes_of

RESIZE_10 = "of Resize-10"
"""Rounding of nearest places where no attribute names one: as onnxruntime's, backwards to more
places (floor) and onwards to fewer (ceil)."""


class Plan:
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


def floats(op: Op, numbers: list[Number]) -> list[float]:
    """Numbers that must be known now."""
    decided = [op.decided(n) for n in numbers]
    if any(value is None for value in decided):
        raise op.refuse("its scales depend on the batch or the data: not supported")
    return [float(value) for value in decided]


def by_scales(op: Op, plan: Plan, scales: list[float], axes: Any) -> None:
    """New sizes are old ones times the scales, rounded down."""
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


def by_sizes(op: Op, plan: Plan, wanted: list[Number], axes: list[int]) -> None:
    """Scales are what gives the sizes, which a policy may change to keep the aspect."""
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
