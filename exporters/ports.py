"""Names of free sizes and element types at the ends of an ONNX graph.

Enters: a ModelProto that computes in float32. Leaves: the same, changed in place, with the names
and types that those who run the file expect.
"""

import onnx

from exporters.errors import ExportError

FLOATS = {
    "float16": onnx.TensorProto.FLOAT16,
    "float32": onnx.TensorProto.FLOAT,
    "float64": onnx.TensorProto.DOUBLE,
}


def name_sizes(proto: onnx.ModelProto, names: dict[int, str], num_inputs: int) -> None:
    """Call the symbol of each dimension in `names` that everywhere; torch numbers its symbols.

    Of the first `num_inputs` inputs; dimension 0 of all inputs is the batch. Raises ExportError
    where a dimension came out fixed.
    """
    symbols: dict[str, str] = {}
    for position, value in enumerate(proto.graph.input):
        for index, name in names.items():
            if index and position >= num_inputs:
                continue
            dim = value.type.tensor_type.shape.dim[index]
            if not dim.HasField("dim_param"):
                what = "batch" if index == 0 else f"size in dimension {index}"
                raise ExportError(
                    f"input {value.name!r} came out with a fixed {what} of {dim.dim_value}: the "
                    f"model fixes it, ask for a fixed one"
                )
            symbols.setdefault(dim.dim_param, name)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_param = symbols[dim.dim_param]


def cast_ports(
    proto: onnx.ModelProto, inputs: tuple[str | None, ...], outputs: tuple[str | None, ...]
) -> None:
    """Give inputs and outputs the floating-point types named; None, and integers, stay as they are.

    The graph keeps computing in its own type: a Cast stands behind each changed input and before
    each changed output. `inputs` and `outputs` are keys of `FLOATS`, in the graph's order.
    """
    graph = proto.graph
    before: list[onnx.NodeProto] = []
    for value, wanted in zip(graph.input, inputs, strict=False):
        own = value.type.tensor_type.elem_type
        if _differs(own, wanted):
            inner = _free_name(graph, f"{value.name}_inner")
            _rename_readers(graph, value.name, inner)
            before.append(_cast(value.name, inner, own))
            value.type.tensor_type.elem_type = FLOATS[wanted or ""]
    after: list[onnx.NodeProto] = []
    for value, wanted in zip(graph.output, outputs, strict=False):
        if _differs(value.type.tensor_type.elem_type, wanted):
            inner = _free_name(graph, f"{value.name}_inner")
            _rename_maker(graph, value.name, inner)
            _rename_readers(graph, value.name, inner)
            after.append(_cast(inner, value.name, FLOATS[wanted or ""]))
            value.type.tensor_type.elem_type = FLOATS[wanted or ""]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)


def _differs(own: int, wanted: str | None) -> bool:
    return wanted in FLOATS and own in FLOATS.values() and FLOATS[wanted] != own


def _cast(source: str, result: str, to: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [result], name=f"cast_{result}", to=to)


def _free_name(graph: onnx.GraphProto, wished: str) -> str:
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in graph.initializer}
    name, number = wished, 1
    while name in taken:
        number += 1
        name = f"{wished}_{number}"
    return name


def _rename_readers(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_readers(attribute.g, old, new)


def _rename_maker(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for position, name in enumerate(node.output):
            if name == old:
                node.output[position] = new
