"""Try a cut before any plan is made, by the shapes and numbers of each op alone.

A forward may have a size baked in: a view, a pad, a split, a divisor with numbers of its own. The
cut network is run without values; each op's output must have the size that the ids say, and the
numbers that an op is told must be those of the uncut run, or have followed the widths. An op that
disagrees is noted with its line of code, its result is replaced by what it should have been, and
the run goes on: one run finds what is baked in at many places.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from gbn.errors import TraceError
from gbn.expected import ALIAS, SLICE, Expected, place_of, place_of_error
from gbn.faults import Fault, OpRecord
from gbn.groups import ChannelGroups, Mask
from gbn.prune_plan import SizeChange
from gbn.rules import numbers_in, tensors_in
from gbn.rules.base import op_name
from gbn.running import FORWARD_ERRORS, WatchEnded, output_tensors, plain_eval, run_model
from gbn.shapes_only import execute, inputs_without_values, without_values
from gbn.surgery import set_sizes

_PAD = "aten.constant_pad_nd.default"
_CLONE = "aten.clone.default"  # left out where a narrower tensor is contiguous as it is
_VIEWS = {"aten.view.default", "aten._unsafe_view.default", "aten._reshape_alias.default"}
_CONVOLUTIONS = ("convolution", "_convolution")
# Ops that are told sizes, which follow the widths and show in the shape of what comes out.
_TOLD_SIZES = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "repeat", "as_strided"),
    *("split", "split_with_sizes", "unsafe_split", "chunk", "unsafe_chunk", "tensor_split"),
    *("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"),
    *("empty_strided", "new_empty_strided", "arange", "linspace", "eye", "rand", "randn"),
    *("randint", "randperm", "native_group_norm", "native_layer_norm", "rms_norm"),
    *("_fused_rms_norm", "repeat_interleave", "tril_indices", "triu_indices", "resize"),
}
_MAX_VALUES = 64


@dataclass(frozen=True)
class CutNetwork:
    """What a cut should leave of the network that the records are of."""

    groups: ChannelGroups
    alive: Mask
    records: list[OpRecord]
    returned: list[tuple[int, ...]]

    @cached_property
    def _counts(self) -> list[int]:
        counts: list[int] = self.groups.counts(self.alive).tolist()
        return counts

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors that the cut makes smaller."""
        return {
            name: tuple(
                self._counts[dims[axis]] if axis in dims else size
                for axis, size in enumerate(self.groups.shapes[name])
            )
            for name, dims in self.groups.tensors.items()
        }

    def sizes(self) -> Iterator[SizeChange]:
        """Of all ints that follow."""
        for size in self.groups.sizes:
            yield SizeChange(
                module=size.module,
                attribute=size.attribute,
                index=size.index,
                old=size.old,
                new=self._counts[size.dim],
            )


def values_of(outputs: Iterable[Tensor]) -> tuple[object, ...]:
    """Of small tensors that have values in a run without them: what the forward wrote itself."""
    return tuple(
        None if out.is_meta or out.numel() > _MAX_VALUES or out.is_quantized else str(out.tolist())
        for out in outputs
    )


def find_shape_faults(model: nn.Module, network: CutNetwork, example_inputs: Any) -> list[Fault]:
    """Run what the cut leaves and compare; the first fault of each module, none if all agrees."""
    watch = _Watch(network)
    inputs = inputs_without_values(example_inputs)
    with without_values(model, network.shapes()), plain_eval(model):
        set_sizes(model, network.sizes())
        try:
            with watch:
                outputs = run_model(model, inputs)
        except _Stopped:
            pass
        except TraceError as error:
            if not watch.faults:
                watch.faults[""] = Fault(watch.last, None, place_of_error(error))
        else:
            whole = [tuple(output.shape) for output in output_tensors(outputs)] == network.returned
            if not watch.faults and (watch.next < len(network.records) or not whole):
                watch.faults[""] = Fault(watch.last, None, "the end of the forward")
    return list(watch.faults.values())


class _Stopped(WatchEnded):
    """The run took another way than the record: what follows cannot be compared."""


