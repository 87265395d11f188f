"""Walk a checked ONNX graph and build the torch network of it.

What enters: an `OnnxSource` and the sizes of the inputs to try. What leaves: a `fx.GraphModule` in
eval mode, and notes of what was done beyond the plain reading.
Refused, all at once: ops without an importer. Refused one at a time: nodes that do not fit.
"""

from collections import Counter, defaultdict
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.emit import Emitter
from pipeline.importers.onnx_in.errors import FOREIGN, NodeError, UsageError, label, one_line
from pipeline.importers.onnx_in.expansion import definition_of, has_definition
from pipeline.importers.onnx_in.foreign import nodes_of
from pipeline.importers.onnx_in.ops import find_importer
from pipeline.importers.onnx_in.read import OnnxSource
from pipeline.importers.onnx_in.values import Const, Items, Sequence, Value, probes_of

MAX_STEPS = 200_000
"""Nodes imported in all, those of unrolled loops counted each time."""
_HALVES = (torch.float16, torch.bfloat16)


class ImportedNetwork(fx.GraphModule):
    """A network made from an ONNX file.

    fx prints the generated code to standard error whenever a call fails; here a failure is only
    raised, as by any other module.
    """

    def recompile(self) -> Any:
        """Generate the forward anew, and leave calling it to `nn.Module`."""
        code = super().recompile()
        type(self).__call__ = nn.Module.__call__  # type: ignore[method-assign]
        return code


