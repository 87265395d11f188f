"""Recognise graphs that are no trainable network any more, and say what to do instead.

What enters: a model. Refused: quantised graphs, graphs that a runtime has fused for itself, and
domains that are neither the standard's nor functions in the file.
"""

from collections import Counter
from collections.abc import Iterator

import onnx

from pipeline.importers.onnx_in.errors import UsageError

_QUANTISED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
)
STANDARD = ("", "ai.onnx")
_RUNTIME_DOMAINS = ("com.microsoft", "com.ms.internal.nhwc", "com.microsoft.nchwc")


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, also those of graphs inside of nodes."""
    stack = [graph]
    while stack:
        current = stack.pop()
        for node in current.node:
            yield node
            for attribute in node.attribute:
                stack += [attribute.g] if attribute.HasField("g") else []
                stack += attribute.graphs


def refuse_foreign(proto: onnx.ModelProto) -> None:
    """Raises UsageError for what this module's text says."""
    functions = {(f.domain, f.name) for f in proto.functions}
    nodes = list(nodes_of(proto.graph))
    nodes += [node for function in proto.functions for node in function.node]
    nodes = [node for node in nodes if (node.domain, node.op_type) not in functions]
    quantised = Counter(n.op_type for n in nodes if _is_quantised(n))
    if quantised:
        raise UsageError(
            f"is quantised ({_counts(quantised)}): weights in integers cannot be trained; give "
            "the float model that it was made from, prune it, and quantise the result"
        )
    foreign = Counter(f"{n.domain}.{n.op_type}" for n in nodes if n.domain not in STANDARD)
    if any(n.domain in _RUNTIME_DOMAINS for n in nodes):
        raise UsageError(
            f"was optimised for one runtime ({_counts(foreign)}): "
            "give the file from before that optimisation; onnxruntime does it anew when it loads"
        )
    if foreign:
        raise UsageError(
            f"uses ops outside of the ONNX standard ({_counts(foreign)}): export it without them, "
            "or with their definition as a function in the file"
        )


def _is_quantised(node: onnx.NodeProto) -> bool:
    return node.domain in (*STANDARD, "com.microsoft") and (
        node.op_type in _QUANTISED or node.op_type.startswith("QLinear")
    )


def _counts(found: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(found.items())[:12])
