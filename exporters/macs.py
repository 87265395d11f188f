"""Count the multiply-accumulates (MACs) of an ONNX graph.

Enters: a ModelProto or a file, and the input sizes where the file leaves them open. Leaves: an
`OnnxCost`. Refused: a graph in which a needed shape is unknown, or whose convolutions and matrix
products sit inside a control-flow node, where the number of runs is not known.

Convention: one MAC is one multiplication and its addition. Counted are convolutions (products with
padding zeros included), linear layers and matrix products; biases are not. Every other op is
listed in `uncounted`. A dynamic batch counts as 1, a fixed batch as it is.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import onnx

from exporters.cleanup import clean
from exporters.errors import ExportError, one_line
from exporters.files import load_onnx, onnx_size_bytes

Shape = tuple[int, ...]
_T = TypeVar("_T")

_FLOAT_TYPES = frozenset(
    {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    | {onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
)


class _UnknownShapeError(ExportError):
    """A shape that a formula needs does not follow from the input sizes."""


@dataclass(frozen=True, kw_only=True)
class OnnxCost:
    """What a graph costs.

    num_macs: multiply-accumulates of one run at `batch`.
    num_params: elements of all floating-point constants (weights, biases, statistics).
    size_bytes: of the file with its external weights, or of the serialised model.
    batch: dimension 0 of the first input as counted; 1 where the file leaves it open.
    per_node: (node name, op type, MACs) of each counted node, in graph order.
    uncounted: op type -> number of nodes that are not counted.
    """

    num_macs: int
    num_params: int
    size_bytes: int
    batch: int
    per_node: tuple[tuple[str, str, int], ...]
    uncounted: dict[str, int]


def count_macs(
    model: onnx.ModelProto | Path, input_shapes: dict[str, Shape] | None = None
) -> OnnxCost:
    """Count `model`'s MACs, parameters and bytes.

    `input_shapes` maps input names to whole shapes, (N, C, H, W) for images, and is needed only
    for dimensions other than the batch that the file leaves open. Raises ExportError, naming the
    input or node.
    """
    size_bytes = onnx_size_bytes(model) if isinstance(model, Path) else model.ByteSize()
    proto = load_onnx(model) if isinstance(model, Path) else model
    num_params = _num_params(proto)
    fixed = _with_fixed_inputs(proto, input_shapes or {})
    try:
        per_node, uncounted = _count(fixed)
    except _UnknownShapeError:
        # Sizes that older exporters compute in the graph are known once they are folded.
        per_node, uncounted = _count(clean(fixed))
    first = next(iter(_real_inputs(fixed)), None)
    batch = first.type.tensor_type.shape.dim[:1] if first is not None else []
    return OnnxCost(
        num_macs=sum(macs for _, _, macs in per_node),
        num_params=num_params,
        size_bytes=size_bytes,
        batch=batch[0].dim_value if batch else 1,
        per_node=tuple(per_node),
        uncounted=dict(sorted(uncounted.items())),
    )


def _count(model: onnx.ModelProto) -> tuple[list[tuple[str, str, int]], Counter[str]]:
    shapes = _infer_shapes(model)
    per_node: list[tuple[str, str, int]] = []
    uncounted: Counter[str] = Counter()
    for node in model.graph.node:
        _refuse_nested(node)
        formula = _FORMULAS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        macs = formula(node, shapes) if formula is not None else None
        if macs is None:
            uncounted[node.op_type] += 1
        else:
            per_node.append((node.name, node.op_type, macs))
    return per_node, uncounted


def _num_params(model: onnx.ModelProto) -> int:
    constants = [
        attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    tensors = (*model.graph.initializer, *constants)
    return sum(math.prod(t.dims) for t in tensors if t.data_type in _FLOAT_TYPES)


def _real_inputs(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    """The inputs a user feeds: files of IR version 3 list their weights among the inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return (value for value in model.graph.input if value.name not in weights)


def _with_fixed_inputs(model: onnx.ModelProto, asked: dict[str, Shape]) -> onnx.ModelProto:
    """A copy whose inputs have sizes only, without the shapes found for other sizes."""
    fixed = onnx.inliner.inline_local_functions(model) if model.functions else onnx.ModelProto()
    if not model.functions:
        fixed.CopyFrom(model)
    inputs = {value.name: value for value in _real_inputs(fixed)}
    for name in asked:
        if name not in inputs:
            raise ExportError(f"the model has no input {name!r}: it has {sorted(inputs)}")
    for name, value in inputs.items():
        _fix_input(value, asked.get(name))
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return fixed


