"""What each layer cost before and costs now: what the cut bought, and where it bought nothing.

Enters: the two files of a run and where they are timed. Leaves: rows for the report, measured node
by node in whole graphs, and their sums beside the time of the whole. Where the provider does not
tell times of nodes, the reason.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

import exporters
from exporters.node_times import SYNCHRONOUS, NodeTime, Place, elements, node_times, work
from exporters.time_model import named

_OF_PRECISION = {"QuantizeLinear", "DequantizeLinear", "Cast"}
_QUANTISED = re.compile(r"_token_\d+$")  # what onnxruntime adds to the names of fused layers
_SECONDS = 0.5
_LITTLE = 0.5
"""Less than so much of what the arithmetic suggests counts as bought nothing much."""


def layer_report(before: Path, after: Path, place: Place) -> dict[str, Any]:
    """{nodes_ms: {before, after}, rows} of the executed nodes, or {skipped: why}."""
    if place.provider not in SYNCHRONOUS:
        return {"skipped": f"{place.provider} does not tell the times of single nodes"}
    old = dict(named(node_times(before, place, _SECONDS)))
    new = dict(named(node_times(after, place, _SECONDS)))
    layers = _layer_names(exporters.load_onnx(after)) | _layer_names(exporters.load_onnx(before))
    return {
        "nodes_ms": {
            "before": sum(node.ms for node in old.values()),
            "after": sum(node.ms for node in new.values()),
        },
        "rows": list(_rows(old, new, layers)),
    }


def _rows(
    old: dict[str, NodeTime], new: dict[str, NodeTime], layers: dict[str, str]
) -> Iterator[dict[str, Any]]:
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name), new.get(name)
        node = after or before
        assert node is not None, "a name comes from one of the two"
        ms_before, ms_after = (0.0 if n is None else n.ms for n in (before, after))
        yield {
            "layer": layers.get(node.name) or layers.get(_QUANTISED.sub("", node.name), node.name),
            "op": node.op,
            "shapes_before": _shapes(before),
            "shapes_after": _shapes(after),
            "ms_before": ms_before,
            "ms_after": ms_after,
            "ms_saved": ms_before - ms_after,
            "why_little": _why_little(before, after),
        }


def _shapes(node: NodeTime | None) -> list[list[int]] | None:
    return None if node is None else [list(shape) for shape in (*node.inputs, *node.outputs)]


def _why_little(before: NodeTime | None, after: NodeTime | None) -> str | None:
    """Why a layer is hardly faster; None where it is, or where there is nothing to explain."""
    if before is None:
        if after is not None and (after.op in _OF_PRECISION or after.op.startswith("QLinear")):
            return "new: computes in the precision that was asked for"
        return "new: the widths no longer fit the kernels around it"
    if after is None:
        return None
    if _shapes(before) == _shapes(after):
        return "its widths stayed, or are padded to the same"
    work_share = _work(after) / max(_work(before), 1)
    time_share = after.ms / max(before.ms, 1e-6)
    if 1 - time_share >= _LITTLE * (1 - work_share):
        return None
    return (
        f"{1 - work_share:.0%} of its work went and {max(1 - time_share, 0):.0%} of its time: "
        "bound by memory, by starting up, or by a kernel that is slower at these widths"
    )


def _work(node: NodeTime) -> int:
    """Multiply-accumulates of a layer; of other nodes the elements that they read and write."""
    return work(node) or elements(node)


def _layer_names(model: onnx.ModelProto) -> dict[str, str]:
    """Name of a node, or of a tensor it leads to without meeting another weight -> its layer.

    A layer is called after its weight, as the state dict has it.
    """
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    layer_of: dict[str, str] = {}
    found: dict[str, str] = {}
    for node in model.graph.node:
        own = next((name for name in node.input if name in weights), None)
        passed_on = next((layer_of[i] for i in reversed(node.input) if i in layer_of), None)
        layer = own.removesuffix(".weight") if own is not None else passed_on
        if layer is None:
            continue
        if own is not None:
            found[node.name] = layer
        for output in node.output:
            layer_of[output] = layer
            found[output] = layer
    return found
