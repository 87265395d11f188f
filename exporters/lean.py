"""Take out of a quantised file what only its making needed.

Enters: a model as onnxruntime's quantiser writes it. Leaves: one that computes the same, bit by
bit, with the names of weights, layers, inputs and outputs as they were: equal constants are stored
once, tensors and nodes that the quantiser put in have short names or none, inferred shapes are left
out. Of a small network these are a tenth of the file.
"""

from collections.abc import Iterable

import onnx

_OF_QUANTISER = (
    *("_DequantizeLinear_Output", "_DequantizeLinear_Input"),
    *("_QuantizeLinear_Output", "_QuantizeLinear_Input", "_scale", "_zero_point"),
)
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def lean(model: onnx.ModelProto) -> onnx.ModelProto:
    """A leaner copy; raises onnx.checker.ValidationError for a model that is not valid itself."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    del graph.value_info[:]
    renamed = _shared_constants(graph)
    _rename(graph, renamed)
    _rename(graph, _short_names(graph))
    for node in graph.node:
        if node.op_type in _CONVERSIONS:
            node.ClearField("name")
    onnx.checker.check_model(made)
    return made


def _shared_constants(graph: onnx.GraphProto) -> dict[str, str]:
    """Name of a constant -> name of an equal one that stays; the others are taken out."""
    ports = {value.name for value in (*graph.input, *graph.output)}
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    kept: list[onnx.TensorProto] = []
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), tensor.raw_data)
        if tensor.HasField("raw_data") and tensor.name not in ports and key in first:
            renamed[tensor.name] = first[key]
        else:
            first.setdefault(key, tensor.name)
            kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return renamed


def _short_names(graph: onnx.GraphProto) -> dict[str, str]:
    """A number, in letters, for each tensor that the quantiser named."""
    ports = {value.name for value in (*graph.input, *graph.output)}
    inner = [name for node in graph.node for name in node.output]
    names = dict.fromkeys((*(tensor.name for tensor in graph.initializer), *inner))
    taken = set(names) | ports
    free = (name for name in _numbers() if name not in taken)
    return {
        name: next(free) for name in names if name not in ports and name.endswith(_OF_QUANTISER)
    }


def _numbers() -> Iterable[str]:
    number = 0
    while True:
        yield f"q{number:x}"
        number += 1


def _rename(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name in renamed:
                    names[index] = renamed[name]
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
