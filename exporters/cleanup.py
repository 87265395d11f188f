"""Clean an ONNX graph (the only user of onnx-graphsurgeon).

Enters: a valid ModelProto. Leaves: a new one that computes the same, with constants folded, without
dead nodes and those that change nothing (Identity, a Cast to the type that a tensor has), and the
names, types, dynamic dimensions and doc strings of inputs and outputs, the metadata and the opset
imports as they were. Refused: a model that graphsurgeon cannot read, or that does not pass the
checker afterwards.

Stays on purpose: an Identity that leads from a graph input (or a weight) straight to a graph
output, since both names must live on, and computed constants over `FOLD_LIMIT_BYTES`.
"""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from exporters.errors import ExportError, one_line

FOLD_LIMIT_BYTES = 64 * 1024
"""A computed constant larger than this stays computed: an expanded one would bloat the file."""

# Without inputs these look constant, yet each run draws anew.
_RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"}
    | {"Bernoulli", "Dropout"}
)


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """The cleaned copy of `model`; cleaning it again changes nothing. Raises ExportError."""
    cleaned = model
    while True:
        before = cleaned
        cleaned = _clean_once(before)
        # Each folded shape can make the next one known.
        if len(cleaned.graph.node) == len(before.graph.node):
            break
    try:
        onnx.checker.check_model(cleaned)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the cleaned graph is not valid ONNX: {one_line(error)}") from error
    return cleaned


def _clean_once(model: onnx.ModelProto) -> onnx.ModelProto:
    # Not graphsurgeon's own shape folding: it ignores the start and end of Shape, and it rounds
    # the factor of an int -> float -> Mul -> int chain to an int (0.5 becomes 0).
    try:
        with G_LOGGER.suppress():
            graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model, data_prop=True))
            _fold_shapes(graph)
            # Before folding, which would turn each Identity of a shared weight into a copy of it.
            for part in (graph, *graph.subgraphs(recursive=True)):
                _remove_idle(part)
            graph.cleanup().toposort()
            graph.fold_constants(
                fold_shapes=False,
                size_threshold=FOLD_LIMIT_BYTES,
                should_exclude_node=lambda node: node.op in _RANDOM_OPS,
            )
            graph.cleanup().toposort()
            exported = gs.export_onnx(graph)
    except (onnx.shape_inference.InferenceError, gs.OnnxGraphSurgeonException) as error:
        raise ExportError(f"the graph cannot be cleaned: {one_line(error)}") from error
    return _with_identity_of(model, exported)


def _fold_shapes(graph: gs.Graph) -> None:
    """Replace each Shape whose answer does not depend on the run by that answer."""
    for node in graph.nodes:
        if node.op != "Shape" or node.inputs[0].shape is None or node.outputs[0] in graph.outputs:
            continue
        dims = list(node.inputs[0].shape)[node.attrs.get("start", 0) : node.attrs.get("end")]
        if all(isinstance(dim, int) for dim in dims):
            output = node.outputs[0]
            node.outputs.clear()
            output.to_constant(np.array(dims, dtype=np.int64))


def _is_idle(node: gs.Node) -> bool:
    """Whether it hands its input on: an Identity, or a Cast to the type that the input has."""
    if node.op != "Cast":
        return bool(node.op == "Identity")
    own = node.inputs[0].dtype
    if own is None:
        return False
    # A type that numpy does not have stays ONNX's number.
    code = own if isinstance(own, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(own))
    return bool(code == node.attrs["to"])


def _remove_idle(graph: gs.Graph) -> None:
    for node in [n for n in graph.nodes if _is_idle(n)]:
        source, result = node.inputs[0], node.outputs[0]
        if not any(result is output for output in graph.outputs):
            node.outputs.clear()
            _redirect(graph, result, source)
        elif _can_take_the_name_of(source, graph):
            producer = source.inputs[0]
            position = next(i for i, out in enumerate(producer.outputs) if out is source)
            node.inputs.clear()
            node.outputs.clear()
            _redirect(graph, source, result)
            producer.outputs[position] = result


def _can_take_the_name_of(source: gs.Tensor, graph: gs.Graph) -> bool:
    """Whether the tensor is made by a node of this graph and its own name is free to go."""
    named = (*graph.inputs, *graph.outputs)
    return (
        not any(source is tensor for tensor in named)
        and len(source.inputs) == 1
        and any(source.inputs[0] is node for node in graph.nodes)
    )


def _redirect(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Let every reader of `old`, in nested graphs too, read `new`."""
    for reader in list(old.outputs):
        for position, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[position] = new
    for nested in graph.subgraphs(recursive=True):
        for position, tensor in enumerate(nested.outputs):
            if tensor is old:
                nested.outputs[position] = new


def _with_identity_of(model: onnx.ModelProto, exported: onnx.ModelProto) -> onnx.ModelProto:
    """Give the exported model all that graphsurgeon does not carry."""
    graph = exported.graph
    for kept, original in ((graph.input, model.graph.input), (graph.output, model.graph.output)):
        by_name = {value.name: value for value in original}
        for value in kept:
            # A file may leave the shape of an output out, which the checker does not take; then
            # the inferred one stands.
            if by_name[value.name].type.tensor_type.HasField("shape"):
                value.CopyFrom(by_name[value.name])
            # The exporter's notes on where a value came from, not the user's.
            del value.metadata_props[:]
    # Inferred shapes of inner tensors can be inferred again; in the file they are only weight.
    known = {value.name for value in model.graph.value_info}
    kept_infos = [value for value in graph.value_info if value.name in known]
    del graph.value_info[:]
    graph.value_info.extend(kept_infos)
    exported.ir_version = model.ir_version
    exported.domain = model.domain
    exported.model_version = model.model_version
    exported.doc_string = model.doc_string
    exported.metadata_props.extend(model.metadata_props)
    graph.metadata_props.extend(model.graph.metadata_props)
    del exported.opset_import[:]
    exported.opset_import.extend(model.opset_import)
    return exported
