"""Resize of an image whose height or width is free: torch's interpolation, sized in the run.

What enters: a Resize node and how it maps places. What leaves: arguments of `F.interpolate`, or
None where torch has no word for it, or where the sizes are known and need no such word.
"""

from typing import Any

import numpy as np
from torch import fx

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.values import Number, probes_of

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def free_interpolation(op: Op, transform: str, nearest: str) -> dict[str, Any] | None:
    """`scale_factor` or `size`, `mode` and `align_corners`."""
    value = op.value(0)
    shape = op.shape(value)
    if shape is None or len(shape) not in _LINEAR:
        return None
    plain = ("antialias", "exclude_outside", "keep_aspect_ratio_policy")
    if any(op.attr(name, 0) not in (0, "stretch") for name in plain):
        return None
    rank = len(shape)
    axes = [op.axis(a, rank) for a in op.attr("axes", list(range(rank)))]
    by_sizes = op.has(3) and op.shape(op.value(3)) != (0,)
    wanted = dict(zip(axes, op.numbers(3 if by_sizes else 2), strict=False))
    if not isinstance(value, fx.Node) or not set(range(2, rank)) <= set(wanted):
        return None
    asked = [wanted[axis] for axis in range(2, rank)] if by_sizes else []
    if None not in shape[2:] and all(op.known(size) is not None for size in asked):
        return None
    rest = [axis for axis in wanted if axis < 2]
    if any(_ratio(value, axis, wanted[axis], by_sizes) != 1 for axis in rest):
        return None
    if by_sizes:
        # no factor, even where it is the same in all trials: sizes were rounded on their way here
        whole = False
        size: dict[str, Any] = {"size": asked}
    else:
        ratios = [_ratio(value, axis, wanted[axis], by_sizes) for axis in range(2, rank)]
        whole = all(ratio is not None and ratio == int(ratio) and ratio > 0 for ratio in ratios)
        if not whole:
            return None
        size = {"scale_factor": [float(ratio or 1) for ratio in ratios]}
    how = _mode(op, rank, (transform, nearest), whole)
    return None if how is None else size | how


def _ratio(value: fx.Node, axis: int, wanted: Number, by_sizes: bool) -> float | None:
    """New size over old, where it is the same in all trials."""
    probes = probes_of(value) or ()
    if isinstance(wanted, fx.Node):
        found = probes_of(wanted) or ()
        if len(found) != len(probes) and len(set(found)) != 1:
            return None
        given = list(found) if len(found) == len(probes) else list(found) * len(probes)
    else:
        given = [wanted] * len(probes)
    if not by_sizes:
        return float(given[0]) if given and len(set(given)) == 1 else None
    ratios = {new / probe.shape[axis] for new, probe in zip(given, probes, strict=True)}
    return float(np.float64(ratios.pop())) if len(ratios) == 1 else None


def _mode(op: Op, rank: int, places: tuple[str, str], whole: bool) -> dict[str, Any] | None:
    transform, nearest = places
    mode = op.attr("mode", "nearest")
    if mode == "nearest":
        # Where each place is repeated a whole number of times every rounding agrees but the ceil.
        same = places == ("asymmetric", "floor") or (
            whole and transform == "half_pixel" and nearest.startswith("round")
        )
        return {"mode": "nearest"} if same else None
    if transform not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return None
    corners = transform == "align_corners"
    if mode == "linear":
        return {"mode": _LINEAR[rank], "align_corners": corners}
    if mode == "cubic" and rank == 4 and op.attr("cubic_coeff_a", -0.75) == -0.75:
        return {"mode": "bicubic", "align_corners": corners}
    return None