class _Watch(TorchDispatchMode):
    """Compares each op of a run without values with the record."""

    def __init__(self, network: CutNetwork) -> None:
        super().__init__()
        self._records = network.records
        self._expected = Expected(network.groups, network.alive)
        self.next = 0
        self.faults: dict[str, Fault] = {}  # by module

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in the tracer

    @property
    def last(self) -> int:
        """The op at which a run that ended here was."""
        return min(self.next, len(self._records) - 1)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op = op_name(func)
        while self.next < len(self._records) and self._left_out(op):
            self.next += 1
        index, record = self.last, self._records[self.last]
        if op == _CLONE != record.op:
            return execute(func, args, kwargs)
        if self.next >= len(self._records) or not _same_op(op, record.op):
            self._note(index, None)
            raise _Stopped
        expected = self._expected.shapes(record)
        self.next += 1
        try:
            out = execute(func, args, kwargs)
            actual = tuple(tuple(tensor.shape) for tensor in tensors_in(out))
        except FORWARD_ERRORS:
            out, actual = None, None
        if actual == expected and self._numbers_agree(record, args, kwargs, out):
            return out
        self._note(index, actual, expected)
        return _as_expected(func, record, out, expected)

    def _note(
        self,
        index: int,
        actual: tuple[tuple[int, ...], ...] | None,
        expected: tuple[tuple[int, ...], ...] = (),
    ) -> None:
        module = self._records[index].module
        stopped = actual is None and self.faults
        if module not in self.faults and not stopped:
            self.faults[module] = Fault(index, actual, place_of(sys._getframe(2)), expected)

    def _left_out(self, op: str) -> bool:
        """No op is run where the record has one."""
        record = self._records[self.next]
        return record.op == _CLONE != op or self._expected.left_out(record, op)

    def _numbers_agree(
        self, record: OpRecord, args: tuple[Any, ...], kwargs: Any, out: Any
    ) -> bool:
        """Factors, divisors and offsets; sizes show in the shape of the output."""
        if record.op == SLICE:
            return self._slice_agrees(record, numbers_in((args, kwargs)))
        if record.op == _PAD:
            return self._pad_agrees(record, args)
        now = numbers_in((args, kwargs))
        name = record.op.split(".")[1].rstrip("_")
        if name in _CONVOLUTIONS:
            return now[:-1] == record.numbers[:-1]  # the last are the groups, which may follow
        if name in _TOLD_SIZES:
            was = tuple(n for n in record.numbers if isinstance(n, float))
            now = tuple(n for n in now if isinstance(n, float))
            return now == was and _same_values(record, out)
        return now == record.numbers and _same_values(record, out)

    def _slice_agrees(self, record: OpRecord, now: tuple[int | float, ...]) -> bool:
        """The same channels are taken: those that were, less those that went."""
        (whole,) = record.inputs
        dim, was = _span(record.numbers, len(record.shapes[0]))
        if dim not in whole:
            return True
        survivors = self._expected.kept(whole[dim])
        taken = np.arange(whole[dim].shape[1])[was]
        _, cut = _span(now, len(record.shapes[0]))
        return np.array_equal(survivors[cut], taken[np.isin(taken, survivors)])

    def _pad_agrees(self, record: OpRecord, args: tuple[Any, ...]) -> bool:
        """What is put before a dimension is what was, less what went."""
        (ids,) = record.outputs
        pads, ndim = args[1], len(record.shapes[0])
        before = {ndim - 1 - k // 2: int(record.numbers[k]) for k in range(0, len(pads), 2)}
        return all(
            pads[2 * (ndim - 1 - dim)] == int((self._expected.kept(ids[dim]) < low).sum())
            for dim, low in before.items()
            if dim in ids and low > 0
        )


def _span(numbers: tuple[int | float, ...], ndim: int) -> tuple[int, slice]:
    """Dimension and positions that the arguments of a slice say."""
    dim, start, end, step = (*map(int, numbers), *(0, 0, sys.maxsize, 1)[len(numbers) :])
    return dim % ndim, slice(start, end, step)


def _same_op(op: str, recorded: str) -> bool:
    return op == recorded or (op, recorded) == (ALIAS, SLICE) or {op, recorded} <= _VIEWS


def _same_values(record: OpRecord, out: Any) -> bool:
    return values_of(tensors_in(out)) == record.values


def _as_expected(
    func: Any, record: OpRecord, out: Any, expected: tuple[tuple[int, ...], ...]
) -> Any:
    """What the op should have given; _Stopped where that cannot be put in its place."""
    if func._schema.is_mutable or (out is None and len(expected) != 1):
        raise _Stopped
    if out is None:
        return torch.empty(expected[0], dtype=record.dtypes[0], device="meta")
    made = (
        torch.empty(n, dtype=t, device="meta") for n, t in zip(expected, record.dtypes, strict=True)
    )
    return tree_map(lambda v: next(made) if isinstance(v, Tensor) else v, out)
