"""Elementwise ops: every output position depends on the inputs' values at that position alone.

Tensors that meet position by position share their channels; a broadcast dimension has none.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from gbn.ids import Rows
from gbn.rules.base import (
    NOT_FINITE,
    Dead,
    Info,
    OpCall,
    Raw,
    aten,
    fixed,
    join_dead,
    register_rule,
    vanishes,
)

_PRODUCTS = {aten.mul, aten.mul_}
_QUOTIENTS = {aten.div, aten.div_}
_SLOPES = {aten.prelu, aten._prelu_kernel}


def is_elementwise(func: Any) -> bool:
    """PyTorch itself says so: the op carries the tag `pointwise`."""
    return torch.Tag.pointwise in func.tags


@register_rule(
    # elementwise, but without the tag
    aten.hardswish_,
    aten.hardswish,
    aten.hardtanh,
    aten.hardtanh_,
    aten.hardsigmoid_,
    aten.relu6_,
    aten.elu_,
    aten.leaky_relu_,
    aten.celu_,
    aten.selu_,
    aten.threshold_,
    aten.softplus,
    aten.log_sigmoid_forward,
    aten.rrelu_with_noise,
    aten.prelu,
    aten._prelu_kernel,
    aten.masked_fill,
    aten.masked_fill_,
    aten.clamp_,
    aten.nan_to_num_,
    aten.mish_,
)
def elementwise(call: OpCall) -> None:
    """Unite ids position by position, aligned from the last dimension."""
    operands = [(tensor, call.info(tensor)) for tensor in call.inputs()]
    for out in call.outputs():
        ids = {
            dim: rows
            for dim in range(out.ndim)
            if (rows := _meet(call, operands, out, dim)) is not None
        }
        constant = bool(operands) and all(info.constant for _, info in operands)
        call.store(out, Info(ids, dead_value(call, operands, out), constant))


Operand = tuple[Tensor, Info]


def _meet(call: OpCall, operands: list[Operand], out: Tensor, dim: int) -> Rows | None:
    size = out.shape[dim]
    found: Rows | None = None
    meets_fixed = False
    for tensor, info in operands:
        own = dim - (out.ndim - tensor.ndim)
        if own < 0 or tensor.shape[own] != size:
            if own >= 0 and tensor.shape[own] != 1:
                call.freeze(info, [own], "comes out in another size")
            continue  # broadcast here: says nothing about this dimension
        rows = info.ids.get(own)
        if rows is None:
            meets_fixed = True
        elif found is None:
            found = rows
        else:
            call.tie(found, rows)
            # a plain id names a channel more directly than a product of ids
            found = min(found, rows, key=len)
    if found is not None and meets_fixed and size > 1:
        call.tie(found, fixed(size))
    return found


def dead_value(call: OpCall, operands: list[Operand], out: Tensor) -> Dead:
    """Value of removed channels after the op, from their values before it.

    Taken along each dimension by itself: what an operand holds at its own removed channels says
    nothing about those of another operand that it is broadcast over.
    """
    along: dict[tuple[Dead, ...], None] = {}
    for dim in range(out.ndim):
        seen = [_value_along(call, operand, out, dim) for operand in operands]
        if any(covers for covers, _ in seen):
            along[tuple(value for _, value in seen)] = None
    if not along:  # constants alone
        along[tuple(_constant_value(info) for _, info in operands)] = None
    return join_dead([_combine(call, list(values)) for values in along])


def _value_along(call: OpCall, operand: Operand, out: Tensor, dim: int) -> tuple[bool, Dead]:
    """Whether the operand has removable channels on this dimension of `out`, its value there."""
    tensor, info = operand
    own = dim - (out.ndim - tensor.ndim)
    rows = info.ids.get(own)
    aligned = rows is not None and out.shape[dim] > 1 and tensor.shape[own] == out.shape[dim]
    if aligned and rows is not None and not call.facts.space.stays(rows):
        return True, info.dead
    return False, _constant_value(info)


def _constant_value(info: Info) -> float | None:
    """The value of a constant that the forward made, the same at each position."""
    return info.dead if info.constant and isinstance(info.dead, float) else None


def _combine(call: OpCall, dead: list[Dead]) -> Dead:
    packet = call.func.overloadpacket
    if packet in _PRODUCTS and len(dead) > 1:
        return _product(dead)
    if packet in _QUOTIENTS and any(map(vanishes, dead[1:])):
        return NOT_FINITE
    if packet in _QUOTIENTS | _SLOPES:  # 0 / y and 0 * slope are 0 whatever y and the slope are
        return dead[0] if vanishes(dead[0]) else None
    if any(value is None for value in dead):
        return None
    numbers = [0.0 if isinstance(value, frozenset) else value for value in dead]
    result = _apply(call, numbers)
    raw: Raw = frozenset().union(*(value for value in dead if isinstance(value, frozenset)))
    if not raw:
        return result
    if result == 0.0:
        return raw
    call.gate(raw)
    return result


def _product(dead: list[Dead]) -> Dead:
    if any(isinstance(value, float) and not math.isfinite(value) for value in dead):
        return NOT_FINITE
    if any(value == 0.0 for value in dead):
        return 0.0
    for value in dead:
        if isinstance(value, frozenset):
            return value
    if any(value is None for value in dead):
        return None
    return functools.reduce(lambda a, b: a * b, [float(v) for v in dead])  # type: ignore[arg-type]


_APPLIED: dict[Any, float | None] = {}  # relu of 0 and the like, which each block asks again


def _apply(call: OpCall, numbers: list[Any]) -> float | None:
    """Run the op itself on the numbers: its other arguments (slope, bounds) are what they are."""
    told = tuple("tensor" if isinstance(arg, Tensor) else arg for arg in call.args)
    try:
        key = (call.func, tuple(numbers), told, tuple(call.kwargs.items()))
        if key not in _APPLIED:
            _APPLIED[key] = _applied(call, numbers)
        return _APPLIED[key]
    except TypeError:  # an argument that has no hash
        return _applied(call, numbers)


def _applied(call: OpCall, numbers: list[Any]) -> float | None:
    values = iter(numbers)

    def swap(arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return torch.tensor([next(values)], dtype=torch.float64)
        return type(arg)(swap(a) for a in arg) if isinstance(arg, tuple | list) else arg

    args = swap(call.args)
    kwargs = {key: swap(value) for key, value in call.kwargs.items()}
    try:
        result = call.func(*args, **kwargs)
    except RuntimeError:
        return None  # an op that refuses float64 scalars (bitwise, casts): not known
    if not isinstance(result, Tensor) or result.is_complex():
        return None
    return float(result)


@register_rule(
    aten.clone,
    aten.detach,
    aten.alias,
    aten.contiguous,
    aten._to_copy,
    aten.dropout,
    aten.view_as_real,
    aten.positive,
)
def _same(call: OpCall) -> None:
    info = call.info(call.args[0])
    call.set(info)
    if info.constant:
        call.store(call.out, info)


@register_rule(aten.lift_fresh, aten.lift_fresh_copy)
def _written_in_the_forward(call: OpCall) -> None:
    """`torch.tensor(...)` of Python numbers; a single one is the same in every run."""
    out = call.out
    single = out.numel() == 1 and not out.is_complex() and not out.is_meta
    call.store(out, Info(dead=float(out) if single else None, constant=single))


@register_rule(aten.glu)
def _glu(call: OpCall) -> None:
    """The first half times the sigmoid of the second: the halves are cut alike."""
    x = call.args[0]
    at = call.arg(1, "dim", -1) % x.ndim
    info = call.info(x)
    ids = dict(info.ids)
    if at in ids:
        half = x.shape[at] // 2
        ids[at] = info.ids[at][:, :half]
        call.tie(ids[at], info.ids[at][:, half:])
    keeps_zero = vanishes(info.dead)
    call.set(Info(ids, info.dead if keeps_zero else None))


@register_rule(aten.copy_, aten.copy)
def _copy(call: OpCall) -> None:
    source, target = call.info(call.args[1]), call.info(call.args[0])
    shift = call.args[0].ndim - call.args[1].ndim
    for dim, rows in source.ids.items():
        own = target.ids.get(dim + shift)
        if own is not None and own.shape == rows.shape:
            call.tie(rows, own)
        else:
            call.freeze(source, [dim], "written into a tensor of fixed size")
    for dim, rows in target.ids.items():
        if dim - shift not in source.ids and call.args[0].shape[dim] > 1:
            call.tie(rows, fixed(rows.shape[1]))
    call.set(Info(target.ids, None))


@register_rule(
    aten.zeros,
    aten.ones,
    aten.full,
    aten.empty,
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
    aten.scalar_tensor,
    aten.empty_like,
    aten.new_empty,
    aten.fill,
)
def _constant(call: OpCall) -> None:
    """The same value everywhere: any position may go, so each dimension gets ids of its own."""
    ids = {d: call.fresh(n) for d, n in enumerate(call.out.shape) if n > 1}
    call.store(call.out, Info(ids, _filled_with(call), True))


def _filled_with(call: OpCall) -> float | None:
    """The number that a factory op writes everywhere, from its name and arguments."""
    name = call.func.overloadpacket.__name__
    if "zero" in name or "one" in name:
        return float("one" in name)
    for position, spec in enumerate(call.func._schema.arguments):
        if spec.name in ("fill_value", "value", "s"):
            value = call.arg(position, spec.name)
            if isinstance(value, Tensor | complex):
                return None
            whole = call.out.is_floating_point() or float(value).is_integer()
            return float(value) if whole and not call.out.is_complex() else None
    return None


@register_rule(aten.fill_, aten.zero_)
def _overwrite(call: OpCall) -> None:
    """Part of a constant gets another value: its positions are no longer alike."""
    target = call.info(call.args[0])
    if call.args[0]._is_view():
        call.freeze(target, why="written into position by position")
        call.set(Info(target.ids))
    else:
        _constant(call)


@register_rule(
    aten.bernoulli,
    aten.rand,
    aten.randn,
    aten.rand_like,
    aten.randn_like,
    aten.bernoulli_,
    aten.uniform_,
    aten.normal_,
)
def _random(call: OpCall) -> None:
    """Fewer channels would draw other numbers: they meet a tensor of fixed size."""
    call.store(call.out, Info())


@register_rule(aten.arange, aten.linspace, aten.eye, aten.sym_size, aten.randperm)
def _positions(call: OpCall) -> None:
    """Values depend on the position: nothing may be removed from them."""
    for out in call.outputs():
        call.store(out, Info())
