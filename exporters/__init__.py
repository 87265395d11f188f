"""torch -> ONNX -> numbers: export, clean up, and measure what the ONNX file does.

Enters: a torch module or an ONNX file. Leaves: a cleaned ONNX file, its cost, its parity, accuracy
and latency as onnxruntime runs it. Knows nothing of pruning. Names load on first use, so that
importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from exporters.errors import ExportError, ProviderError

if TYPE_CHECKING:
    from exporters.accuracy import Accuracy, mean_metric, top1
    from exporters.capture import export_program
    from exporters.cleanup import clean
    from exporters.files import load_onnx
    from exporters.latency import (
        LatencyComparison,
        LatencySettings,
        LatencyStats,
        compare_latency,
    )
    from exporters.macs import OnnxCost, count_macs
    from exporters.parity import Parity, check_parity
    from exporters.session import PROVIDERS, Session, open_session
    from exporters.to_onnx import ExportRequest, OnnxFile, export_onnx

__all__ = [
    "PROVIDERS",
    "Accuracy",
    "ExportError",
    "ExportRequest",
    "LatencyComparison",
    "LatencySettings",
    "LatencyStats",
    "OnnxCost",
    "OnnxFile",
    "Parity",
    "ProviderError",
    "Session",
    "check_parity",
    "clean",
    "compare_latency",
    "count_macs",
    "export_onnx",
    "export_program",
    "load_onnx",
    "mean_metric",
    "open_session",
    "top1",
]

_HOME = {
    "accuracy": ("Accuracy", "mean_metric", "top1"),
    "capture": ("export_program",),
    "cleanup": ("clean",),
    "files": ("load_onnx",),
    "latency": ("LatencyComparison", "LatencySettings", "LatencyStats", "compare_latency"),
    "macs": ("OnnxCost", "count_macs"),
    "parity": ("Parity", "check_parity"),
    "session": ("PROVIDERS", "Session", "open_session"),
    "to_onnx": ("ExportRequest", "OnnxFile", "export_onnx"),
}


def __getattr__(name: str) -> object:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"exporters.{module}"), name)
    raise AttributeError(f"module 'exporters' has no attribute {name!r}")
