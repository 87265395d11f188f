"""torch -> ONNX -> numbers: export, clean up, and measure what the ONNX file does.

Enters: a torch module or an ONNX file. Leaves: a cleaned ONNX file, its cost, its parity, accuracy
and latency as onnxruntime runs it. Knows nothing of pruning. Names load on first use, so that
importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from exporters.errors import ExportError, OpsetError, ProviderError

if TYPE_CHECKING:
    from exporters.accuracy import Accuracy, mean_metric, top1
    from exporters.capture import export_program
    from exporters.cleanup import clean
    from exporters.cores import on_core, quiet_cores, usable_cores
    from exporters.fidelity import Fidelity, agreement, relative_error
    from exporters.file_parity import Parity, check_session_parity
    from exporters.files import load_onnx, onnx_size_bytes, why_no_model
    from exporters.inputs import fixed_batch, random_inputs
    from exporters.latency import (
        LatencyComparison,
        LatencyMeasurement,
        LatencySettings,
        LatencyStats,
        Timed,
        compare_latency,
        measure_latency,
    )
    from exporters.latency_limits import LatencyLimits, LimitVerdict
    from exporters.macs import OnnxCost, count_macs
    from exporters.memory import peak_memory_bytes
    from exporters.parity import check_parity
    from exporters.precision import (
        FP16_TOLERANCE,
        PRECISIONS,
        Int8Request,
        Int8Result,
        like_int8,
        to_fp16,
        to_int8,
    )
    from exporters.providers import PROVIDERS
    from exporters.session import Session, newest_opset, open_session, write_ort
    from exporters.to_onnx import ExportRequest, OnnxFile, export_onnx

__all__ = [
    "FP16_TOLERANCE",
    "PRECISIONS",
    "PROVIDERS",
    "Accuracy",
    "ExportError",
    "ExportRequest",
    "Fidelity",
    "Int8Request",
    "Int8Result",
    "LatencyComparison",
    "LatencyLimits",
    "LatencyMeasurement",
    "LatencySettings",
    "LatencyStats",
    "LimitVerdict",
    "OnnxCost",
    "OnnxFile",
    "OpsetError",
    "Parity",
    "ProviderError",
    "Session",
    "Timed",
    "agreement",
    "check_parity",
    "check_session_parity",
    "clean",
    "compare_latency",
    "count_macs",
    "export_onnx",
    "export_program",
    "fixed_batch",
    "like_int8",
    "load_onnx",
    "mean_metric",
    "measure_latency",
    "newest_opset",
    "on_core",
    "onnx_size_bytes",
    "open_session",
    "peak_memory_bytes",
    "quiet_cores",
    "random_inputs",
    "relative_error",
    "to_fp16",
    "to_int8",
    "top1",
    "usable_cores",
    "why_no_model",
    "write_ort",
]

_HOME = {
    "accuracy": ("Accuracy", "mean_metric", "top1"),
    "capture": ("export_program",),
    "cleanup": ("clean",),
    "cores": ("on_core", "quiet_cores", "usable_cores"),
    "fidelity": ("Fidelity", "agreement", "relative_error"),
    "files": ("load_onnx", "onnx_size_bytes", "why_no_model"),
    "latency": (
        *("LatencyComparison", "LatencyMeasurement", "LatencySettings", "LatencyStats", "Timed"),
        *("compare_latency", "measure_latency"),
    ),
    "latency_limits": ("LatencyLimits", "LimitVerdict"),
    "macs": ("OnnxCost", "count_macs"),
    "inputs": ("fixed_batch", "random_inputs"),
    "memory": ("peak_memory_bytes",),
    "file_parity": ("Parity", "check_session_parity"),
    "parity": ("check_parity",),
    "precision": (
        *("FP16_TOLERANCE", "PRECISIONS", "Int8Request", "Int8Result", "like_int8"),
        *("to_fp16", "to_int8"),
    ),
    "providers": ("PROVIDERS",),
    "session": ("Session", "newest_opset", "open_session", "write_ort"),
    "to_onnx": ("ExportRequest", "OnnxFile", "export_onnx"),
}


def __getattr__(name: str) -> object:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"exporters.{module}"), name)
    raise AttributeError(f"module 'exporters' has no attribute {name!r}")
