"""Emit torch calls into an `fx.Graph`, each tried out at once on tensors without values.

What enters: functions or modules with values as arguments. What leaves: a `Const` or a Python
number where all arguments are known, else a node with its probes.
Refused: calls that torch refuses (shapes that do not fit), results larger than any network needs.
"""

from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn

from pipeline.importers.onnx_in.arguments import (
    all_meta,
    asks_values,
    has_tensor,
    mapped,
    mapped_consts,
    mentions_node,
    nodes_in,
    probe,
    require_size,
    without_values,
    wrapped,
)
from pipeline.importers.onnx_in.errors import FOREIGN, NodeError, label, one_line
from pipeline.importers.onnx_in.names import Names, node_path, weight_path
from pipeline.importers.onnx_in.values import PROBES, Const, Items, Sequence, Value, probes_of

MAX_FOLDED_BYTES = 2**30
"""Of one constant that is computed from others at import."""
MAX_RESULT_BYTES = 2**35
"""Of one result of the run: a file may ask for any padding or repetition."""


class Emitter:
    """Collects the torch graph and what hangs on it."""

    def __init__(self) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.anchor: fx.Node | None = None
        """An input, beside whose tensor new tensors are made."""
        self._names = Names(self.root)
        self._modules: dict[tuple[Any, ...], str] = {}
        self._parameters: dict[tuple[Any, ...], nn.Parameter] = {}
        self._used: set[int] = set()  # memory that is a parameter's own
        self._held: dict[tuple[Any, ...], fx.Node] = {}
        self._kept: list[Const] = []  # so that an id in a key stays that of one object
        self._sizes: dict[tuple[fx.Node, int], int | fx.Node] = {}
        self._fixed_sizes: dict[fx.Node, tuple[int | None, ...]] = {}

    # --- inputs

    def placeholder(self, name: str, probes: tuple[Tensor, ...], fixed: bool) -> fx.Node:
        """An input; where `fixed`, its sizes that do not depend on the batch are constants."""
        node = self.graph.placeholder(self._names.argument(name))
        node.meta[PROBES] = probes
        if fixed:
            # The batch is never written down, so that a file for one image may serve for more.
            alike = [sizes[0] if len(set(sizes)) == 1 else None
                     for sizes in zip(*(probe.shape for probe in probes), strict=True)]  # fmt: skip
            self._fixed_sizes[node] = (None, *alike[1:]) if alike else ()
        self.anchor = self.anchor or node
        return node

    # --- calls

    def call(
        self, at: onnx.NodeProto, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """See `Op.call`."""
        args, kwargs = self._plain(at, args), self._plain(at, kwargs)
        if not mentions_node((args, kwargs)):
            return self._fold(at, function, args, kwargs)
        args, kwargs = self._operands(at, args), self._operands(at, kwargs)
        node = self.graph.call_function(function, args, kwargs)
        node.meta[PROBES] = self._try(at, function, args, kwargs)
        return node

    def _plain(self, at: onnx.NodeProto, value: Any) -> Any:
        """Lists of numbers as tensors."""
        if isinstance(value, Items):
            return self.tensor(at, value)
        if isinstance(value, Sequence):
            raise NodeError(f"{label(at)}: a sequence stands where a tensor is needed")
        return mapped(value, lambda item: self._plain(at, item))

    def tensor(self, at: onnx.NodeProto, value: Value) -> Const | fx.Node:
        """`value` as a tensor."""
        if isinstance(value, Sequence):
            raise NodeError(f"{label(at)}: a sequence stands where a tensor is needed")
        if not isinstance(value, Items):
            return value
        if value.is_known:
            return value.to_const()
        kwargs = {"shape": value.shape, "dtype": value.dtype}
        node: fx.Node = self.call(at, stack_numbers, (self.anchor, list(value.values)), kwargs)
        return node

    def _operands(self, at: onnx.NodeProto, value: Any) -> Any:
        """Constants as tensors that the network holds."""
        if isinstance(value, Const):
            return self.held(at, value)
        return mapped(value, lambda item: self._operands(at, item))

    def held(self, at: onnx.NodeProto, const: Const) -> fx.Node:
        """A constant as a node that reads it: a parameter if it is a float initializer."""
        key = (const.name,) if const.name else (id(const.tensor),)
        if key not in self._held:
            self._kept.append(const)
            learns = bool(const.name) and const.tensor.is_floating_point()
            tensor = const.tensor
            if learns and tensor.numel() > 1:
                tensor = self.parameter(const)
            wished = const.name or f"{node_path(at.name) or at.op_type.lower()}.constant"
            path = self._names.place_tensor(tensor, wished)
            node = self.graph.get_attr(path)
            node.meta[PROBES] = (without_values(const.tensor),)
            self._held[key] = node
        return self._held[key]

    def parameter(self, const: Const, view: str = "", tensor: Tensor | None = None) -> nn.Parameter:
        """The parameter of a constant; a matrix or kernel is one for all its uses in a `view`.

        Rows are not: exporters store equal ones once (the scales of fresh norms, for instance),
        and layers that have nothing to do with each other must not learn as one.
        """
        self._kept.append(const)
        value = const.tensor if tensor is None else tensor
        key = (const.name or id(const.tensor), view)
        if key in self._parameters and value.ndim > 1:
            return self._parameters[key]
        memory = value.untyped_storage().data_ptr()
        made = nn.Parameter(value.clone() if memory in self._used else value.contiguous())
        self._used.add(memory)
        self._parameters[key] = made
        return made

    def _fold(
        self, at: onnx.NodeProto, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        real_args, real_kwargs = mapped_consts(args), mapped_consts(kwargs)
        with torch.no_grad():
            if has_tensor((real_args, real_kwargs)):
                self._require_small(at, function, real_args, real_kwargs)
            try:
                return wrapped(function(*real_args, **real_kwargs))
            except FOREIGN as error:
                raise NodeError(f"{label(at)}: {one_line(error)}") from error

    def _require_small(
        self, at: onnx.NodeProto, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """What is folded is tried without values first: a size in the file may be anything."""
        try:
            result = function(*all_meta(args), **all_meta(kwargs))
        except FOREIGN:
            return  # values are needed, or the call is wrong: the real one tells
        require_size(at, result, MAX_FOLDED_BYTES)

    def _try(
        self,
        at: onnx.NodeProto,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Any, ...] | None:
        nodes = nodes_in((args, kwargs))
        if any(probes_of(node) is None for node in nodes):
            return None
        count = max(len(probes_of(node) or ()) for node in nodes)
        results = []
        for index in range(count):
            results.append(self._try_once(at, function, args, kwargs, index))
            if results[-1] is None:
                return None
        return tuple(results)

    def _try_once(
        self,
        at: onnx.NodeProto,
        function: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        index: int,
    ) -> Any:
        try:
            with torch.no_grad():
                result = function(*probe(args, index), **probe(kwargs, index))
        except NotImplementedError:
            return None  # torch has no shape function for it
        except FOREIGN as error:
            if asks_values(error):
                return None
            raise NodeError(f"{label(at)}: {one_line(error)}") from error
        require_size(at, result, MAX_RESULT_BYTES)
        return result

    # --- modules

    def module(
        self,
        at: onnx.NodeProto,
        module: nn.Module,
        key: tuple[Any, ...],
        weight: str,
        args: tuple[Any, ...],
        tensors: dict[str, nn.Parameter | Tensor] | None = None,
    ) -> fx.Node:
        """Call `module` (made on the meta device), which then gets `tensors` by name."""
        args = self._operands(at, self._plain(at, args))
        probes = self._try(at, module, args, {})
        if key not in self._modules:
            for name, tensor in (tensors or {}).items():
                if isinstance(tensor, nn.Parameter):
                    module.register_parameter(name, tensor)
                else:
                    module.register_buffer(name, tensor)
            wished = weight_path(weight) or node_path(at.name) or at.op_type.lower()
            self._modules[key] = self._names.place_module(module.eval(), wished)
        node = self.graph.call_module(self._modules[key], args)
        node.meta[PROBES] = probes
        return node

    # --- sizes

    def size(self, at: onnx.NodeProto, value: Value, dim: int) -> int | fx.Node:
        """The size of one dimension: known for constants and for inputs that fix it."""
        if isinstance(value, Const):
            return value.tensor.shape[dim]
        if isinstance(value, Items):
            return value.shape[dim]
        if isinstance(value, Sequence):
            raise NodeError(f"{label(at)}: a sequence has no sizes")
        fixed = self._fixed_sizes.get(value, ())
        known = fixed[dim] if dim < len(fixed) else None
        if known is not None:
            return known
        if (value, dim) not in self._sizes:
            node = self.graph.call_method("size", (value, dim))
            probes = probes_of(value)
            node.meta[PROBES] = probes and tuple(probe.shape[dim] for probe in probes)
            self._sizes[value, dim] = node
        return self._sizes[value, dim]


def stack_numbers(
    anchor: Tensor, values: list[Any], *, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Numbers as a tensor beside `anchor`; sizes stay what they are when the graph is captured."""
    made = [torch.scalar_tensor(v, dtype=dtype, device=anchor.device) for v in values]
    return made[0].reshape(shape) if len(made) == 1 else torch.stack(made).reshape(shape)
