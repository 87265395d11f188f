"""How this package says no: one line that names the place in the graph.

What enters: a node and what is wrong with it. What leaves: a `UsageError`.
`FOREIGN` names what onnx, protobuf and torch are known to raise for a file that is wrong.
"""

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

from pipeline.errors import UsageError, one_line

__all__ = ["FOREIGN", "NodeError", "UsageError", "label", "one_line"]

FOREIGN: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    DecodeError,
    EncodeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    TypeError,
    UnicodeError,
    ValueError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)


class NodeError(UsageError):
    """One node cannot be imported as it stands."""


def label(node: onnx.NodeProto) -> str:
    """How a node is called in a message; many files leave names out, so its output stands in."""
    name = node.name or (node.output[0] if node.output else "")
    return f"{node.op_type} node {name!r}"
