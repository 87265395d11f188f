"""ONNX files in, trainable torch networks out."""

from pipeline.importers.onnx_in.importing import ImportedOnnx, import_onnx, import_proto
from pipeline.importers.onnx_in.interface import Interface, Port

__all__ = ["ImportedOnnx", "Interface", "Port", "import_onnx", "import_proto"]
