"""One small function for each ONNX op, by kind; importing this registers them all."""

from pipeline.importers.onnx_in.ops import (
    activation,
    arithmetic,
    control,
    conv,
    cutting,
    index,
    layout,
    linear,
    norm,
    padding,
    pool,
    reduce,
    resize,
    shapes,
    spatial,
)
from pipeline.importers.onnx_in.registry import find_importer, supported_ops

__all__ = [
    "activation",
    "arithmetic",
    "control",
    "conv",
    "cutting",
    "find_importer",
    "index",
    "layout",
    "linear",
    "norm",
    "padding",
    "pool",
    "reduce",
    "resize",
    "shapes",
    "spatial",
    "supported_ops",
]
