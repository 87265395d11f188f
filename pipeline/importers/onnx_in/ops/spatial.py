"""Sampling at computed places: GridSample, AffineGrid, RoiAlign, NonMaxSuppression."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.values import Const

_GRID_MODES = {
    "linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest",
    "cubic": "bicubic", "bicubic": "bicubic",
}  # fmt: skip


def _for_each_sample(x: Tensor, grid: Tensor) -> Tensor:
    """(1, ...) -> (N, ...), where x is (N, C, ...)."""
    return grid.expand(x.shape[0], *grid.shape[1:])


@importer("GridSample")
def grid_sample(op: Op) -> Result:
    """torch's own op; places that are written down serve any batch."""
    grid = op.value(1)
    if isinstance(grid, Const) and grid.tensor.shape[:1] == (1,):
        grid = op.call(_for_each_sample, op.value(0), grid)
    mode, padding = op.attr("mode", "linear"), op.attr("padding_mode", "zeros")
    if op.rank(op.value(0)) == 5 and "cubic" in mode:
        raise op.refuse("cubic sampling of volumes is not supported")
    return op.call(
        F.grid_sample, op.value(0), grid, mode=_GRID_MODES[mode], padding_mode=padding,
        align_corners=bool(op.attr("align_corners", 0)),
    )  # fmt: skip


@importer("AffineGrid")
def affine_grid(op: Op) -> Result:
    """torch's own op."""
    corners = bool(op.attr("align_corners", 0))
    return op.call(F.affine_grid, op.value(0), op.numbers(1), align_corners=corners)


def aligned(
    x: Tensor, boxes: Tensor, batch: Tensor, size: tuple[int, int], scale: float, ratio: int,
    half: bool,
) -> Tensor:  # fmt: skip
    """Averages of sampled places in each box."""
    from torchvision.ops import roi_align

    rows = torch.cat([batch.to(boxes.dtype).unsqueeze(1), boxes], 1)
    return roi_align(x, rows, size, scale, ratio if ratio > 0 else -1, half)


@importer("RoiAlign")
def roi_align(op: Op) -> Result:
    """torchvision's, in mode avg; half pixels are the default from opset 16 on."""
    if op.attr("mode", "avg") != "avg":
        raise op.refuse("mode 'max' is not supported")
    default = "half_pixel" if op.opset >= 16 else "output_half_pixel"
    half = op.attr("coordinate_transformation_mode", default) == "half_pixel"
    size = (op.attr("output_height", 1), op.attr("output_width", 1))
    return op.call(
        aligned, op.value(0), op.value(1), op.value(2), size, op.attr("spatial_scale", 1.0),
        op.attr("sampling_ratio", 0), half,
    )  # fmt: skip


def suppressed(
    boxes: Tensor, scores: Tensor, most: int, overlap: float, least: float | None, centred: bool
) -> Tensor:
    """(batch, class, box) of the boxes kept, by class and falling score."""
    from torchvision.ops import nms

    if centred:
        half = boxes[..., 2:] / 2
        boxes = torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)
    else:
        low, high = boxes[..., :2], boxes[..., 2:]
        boxes = torch.cat([torch.minimum(low, high), torch.maximum(low, high)], -1)
    rows: list[Tensor] = []
    for image in range(scores.shape[0]):
        for kind in range(scores.shape[1]):
            values = scores[image, kind]
            there = torch.arange(len(values), device=values.device)
            if least is not None:
                there = there[values > least]
            kept = there[nms(boxes[image][there], values[there], overlap)][:most]
            place = kept.new_tensor([image, kind]).expand(len(kept), 2)
            rows.append(torch.cat([place, kept.unsqueeze(1)], 1))
    return torch.cat(rows) if rows else boxes.new_empty((0, 3), dtype=torch.int64)


@importer("NonMaxSuppression")
def non_max_suppression(op: Op) -> Result:
    """Box by box; not differentiable, as everywhere."""
    most, overlap = int(op.number(2, 0)), float(op.number(3, 0.0))
    least: Any = op.number(4, None)
    centred = bool(op.attr("center_point_box", 0))
    return op.call(suppressed, op.value(0), op.value(1), most, overlap, least, centred)
