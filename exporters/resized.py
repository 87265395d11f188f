"""One ONNX graph at other widths, without exporting again.

Enters: the same network exported at a few choices of widths, as graphs that differ in sizes alone,
and those widths as a table. Leaves: a `Resizable`, which writes the graph at any row of widths:
right in every size, with the first graph's weights cut or repeated, so good for measuring time and
for nothing else. Refused: graphs that differ in more than sizes, and sizes that no width explains.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from exporters.errors import ExportError

Widths = npt.NDArray[np.int64]

_MAX_VALUES = 64
"""A tensor of more whole numbers holds data, no sizes."""


class WidthTable:
    """Widths (rows, num_widths), and which of them a column of sizes follows."""

    def __init__(self, rows: Widths) -> None:
        self.rows = rows
        self._columns: dict[tuple[int, ...], int] = {}
        for width in reversed(range(rows.shape[1])):
            self._columns[tuple(rows[:, width].tolist())] = width

    def find(self, sizes: Sequence[int]) -> tuple[int, int] | None:
        """(width, factor) such that each size is factor times that width, the smallest factor."""
        whole = tuple(sizes)
        if whole in self._columns:
            return self._columns[whole], 1
        common = math.gcd(*whole)
        for factor in (f for f in range(2, common + 1) if common % f == 0):
            width = self._columns.get(tuple(size // factor for size in whole))
            if width is not None:
                return width, factor
        return None


@dataclass(frozen=True, kw_only=True)
class _Tied:
    """Where a size stands in the graph, and the width it follows.

    place: a tensor's name, or a node's number and an attribute's name. index: the axis, or the
    position among the values (of_values), or in the attribute.
    """

    place: str | tuple[int, str]
    index: int
    of_values: bool
    width: int
    factor: int


class Resizable:
    """Made by `learn`."""

    def __init__(self, model: onnx.ModelProto, tied: Sequence[_Tied]) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        del self._model.graph.value_info[:]
        self._tied = tuple(tied)
        self._weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}

    @classmethod
    def learn(cls, models: Sequence[onnx.ModelProto], widths: Widths) -> "Resizable":
        """`widths[i]` (num_widths,) are those of `models[i]`. Raises ExportError."""
        table = WidthTable(widths)
        return cls(models[0], list(_tied(models, table)))

    @property
    def signature(self) -> str:
        """A hash of all that decides the graph's time: everything but the weights' values."""
        bare = onnx.ModelProto()
        bare.CopyFrom(self._model)
        del bare.metadata_props[:]
        for tensor in bare.graph.initializer:
            if tensor.data_type != onnx.TensorProto.INT64:
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
        content = bare.SerializeToString(deterministic=True) + repr(self._tied).encode()
        return hashlib.sha256(content).hexdigest()

    def at(self, widths: Widths) -> bytes:
        """The graph at these widths (num_widths,), serialised."""
        resized = onnx.ModelProto()
        resized.CopyFrom(self._model)
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        for tie in self._tied:
            size = int(widths[tie.width]) * tie.factor
            if isinstance(tie.place, tuple):
                number, name = tie.place
                _set_attribute(resized.graph.node[number], name, tie.index, size)
                continue
            array = arrays.get(tie.place, self._weights[tie.place])
            if tie.of_values:
                array = array.copy()
                array.reshape(-1)[tie.index] = size
            else:
                array = array.take(np.arange(size) % array.shape[tie.index], axis=tie.index)
            arrays[tie.place] = array
        for tensor in resized.graph.initializer:
            if tensor.name in arrays:
                array = np.ascontiguousarray(arrays[tensor.name])
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return resized.SerializeToString()


def _set_attribute(node: onnx.NodeProto, name: str, index: int, size: int) -> None:
    attribute = next(a for a in node.attribute if a.name == name)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = size
    else:
        attribute.ints[index] = size


def _tied(models: Sequence[onnx.ModelProto], table: WidthTable) -> Iterator[_Tied]:
    first = models[0]
    kinds = [[node.op_type for node in model.graph.node] for model in models]
    if any(other != kinds[0] for other in kinds[1:]):
        raise ExportError("the pruned network exports to other nodes: its time cannot be modelled")
    stored = [{t.name: t for t in model.graph.initializer} for model in models]
    seen: set[str] = set()
    for number in range(len(first.graph.node)):
        nodes = [model.graph.node[number] for model in models]
        yield from _tied_attributes(number, nodes, table)
        for names in zip(*(node.input for node in nodes), strict=True):
            if names[0] in stored[0] and names[0] not in seen:
                seen.add(names[0])
                tensors = [own[name] for own, name in zip(stored, names, strict=True)]
                yield from _tied_tensor(names[0], tensors, table)


def _tied_attributes(
    number: int, nodes: Sequence[onnx.NodeProto], table: WidthTable
) -> Iterator[_Tied]:
    for attribute in nodes[0].attribute:
        if attribute.type not in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS):
            continue
        found = [next(a for a in node.attribute if a.name == attribute.name) for node in nodes]
        values = [a.ints if a.ints else [a.i] for a in found]
        for index, sizes in enumerate(zip(*values, strict=True)):
            yield from _tie((number, attribute.name), index, sizes, table, of_values=False)


def _tied_tensor(
    name: str, tensors: Sequence[onnx.TensorProto], table: WidthTable
) -> Iterator[_Tied]:
    for axis, sizes in enumerate(zip(*(t.dims for t in tensors), strict=True)):
        yield from _tie(name, axis, sizes, table, of_values=False)
    counts = {math.prod(t.dims) for t in tensors}
    if tensors[0].data_type == onnx.TensorProto.INT64 and max(counts) <= _MAX_VALUES:
        if len(counts) > 1:
            raise ExportError(f"the length of {name!r} follows a width: it cannot be resized")
        values = [numpy_helper.to_array(t).reshape(-1).tolist() for t in tensors]
        for index, sizes in enumerate(zip(*values, strict=True)):
            yield from _tie(name, index, sizes, table, of_values=True)


def _tie(
    place: str | tuple[int, str],
    index: int,
    sizes: Sequence[int],
    table: WidthTable,
    *,
    of_values: bool,
) -> Iterator[_Tied]:
    if len(set(sizes)) == 1:
        return
    found = table.find(sizes)
    if found is None:
        raise ExportError(
            f"sizes {list(sizes)} of {place!r} follow no width of the network: its time cannot be "
            f"modelled, give --target-flops instead"
        )
    width, factor = found
    yield _Tied(place=place, index=index, of_values=of_values, width=width, factor=factor)
