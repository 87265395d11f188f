"""What the importer of an op sees: the node's inputs and attributes, and ways to emit torch calls.

What enters: an ONNX node and the builder. What leaves: values. Calls whose arguments are all known
are made at once, so constants fold by themselves; the others become nodes of the torch graph.
"""

import operator
from collections.abc import Sequence as AnySequence
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import fx, nn

from pipeline.importers.onnx_in.errors import NodeError, label
from pipeline.importers.onnx_in.tensors import to_torch
from pipeline.importers.onnx_in.values import (
    Const,
    Items,
    Number,
    Sequence,
    Value,
    agreed,
    probes_of,
)

if TYPE_CHECKING:
    from pipeline.importers.onnx_in.builder import Builder

_MAX_ITEMS = 64
"""Longer constants are no sizes: they stay tensors."""
_ITEM_DTYPES = (torch.int64, torch.int32, torch.float32, torch.bool)


class Op:
    """One ONNX node while it is imported."""

    def __init__(
        self, builder: "Builder", node: onnx.NodeProto, inputs: tuple[Value | None, ...]
    ) -> None:
        self.builder = builder
        self.node = node
        self.opset = builder.opset
        self.inputs = inputs
        self._attributes = {a.name: a for a in node.attribute}

    def refuse(self, reason: str) -> NodeError:
        """The error to raise where this node cannot be imported."""
        return NodeError(f"{label(self.node)}: {reason}")

    # --- attributes

    def has_attr(self, name: str) -> bool:
        """Whether the node states it."""
        return name in self._attributes

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute as int, float, str, list of these, tensor or graph."""
        found = self._attributes.get(name)
        if found is None:
            return default
        if found.ref_attr_name:
            raise self.refuse(f"attribute {name!r} refers to a function that is not there")
        value: Any = onnx.helper.get_attribute_value(found)
        if isinstance(value, onnx.TensorProto):
            return to_torch(value, self.builder.folder)
        if isinstance(value, bytes):
            return value.decode("utf-8", errors="replace")
        return value if isinstance(value, int | float | str | onnx.GraphProto) else list(value)

    def raw_attr(self, name: str) -> Any:
        """The attribute as onnx holds it."""
        return onnx.helper.get_attribute_value(self._attributes[name])

    # --- inputs

    def has(self, index: int) -> bool:
        """Whether an input is there; optional ones are left out at the end or have no name."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        """A required input."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise self.refuse(f"input {index} is missing")
        return value

    def maybe(self, index: int) -> Value | None:
        """An optional input."""
        return self.inputs[index] if self.has(index) else None

    def const(self, index: int) -> torch.Tensor:
        """An input that must be known at import."""
        value = self.value(index)
        if isinstance(value, Items) and value.is_known:
            value = value.to_const()
        if isinstance(value, Const):
            return value.tensor
        raise self.refuse(
            f"input {index} ({self.node.input[index]!r}) is computed while the network runs; only "
            "a constant is supported there"
        )

    def number(self, index: int, default: Any = None) -> Any:
        """A constant input of one element as a Python number."""
        if not self.has(index):
            return default
        tensor = self.const(index)
        if tensor.numel() != 1:
            raise self.refuse(f"input {index} must be one number, it has {tensor.numel()}")
        return tensor.item()

    def const_ints(self, index: int) -> list[int]:
        """A constant input of one dimension as whole numbers."""
        return [int(v) for v in self.const(index).reshape(-1).tolist()]

    def numbers(self, index: int) -> list[Number]:
        """A list of numbers, some of them perhaps known only in the run."""
        items = self.as_items(self.value(index))
        if items is not None:
            return list(items.values)
        return self._numbers_of_tensor(index)

    def _numbers_of_tensor(self, index: int) -> list[Number]:
        value = self.value(index)
        shape = self.shape(value)
        if not isinstance(value, fx.Node) or shape is None or any(d is None for d in shape):
            raise self.refuse(f"input {index} is a list whose length is not known at import")
        count = int(torch.Size([d or 0 for d in shape]).numel())
        flat = self.call(torch.Tensor.reshape, value, (-1,))
        return [self.call(_item, flat, i) for i in range(count)]

    def as_items(self, value: Value) -> Items | None:
        """`value` as a short list of numbers, None where it is none."""
        if isinstance(value, Items):
            return value
        if isinstance(value, Const):
            tensor = value.tensor
            if tensor.ndim > 2 or tensor.numel() > _MAX_ITEMS or tensor.dtype not in _ITEM_DTYPES:
                return None
            return Items(tuple(tensor.reshape(-1).tolist()), tuple(tensor.shape), tensor.dtype)
        return None

    def all_items(self) -> list[Items] | None:
        """All inputs as lists of numbers, if so they are and at least one is not known yet."""
        found = [self.as_items(value) for value in self.inputs if value is not None]
        items = [item for item in found if item is not None]
        if len(items) < len(found) or all(item.is_known for item in items):
            return None
        return items

    # --- what is known of a value

    def shape(self, value: Value) -> tuple[int | None, ...] | None:
        """Its sizes; None for those that depend on the batch, and where nothing is known."""
        if isinstance(value, Const):
            return tuple(value.tensor.shape)
        if isinstance(value, Items):
            return value.shape
        if isinstance(value, Sequence):
            raise self.refuse("a sequence stands where a tensor is needed")
        probes = probes_of(value)
        if not probes or not all(isinstance(probe, torch.Tensor) for probe in probes):
            return None
        shapes = [tuple(probe.shape) for probe in probes]
        if any(len(shape) != len(shapes[0]) for shape in shapes):
            return None
        return tuple(
            sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)
        )

    def rank(self, value: Value) -> int:
        """The number of its dimensions; refused where it depends on the run."""
        shape = self.shape(value)
        if shape is None:
            raise self.refuse("the number of dimensions of an input depends on the data")
        return len(shape)

    def dtype(self, value: Value) -> torch.dtype:
        """Its element type; refused where it is not known."""
        if isinstance(value, Const):
            return value.tensor.dtype
        if isinstance(value, Items):
            return value.dtype
        found = self.builder.dtype_of(value) if isinstance(value, fx.Node) else None
        if found is None:
            raise self.refuse("the element type of an input is not known")
        return found

    def is_wide_unsigned(self, value: Value) -> bool:
        """Whether it is of a type that torch can hold and hardly compute with."""
        dtype = self.builder.dtype_of(value) if isinstance(value, fx.Node) else self.dtype(value)
        return dtype in (torch.uint16, torch.uint32, torch.uint64)

    def axis(self, axis: int, rank: int) -> int:
        """`axis` counted from the front; refused out of range."""
        if not -rank <= axis < rank:
            raise self.refuse(f"axis {axis} is out of range for {rank} dimensions")
        return axis % rank

    def size(self, value: Value, dim: int) -> Number:
        """The size of one dimension: a number, or a node that gives it in the run."""
        return self.builder.size(self.node, value, dim)

    def known(self, number: Number) -> Any:
        """A known number, or one on which all trial sizes agree, else None; to look at."""
        return agreed(number) if isinstance(number, fx.Node) else number

    def decided(self, number: Number) -> Any:
        """As `known`, to build on: checked at other batch sizes in the end."""
        found = self.known(number)
        if not isinstance(number, fx.Node):
            return found
        self.builder.decisions.append((label(self.node), found))
        return found

    # --- emitting

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call `function`: now if all arguments are known, else in the run."""
        return self.builder.call(self.node, function, args, kwargs)

    def unpack(self, value: Any, count: int) -> tuple[Any, ...]:
        """The first `count` results of a call that gives several."""
        if isinstance(value, tuple):
            return value[:count]
        return tuple(self.call(operator.getitem, value, i) for i in range(count))

    def module(
        self,
        module: nn.Module,
        key: tuple[Any, ...],
        weight: str,
        args: tuple[Any, ...],
        tensors: dict[str, nn.Parameter | torch.Tensor] | None = None,
    ) -> fx.Node:
        """Call a module, placed under a readable name; the same key gives the same module.

        It is made on the meta device and gets its `tensors` by name. `weight` is the name of the
        initializer to call it by.
        """
        return self.builder.module(self.node, module, key, weight, args, tensors)

    def tensor(self, value: Value) -> Const | fx.Node:
        """`value` as a tensor."""
        return self.builder.tensor(self.node, value)

    def items(self, values: AnySequence[Number], like: Items) -> Items:
        """A list of numbers of the same kind as another."""
        return Items(tuple(values), like.shape, like.dtype)


def _item(flat: torch.Tensor, index: int) -> Any:
    return flat[index].item()
