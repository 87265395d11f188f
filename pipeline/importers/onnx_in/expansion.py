"""Ops that the ONNX standard itself defines by other ops: imported as that definition.

What enters: a node whose op has no importer of its own. What leaves: the nodes of its definition,
with the attributes filled in, and the opset that they are written in.
"""

from dataclasses import dataclass

import onnx

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.errors import FOREIGN, one_line
from pipeline.importers.onnx_in.tensors import TORCH_DTYPES

_CODES = {dtype: code for code, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A function of the standard, ready to be walked."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]
    opset: int


def has_definition(op_type: str, opset: int) -> bool:
    """Whether the standard defines the op by others."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def definition_of(op: Op) -> Definition:
    """The definition for this node. Raises NodeError where onnx gives none for its inputs."""
    schema = onnx.defs.get_schema(op.node.op_type, op.opset, "")
    try:
        text = _function_text(op, schema)
        function = onnx.FunctionProto.FromString(text)
    except FOREIGN as error:
        raise op.refuse(f"has no definition for its inputs ({one_line(error)})") from error
    if not function.node:
        raise op.refuse("has no definition for its inputs")
    given = {a.name: a for a in schema_defaults(schema)} | {a.name: a for a in op.node.attribute}
    opsets = [entry.version for entry in function.opset_import if entry.domain in ("", "ai.onnx")]
    return Definition(
        inputs=tuple(function.input),
        outputs=tuple(function.output),
        nodes=tuple(_filled_in(node, given) for node in function.node),
        opset=max(opsets, default=op.opset),
    )


def _function_text(op: Op, schema: onnx.defs.OpSchema) -> bytes:
    if not schema.has_context_dependent_function:
        versions = [v for v in schema.function_opset_versions if v <= op.opset]
        return bytes(schema.get_function_with_opset_version(max(versions)))
    types = [_type_of(op, i) for i in range(len(op.node.input))]
    versions = [v for v in schema.context_dependent_function_opset_versions if v <= op.opset]
    return bytes(
        schema.get_context_dependent_function_with_opset_version(
            max(versions), op.node.SerializeToString(), types
        )
    )


def _type_of(op: Op, index: int) -> bytes:
    value = op.maybe(index)
    if value is None:
        return onnx.TypeProto().SerializeToString()
    code = _CODES.get(op.dtype(value), onnx.TensorProto.FLOAT)
    shape = op.shape(value)
    made: onnx.TypeProto = onnx.helper.make_tensor_type_proto(code, shape)
    return made.SerializeToString()


def schema_defaults(schema: onnx.defs.OpSchema) -> list[onnx.AttributeProto]:
    """The attributes that have a default, with it."""
    return [
        attribute.default_value
        for attribute in schema.attributes.values()
        if attribute.default_value.name
    ]


def _filled_in(node: onnx.NodeProto, given: dict[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """The node with references to attributes of the function replaced by their values."""
    filled = onnx.NodeProto()
    filled.CopyFrom(node)
    del filled.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            kept = filled.attribute.add()
            kept.CopyFrom(attribute)
            graphs = [kept.g] if kept.HasField("g") else []
            for graph in (*graphs, *kept.graphs):
                nodes = [_filled_in(inner, given) for inner in graph.node]
                del graph.node[:]
                graph.node.extend(nodes)
        elif attribute.ref_attr_name in given:
            kept = filled.attribute.add()
            kept.CopyFrom(given[attribute.ref_attr_name])
            kept.name = attribute.name
    return filled
