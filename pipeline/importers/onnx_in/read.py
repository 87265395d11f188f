"""Read an ONNX file without trusting it.

What enters: a path. What leaves: an `OnnxSource`: the checked graph without its weights, and the
weights as torch tensors. Model-local functions are expanded, nodes sorted.
Refused: damaged files, announced sizes that the data does not have, cycles, names given twice,
values that nothing makes, quantised graphs and those that a runtime has fused.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.inliner
import torch

from pipeline.importers.onnx_in.errors import FOREIGN, UsageError, one_line
from pipeline.importers.onnx_in.foreign import STANDARD, nodes_of, refuse_foreign
from pipeline.importers.onnx_in.sorting import sort_graph
from pipeline.importers.onnx_in.tensors import from_sparse, to_torch

MAX_FILE_BYTES = 2**31 - 1
"""protobuf's own limit for one message."""
MAX_EXPANDED_NODES = 200_000
OLDEST_OPSET = 7


@dataclass(frozen=True, kw_only=True)
class OnnxSource:
    """A checked file.

    proto: the model; its main graph's initializers are taken out, they are in `weights`.
    opset: of the standard domain.
    folder: where the external data of tensors inside of nodes lies.
    """

    proto: onnx.ModelProto
    weights: dict[str, torch.Tensor]
    opset: int
    folder: Path


def read_onnx(path: Path) -> OnnxSource:
    """Read and check the file at `path`. Raises UsageError."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise UsageError(
                f"{path}: has {size_bytes} bytes, more than protobuf can read; store its weights "
                "as external data"
            )
        proto = onnx.ModelProto.FromString(path.read_bytes())
    except FOREIGN as error:
        raise UsageError(
            f"{path}: is damaged or no ONNX file ({one_line(error)}); save or download it again"
        ) from error
    try:
        return read_proto(proto, path.parent)
    except UsageError as error:
        raise type(error)(f"{path}: {error}") from error


def read_proto(proto: onnx.ModelProto, folder: Path) -> OnnxSource:
    """Check a model in memory; it is taken apart. External data lies in `folder`.

    Raises UsageError.
    """
    try:
        return _read(proto, folder)
    except FOREIGN as error:
        raise UsageError(f"is damaged ({one_line(error)}); save or download it again") from error


def _read(proto: onnx.ModelProto, folder: Path) -> OnnxSource:
    if not proto.HasField("graph"):
        raise UsageError("holds no graph: it is damaged or no ONNX file")
    opset = _opset(proto)
    refuse_foreign(proto)
    weights = _take_weights(proto.graph, folder)
    proto = _inlined(proto)
    sort_graph(proto.graph, "the graph")
    _check(proto, weights)
    return OnnxSource(proto=proto, weights=weights, opset=opset, folder=folder)


def _opset(proto: onnx.ModelProto) -> int:
    versions = [entry.version for entry in proto.opset_import if entry.domain in STANDARD]
    newest = onnx.defs.onnx_opset_version()
    if len(versions) != 1:
        raise UsageError(f"states {len(versions)} versions of the standard opset: one is needed")
    if not OLDEST_OPSET <= versions[0] <= newest:
        raise UsageError(
            f"is of opset {versions[0]}: {OLDEST_OPSET} to {newest} can be read with onnx "
            f"{onnx.__version__}; export it anew, or convert it with onnx.version_converter"
        )
    return versions[0]


def _take_weights(graph: onnx.GraphProto, folder: Path) -> dict[str, torch.Tensor]:
    """The initializers of the main graph, which then no longer has them."""
    weights: dict[str, torch.Tensor] = {}
    dense = [(tensor.name, tensor) for tensor in graph.initializer]
    for name, tensor in dense:
        if name in weights or not name:
            raise UsageError(f"two initializers are called {name!r}: names must be distinct")
        weights[name] = to_torch(tensor, folder)
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        if name in weights or not name:
            raise UsageError(f"two initializers are called {name!r}: names must be distinct")
        weights[name] = from_sparse(sparse, folder)
    declared = {value.name: value for value in graph.input}
    for name, tensor in weights.items():
        if name in declared:
            _require_declared(declared[name], tensor)
    return weights


def _require_declared(value: onnx.ValueInfoProto, tensor: torch.Tensor) -> None:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        return
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    same = len(dims) == tensor.ndim and all(
        want is None or want == have for want, have in zip(dims, tensor.shape, strict=True)
    )
    if not same:
        raise UsageError(
            f"initializer {value.name!r} is declared {dims} and holds {list(tensor.shape)}"
        )


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its own functions written out at each call."""
    if not proto.functions:
        return proto
    bodies = {(f.domain, f.name): list(f.node) for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size_of(nodes: list[onnx.NodeProto], above: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in above or len(above) > 100:
                raise UsageError(f"its function {node.op_type!r} calls itself")
            if key in bodies and key not in sizes:
                sizes[key] = size_of(bodies[key], (*above, key))
            total += sizes.get(key, 1)
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    total += size_of(list(graph.node), above)
        return total

    if size_of(list(proto.graph.node), ()) > MAX_EXPANDED_NODES:
        raise UsageError(f"its functions expand to over {MAX_EXPANDED_NODES} nodes: not supported")
    try:
        inlined = onnx.inliner.inline_local_functions(proto)
    except FOREIGN as error:
        raise UsageError(f"its functions cannot be expanded ({one_line(error)})") from error
    # the inliner passes over functions of another opset than the file's
    left = sorted({n.op_type for n in nodes_of(inlined.graph) if n.domain not in STANDARD})
    if left:
        raise UsageError(
            f"its functions {', '.join(left)} are of another opset than the file "
            f"({_opset(proto)}): bring them to one, with onnx.version_converter or a new export"
        )
    return inlined


def _check(proto: onnx.ModelProto, weights: dict[str, torch.Tensor]) -> None:
    """onnx's own checks, on the graph with its weights as inputs: their bytes are checked already.

    Leaves the graph without initializers, its inputs as they were.
    """
    graph = proto.graph
    listed = {value.name for value in graph.input}
    num_inputs = len(graph.input)
    codes = {tensor.name: tensor.data_type for tensor in graph.initializer}
    codes |= {s.values.name: s.values.data_type for s in graph.sparse_initializer}
    del graph.initializer[:]
    del graph.sparse_initializer[:]
    for name, tensor in weights.items():
        if name not in listed:
            graph.input.append(
                onnx.helper.make_tensor_value_info(name, codes[name], list(tensor.shape))
            )
    # onnxruntime takes ports without a shape, the checker does not; inner shapes are not used here.
    bare = [value.type.tensor_type for value in (*graph.input, *graph.output) if _is_bare(value)]
    for kind in bare:
        kind.shape.SetInParent()
    del graph.value_info[:]
    try:
        onnx.checker.check_model(proto)
    except FOREIGN as error:
        raise UsageError(f"is not valid ONNX ({one_line(error, 300)})") from error
    finally:
        del graph.input[num_inputs:]
        for kind in bare:
            kind.ClearField("shape")


def _is_bare(value: onnx.ValueInfoProto) -> bool:
    is_tensor = value.type.HasField("tensor_type")
    return is_tensor and not value.type.tensor_type.HasField("shape")