def _fix_input(value: onnx.ValueInfoProto, asked: Shape | None) -> None:
    dims = value.type.tensor_type.shape.dim
    found = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims]
    if asked is not None:
        clash = any(isinstance(f, int) and f != a for f, a in zip(found, asked, strict=False))
        if len(asked) != len(found) or clash:
            raise ExportError(
                f"input {value.name!r} is {found} in the file, which does not take {list(asked)}"
            )
    for position, dim in enumerate(dims):
        if asked is not None:
            dim.dim_value = asked[position]
        elif not dim.HasField("dim_value"):
            if position != 0:
                raise ExportError(
                    f"input {value.name!r} leaves dimension {position} open ({found}): state its "
                    f"whole size"
                )
            dim.dim_value = 1


def _infer_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the shapes of the graph disagree: {one_line(error)}") from error
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor_type = value.type.tensor_type
        dims = tensor_type.shape.dim
        if tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes.setdefault(value.name, tuple(d.dim_value for d in dims))
    return shapes


def _refuse_nested(node: onnx.NodeProto) -> None:
    graphs = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    for inner in (n for graph in graphs for n in graph.node):
        if inner.op_type in _FORMULAS:
            raise ExportError(
                f"node {node.name!r} ({node.op_type}) holds a {inner.op_type} ({inner.name!r}): "
                f"how often it runs is not known, so the MACs cannot be counted"
            )
        _refuse_nested(inner)


def _shape(name: str, node: onnx.NodeProto, shapes: dict[str, Shape]) -> Shape:
    if name not in shapes:
        raise _UnknownShapeError(
            f"node {node.name!r} ({node.op_type}): the shape of {name!r} is unknown, so its MACs "
            f"cannot be counted; export with fixed sizes other than the batch"
        )
    return shapes[name]


def _attribute(node: onnx.NodeProto, name: str, default: _T) -> _T:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _conv(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """Each output element sums C / groups x kernel products; the weight is (M, C / groups, *k)."""
    weight = _shape(node.input[1], node, shapes)
    return math.prod(_shape(node.output[0], node, shapes)) * math.prod(weight[1:])


def _conv_transpose(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """Each input element goes into M / groups x kernel sums; the weight is (C, M / groups, *k)."""
    weight = _shape(node.input[1], node, shapes)
    return math.prod(_shape(node.input[0], node, shapes)) * math.prod(weight[1:])


def _gemm(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    a = _shape(node.input[0], node, shapes)
    depth = a[0] if _attribute(node, "transA", 0) else a[1]
    return math.prod(_shape(node.output[0], node, shapes)) * depth


def _matmul(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    depth = _shape(node.input[0], node, shapes)[-1]
    return math.prod(_shape(node.output[0], node, shapes)) * depth


def _einsum(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int | None:
    """Two operands: one product for each combination of all indices. One operand: no product."""
    if len(node.input) == 1:
        return None
    if len(node.input) > 2:
        raise ExportError(
            f"node {node.name!r} (Einsum) has {len(node.input)} operands: their order decides the "
            f"MACs, so write it as products of two"
        )
    equation = _attribute(node, "equation", b"").decode().replace(" ", "")
    sizes: dict[str, int] = {}
    for name, term in zip(node.input, equation.split("->")[0].split(","), strict=True):
        shape = _shape(name, node, shapes)
        head, dots, tail = term.partition("...")
        spread = len(shape) - len(head) - len(tail)
        # The dimensions under an ellipsis align from the right, as in broadcasting.
        hidden = [f"...{spread - i}" for i in range(spread)] if dots else []
        for label, size in zip([*head, *hidden, *tail], shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), size)
    return math.prod(sizes.values())


def _attention(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """Q K^T and its product with V; (N, heads, L, E) or, with head counts given, (N, L, E)."""
    if len(node.input) > 4 and any(node.input[4:6]):
        raise ExportError(f"node {node.name!r} (Attention) reads a cache, which is not counted")
    query, key, value = (_shape(name, node, shapes) for name in node.input[:3])
    if len(query) == 4:
        batch, heads, length, depth = query
        return batch * heads * length * key[2] * (depth + value[3])
    heads = _attribute(node, "q_num_heads", 0)
    value_depth = value[2] // _attribute(node, "kv_num_heads", heads)
    return query[0] * query[1] * key[1] * (query[2] + heads * value_depth)


_FORMULAS: dict[str, Callable[[onnx.NodeProto, dict[str, Shape]], int | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "Attention": _attention,
}
