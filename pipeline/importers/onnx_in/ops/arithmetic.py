"""Elementwise arithmetic, comparisons, logic, casts.

Numbers that come from sizes stay Python numbers, so that what is computed from a dynamic batch
stays dynamic; tensors go through torch's operators.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from pipeline.importers.onnx_in.context import Op
from pipeline.importers.onnx_in.registry import Result, importer
from pipeline.importers.onnx_in.tensors import torch_dtype
from pipeline.importers.onnx_in.values import Const, Items, Value


def single(value: float) -> float:
    """A number as float32 holds it; sizes that are symbols while a graph is captured stay so."""
    return float(np.float32(value)) if isinstance(value, int | float) else value


def scalar_divide(a: Any, b: Any) -> Any:
    """ONNX's integer division, which cuts towards zero; sizes are never negative."""
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    if isinstance(a, int) and isinstance(b, int) and (a < 0) != (b < 0):
        return -(-a // b) if b > 0 else -(a // -b)
    return a // b


def scalar_where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the condition holds, else `b`; undecided while a graph of any size is captured."""
    if isinstance(condition, torch.SymBool):
        return torch.sym_ite(condition, a, b)
    return a if condition else b


def divide(a: Any, b: Any) -> Any:
    """ONNX's Div: true division of floats, towards zero for integers."""
    whole = all(not _is_float(v) for v in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


def _is_float(value: Any) -> bool:
    return value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, float)


def power(a: Any, b: Any) -> Any:
    """ONNX's Pow: the result has the type of the base."""
    if isinstance(a, Tensor) and not a.is_floating_point() and _is_float(b):
        return torch.pow(a.double(), b).to(a.dtype)
    if isinstance(a, Tensor) and isinstance(b, Tensor) and b.dtype != a.dtype:
        return torch.pow(a, b.to(a.dtype)) if _is_float(a) else torch.pow(a, b).to(a.dtype)
    return torch.pow(a, b)


def bit_shift(a: Tensor, b: Tensor, direction: str) -> Tensor:
    """Shift of unsigned integers, which torch knows for signed ones only."""
    wide, by = a.to(torch.int64), b.to(torch.int64)
    shifted = wide << by if direction == "LEFT" else wide >> by
    return shifted.to(a.dtype)


_ON_TENSORS: dict[str, Callable[..., Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": divide, "Pow": power,
    "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge,
    "LessOrEqual": torch.le, "And": torch.logical_and, "Or": torch.logical_or,
    "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip
_ON_NUMBERS: dict[str, Callable[..., Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": scalar_divide,
    "Pow": operator.pow, "Mod": operator.mod, "Equal": operator.eq, "Greater": operator.gt,
    "Less": operator.lt, "GreaterOrEqual": operator.ge, "LessOrEqual": operator.le,
    "And": operator.and_, "Or": operator.or_, "Max": max, "Min": min,
}  # fmt: skip
_COMPARE = {"Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "And", "Or"}


def literal(op: Op, value: Value, other: Value) -> Value | float | int | bool:
    """A constant of one number as that number, where it cannot change the result's shape or type.

    Networks read better, and what is no weight does not learn.
    """
    if not isinstance(value, Const) or value.tensor.numel() != 1 or isinstance(other, Const):
        return value
    known = op.shape(other) if isinstance(other, fx.Node) else None
    fits = known is not None and len(known) >= value.tensor.ndim
    plain = value.tensor.dtype in (torch.float32, torch.int64, torch.int32, torch.bool)
    if not fits or not plain or op.dtype(other) != value.tensor.dtype:
        return value
    return value.tensor.item()


def on_items(op: Op, function: Callable[..., Any], items: list[Items], name: str) -> Result:
    """The op on each position of lists of numbers; scalars count for every position."""
    spread = np.broadcast_arrays(*(item.places for item in items))
    columns = [item.moved(places).values for item, places in zip(items, spread, strict=True)]
    # all inputs are of one type but those of Pow, whose result is of the base's, and of Where
    like = items[0 if name == "Pow" else -1]
    dtype = torch.bool if name in _COMPARE else like.dtype
    values = []
    for row in zip(*columns, strict=True):
        value = op.call(function, *row)
        if name == "Pow" and not dtype.is_floating_point:
            value = op.call(cast_number, value, dtype)
        if dtype is torch.float32:
            value = op.call(single, value)
        values.append(value)
    return Items(tuple(values), spread[0].shape, dtype)


@importer(*_ON_TENSORS)
def binary(op: Op) -> Result:
    """Two inputs, broadcast against each other."""
    name = op.node.op_type
    a, b = op.value(0), op.value(1)
    items = op.all_items() if name in _ON_NUMBERS else None
    if items is not None:
        return on_items(op, _ON_NUMBERS[name], items, name)
    if op.is_wide_unsigned(a):
        raise op.refuse(f"torch has no {name} of wide unsigned integers")
    # Python's operators take a number on either side, torch's functions on the right alone, and
    # its logic on neither.
    left = literal(op, a, b) if name in ("Add", "Sub", "Mul") else a
    right = b if name.startswith("Bitwise") or name in ("And", "Or", "Xor") else literal(op, b, a)
    return op.call(_ON_TENSORS[name], left, right)


@importer("Mod")
def mod(op: Op) -> Result:
    """The sign is that of the divisor, with fmod=1 that of the dividend."""
    items = op.all_items()
    fmod = op.attr("fmod", 0)
    if items is not None and not fmod:
        return on_items(op, operator.mod, items, "Mod")
    if op.is_wide_unsigned(op.value(0)):
        raise op.refuse("torch has no Mod of wide unsigned integers")
    function = torch.fmod if fmod else torch.remainder
    return op.call(function, op.value(0), op.value(1))


@importer("BitShift")
def shift(op: Op) -> Result:
    """Of unsigned integers."""
    return op.call(bit_shift, op.value(0), op.value(1), op.attr("direction"))


def mean_of(*tensors: Tensor) -> Tensor:
    """The mean of several tensors, broadcast against each other."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total / len(tensors)


@importer("Max", "Min", "Sum", "Mean")
def variadic(op: Op) -> Result:
    """Any number of inputs."""
    name = op.node.op_type
    items = op.all_items() if name in ("Max", "Min") else None
    if items is not None:
        return on_items(op, _ON_NUMBERS[name], items, name)
    values = [op.value(i) for i in range(len(op.inputs))]
    if name == "Mean":
        return op.call(mean_of, *values)
    function = {"Max": maximum, "Min": minimum, "Sum": operator.add}[name]
    total: Any = values[0]
    for value in values[1:]:
        total = op.call(function, total, value)
    return total


def maximum(a: Tensor, b: Tensor) -> Tensor:
    """torch.maximum, also for 16 bit unsigned integers, which torch compares nowhere."""
    return _through_int64(torch.maximum, a, b)


def minimum(a: Tensor, b: Tensor) -> Tensor:
    """torch.minimum, likewise."""
    return _through_int64(torch.minimum, a, b)


def _through_int64(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    if a.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return function(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)
    return function(a, b)


def round_up(x: Any) -> Any:
    """math.ceil, as a float; also of sizes that are symbols while a graph is captured."""
    if isinstance(x, torch.SymFloat):
        return torch.sym_float(math.ceil(x))
    return float(math.ceil(x)) if isinstance(x, float) else x


def round_down(x: Any) -> Any:
    """math.floor, as `round_up`."""
    if isinstance(x, torch.SymFloat):
        return torch.sym_float(math.floor(x))
    return float(math.floor(x)) if isinstance(x, float) else x


_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin,
    "Asinh": torch.asinh, "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil,
    "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "IsNaN": torch.isnan, "Log": torch.log, "Neg": torch.neg,
    "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Round": torch.round,
    "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Sqrt": torch.sqrt,
    "Tan": torch.tan, "Tanh": torch.tanh, "BitwiseNot": torch.bitwise_not, "Det": torch.det,
}  # fmt: skip
_UNARY_ON_NUMBERS: dict[str, Callable[..., Any]] = {
    "Ceil": round_up, "Floor": round_down, "Neg": operator.neg, "Not": operator.not_,
}  # fmt: skip


@importer(*_UNARY)
def unary(op: Op) -> Result:
    """One input."""
    name = op.node.op_type
    items = op.all_items() if name in _UNARY_ON_NUMBERS else None
    if items is not None:
        function = _UNARY_ON_NUMBERS[name]
        return op.items([op.call(function, v) for v in items[0].values], items[0])
    if op.is_wide_unsigned(op.value(0)):
        raise op.refuse(f"torch has no {name} of wide unsigned integers")
    return op.call(_UNARY[name], op.value(0))


def is_inf(x: Tensor, negative: bool, positive: bool) -> Tensor:
    """Infinite, of the signs asked for."""
    if negative and positive:
        return torch.isinf(x)
    if not negative and not positive:
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isposinf(x) if positive else torch.isneginf(x)


@importer("IsInf")
def isinf(op: Op) -> Result:
    """Attributes say which signs count."""
    negative, positive = op.attr("detect_negative", 1), op.attr("detect_positive", 1)
    return op.call(is_inf, op.value(0), bool(negative), bool(positive))


@importer("Where")
def where(op: Op) -> Result:
    """The condition broadcasts as well."""
    items = op.all_items()
    if items is not None:
        return on_items(op, scalar_where, items, "Where")
    return op.call(torch.where, op.value(0), op.value(1), op.value(2))


@importer("Identity")
def identity(op: Op) -> Result:
    """The value itself; of a weight a weight of its own, since exporters store equal ones once."""
    value = op.value(0)
    if isinstance(value, Const) and value.name:
        return Const(value.tensor, op.node.output[0])
    return value


def cast_number(value: Any, dtype: torch.dtype) -> Any:
    """A Python number in the kind that `dtype` has."""
    if dtype is torch.bool:
        return bool(value)
    if dtype.is_floating_point:
        return single(float(value)) if isinstance(value, int | float) else value * 1.0
    if isinstance(value, torch.SymFloat):
        return torch.sym_int(value)
    return int(value) if isinstance(value, int | float) else value


def cast_tensor(x: Tensor, dtype: torch.dtype) -> Tensor:
    """To another element type; floats become integers towards zero."""
    return x.to(dtype)


@importer("Cast", "CastLike")
def cast(op: Op) -> Result:
    """To the type of the attribute, or that of the second input."""
    if op.node.op_type == "CastLike":
        dtype = op.dtype(op.value(1))
    else:
        code = op.attr("to")
        if code == onnx.TensorProto.STRING:
            raise op.refuse("a cast to strings is not supported")
        dtype = op.builder.working_dtype(torch_dtype(code, f"node {op.node.name!r}"))
    value = op.value(0)
    if isinstance(value, Items) and not value.is_known:
        values = tuple(op.call(cast_number, v, dtype) for v in value.values)
        return Items(values, value.shape, dtype)
    known = op.builder.dtype_of(value) if isinstance(value, fx.Node) else None
    if known is dtype:
        return value
    return op.call(cast_tensor, value, dtype)