class Builder:
    """Imports one file; used once."""

    def __init__(self, source: OnnxSource, narrow_doubles: bool) -> None:
        self.opset = source.opset
        self.folder = source.folder
        self.notes: list[str] = []
        self.decisions: list[tuple[str, Any]] = []
        """What was taken from sizes of the run, and at which nodes."""
        self._source = source
        self._emit = Emitter()
        self._steps = 0
        self._narrow_doubles = narrow_doubles
        self._absorbed: dict[str, str] = {}
        self._left_out: frozenset[str] = frozenset()
        self._parts: dict[tuple[fx.Node, int, int], tuple[Any, ...]] = {}
        self._num_slices = Counter(
            node.input[0] for node in nodes_of(source.proto.graph) if node.op_type == "Slice"
        )
        self._lone_users = _lone_users(source.proto.graph)
        self._main = self._weights(source.weights)
        self._scopes: list[dict[str, Value]] = [self._main]

    # --- what `Op` asks for

    def call(self, at: onnx.NodeProto, function: Any, args: Any, kwargs: Any) -> Any:
        """See `Op.call`."""
        return self._emit.call(at, function, args, kwargs)

    def module(self, *args: Any, **kwargs: Any) -> fx.Node:
        """See `Emitter.module`."""
        return self._emit.module(*args, **kwargs)

    def parameter(self, const: Const, view: str = "", tensor: Tensor | None = None) -> nn.Parameter:
        """See `Emitter.parameter`."""
        return self._emit.parameter(const, view, tensor)

    def tensor(self, at: onnx.NodeProto, value: Value) -> Const | fx.Node:
        """`value` as a tensor."""
        return self._emit.tensor(at, value)

    def size(self, at: onnx.NodeProto, value: Value, dim: int) -> int | fx.Node:
        """See `Emitter.size`."""
        return self._emit.size(at, value, dim)

    def fixed(self, at: onnx.NodeProto, tensor: Tensor) -> fx.Node:
        """A tensor that the network holds and does not learn."""
        return self._emit.held(at, Const(tensor))

    def bias_after(self, node: onnx.NodeProto, width: int) -> Const | None:
        """The constant row that the only user of `node`'s result adds to it; that Add is done."""
        user = self._lone_users.get(node.output[0])
        if user is None or user.op_type != "Add" or not self._in_main_graph:
            return None
        other = user.input[1] if user.input[0] == node.output[0] else user.input[0]
        row = self._scopes[0].get(other)
        if not isinstance(row, Const) or tuple(row.tensor.shape) != (width,):
            return None
        self._absorbed[user.output[0]] = node.output[0]
        return row

    @property
    def _in_main_graph(self) -> bool:
        """Neither in a branch nor in a definition, which have names of their own."""
        return len(self._scopes) == 1 and self._scopes[0] is self._main

    def num_slices(self, node: onnx.NodeProto) -> int:
        """How many slices are cut from what `node` cuts its from."""
        return self._num_slices[node.input[0]]

    def parts_of(self, op: Op, x: fx.Node, count: int, dim: int) -> tuple[Any, ...]:
        """`x` in equal parts, made by one call for all that take one."""
        key = (x, count, dim)
        if key not in self._parts:
            self._parts[key] = op.unpack(op.call(torch.chunk, x, count, dim), count)
        return self._parts[key]

    @property
    def anchor(self) -> fx.Node:
        """A tensor of the run, beside which new ones are made."""
        assert self._emit.anchor is not None, "inputs come first"
        return self._emit.anchor

    def working_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """float32 for half precision, which cannot be trained in, and for a double network."""
        narrowed = dtype in _HALVES or (dtype is torch.float64 and self._narrow_doubles)
        return torch.float32 if narrowed else dtype

    def note(self, text: str) -> None:
        """Something to tell the user, once."""
        if text not in self.notes:
            self.notes.append(text)

    # --- the walk

    def _weights(self, weights: dict[str, Tensor]) -> dict[str, Value]:
        converted = Counter(
            str(t.dtype).removeprefix("torch.")
            for t in weights.values()
            if self.working_dtype(t.dtype) is not t.dtype
        )
        for kind, count in converted.items():
            self.note(f"converted {count} {kind} tensors to float32")
        return {
            name: Const(tensor.to(self.working_dtype(tensor.dtype)), name)
            for name, tensor in weights.items()
        }

    def build(self, probes: dict[str, tuple[Tensor, ...]], fixed: bool) -> fx.GraphModule:
        """The network; `probes` are trial inputs by name, one for each trial size of the batch."""
        graph = self._source.proto.graph
        self._refuse_unsupported(graph)
        for name, tensors in probes.items():
            node = self._emit.placeholder(name, tensors, fixed)
            self._scopes[0][name] = self._widened(node, tensors[0].dtype)
        self.run_nodes(graph)
        outputs = [self._output(value.name) for value in graph.output]
        self._emit.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        return self._finished()

    def _widened(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        """Half-precision inputs are computed with in float32, as the weights are."""
        wider = self.working_dtype(dtype)
        if wider is dtype:
            return node
        at = onnx.NodeProto(op_type="Input", name=str(node.target))
        widened: fx.Node = self.call(at, Tensor.to, (node, wider), {})
        return widened

    def _refuse_unsupported(self, graph: onnx.GraphProto) -> None:
        missing: defaultdict[str, list[str]] = defaultdict(list)
        for node in nodes_of(graph):
            known = find_importer(node.op_type, self.opset) is not None
            if not known and not has_definition(node.op_type, self.opset):
                missing[node.op_type].append(node.name or ", ".join(node.output))
        if missing:
            listed = "; ".join(
                f"{len(names)} {op}-{_version(op, self.opset)} ({', '.join(names[:3])}"
                f"{', …' if len(names) > 3 else ''})"
                for op, names in sorted(missing.items())
            )
            raise UsageError(f"ops that are not supported in opset {self.opset}: {listed}")

    def run_nodes(self, graph: onnx.GraphProto) -> None:
        """Import the nodes of `graph` into the innermost scope."""
        for node in graph.node:
            self._count(node)
            self._run_node(node)

    def _run_node(self, node: onnx.NodeProto) -> None:
        if node.output and node.output[0] in self._absorbed and self._in_main_graph:
            self._scopes[-1][node.output[0]] = self.lookup(self._absorbed[node.output[0]])
            return
        import_op = find_importer(node.op_type, self.opset) or self._by_definition
        inputs = tuple(self._input(name) for name in node.input)
        try:
            results = import_op(Op(self, node, inputs))
        except UsageError:
            raise
        except FOREIGN as error:
            raise NodeError(f"{label(node)}: {one_line(error)}") from error
        for name, result in zip(
            node.output, results if isinstance(results, tuple) else (results,), strict=False
        ):
            if name and result is not None:
                self._scopes[-1][name] = result

    def _input(self, name: str) -> Value | None:
        if name and len(self._scopes) == 1 and name in self._left_out:
            return None
        return self.lookup(name) if name else None

    def _by_definition(self, op: Op) -> tuple[Value | None, ...]:
        """A node as the standard defines it by others."""
        definition = definition_of(op)
        scope: dict[str, Value] = {
            name: value
            for name, value in zip(definition.inputs, op.inputs, strict=False)
            if value is not None
        }
        scopes, opset, left_out = self._scopes, self.opset, self._left_out
        self._scopes, self.opset = [scope], definition.opset
        self._left_out = frozenset(definition.inputs) - set(scope)
        try:
            for node in definition.nodes:
                self._count(node)
                self._run_node(node)
            return tuple(self._scopes[0].get(name) for name in definition.outputs)
        finally:
            self._scopes, self.opset, self._left_out = scopes, opset, left_out

    def _count(self, node: onnx.NodeProto) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise NodeError(f"{label(node)}: its loops unroll to over {MAX_STEPS} nodes")

    def lookup(self, name: str) -> Value:
        """The value of that name, in the innermost graph that has it."""
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        raise NodeError(f"the value {name!r} is used before it is made, or is an output that its "
                        "node does not give here")  # fmt: skip

    def run_subgraph(self, graph: onnx.GraphProto, inputs: dict[str, Value]) -> tuple[Value, ...]:
        """Import a graph inside of a node in a scope of its own; its outputs."""
        scope = dict(inputs)
        for tensor in graph.initializer:
            scope[tensor.name] = self.constant(tensor)
        self._scopes.append(scope)
        try:
            self.run_nodes(graph)
            return tuple(self.lookup(value.name) for value in graph.output)
        finally:
            self._scopes.pop()

    def constant(self, tensor: onnx.TensorProto) -> Const:
        """A tensor inside of a node, in the type that is worked with."""
        from pipeline.importers.onnx_in.tensors import to_torch

        found = to_torch(tensor, self.folder)
        return Const(found.to(self.working_dtype(found.dtype)))

    def _output(self, name: str) -> fx.Node:
        at = onnx.NodeProto(op_type="Output", name=name)
        value = self.lookup(name)
        if isinstance(value, Sequence):
            raise NodeError(f"output {name!r} is a sequence: only tensors are supported")
        tensor = self.tensor(at, value) if isinstance(value, Items) else value
        return self._emit.held(at, tensor) if isinstance(tensor, Const) else tensor

    def dtype_of(self, node: fx.Node) -> torch.dtype | None:
        """The element type of a tensor of the run."""
        probes = probes_of(node)
        first = probes[0] if probes else None
        return first.dtype if isinstance(first, Tensor) else None

    def _finished(self) -> fx.GraphModule:
        graph = self._emit.graph
        # No call here does anything but give its result. (fx's own cleaning wants a module first,
        # which would take over what only dead nodes use.)
        for node in reversed(list(graph.nodes)):
            if not node.users and node.op not in ("placeholder", "output"):
                graph.erase_node(node)
        return ImportedNetwork(self._emit.root, graph, "ImportedNetwork").eval()


def _lone_users(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Value name -> the one node of the graph itself that reads it, where there is no other use.

    Branches count as uses: what they read must be there.
    """
    num_uses = Counter(name for node in nodes_of(graph) for name in node.input)
    num_uses.update(value.name for value in graph.output)
    return {name: node for node in graph.node for name in node.input if num_uses[name] == 1}


def _version(op: str, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(op, opset, "").since_version
    except onnx.defs.SchemaError:
        return "?"
