"""ONNX files in, trainable torch networks out."""

from pathlib import Path

from gbn.expected import not_the_users
from pipeline.importers.onnx_in.importing import ImportedOnnx, import_onnx, import_proto
from pipeline.importers.onnx_in.interface import Interface, Port

__all__ = ["ImportedOnnx", "Interface", "Port", "import_onnx", "import_proto"]

# A line of the imported graph says more to its owner than what an op of it calls here.
not_the_users(Path(__file__).parent)
