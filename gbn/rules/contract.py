"""Contractions: convolutions and matrix products sum over channels and issue new ones.

The summed channels of the input are those of the weight's input dimension; the output's channels
are those of the weight's output dimension. MACs are counted here: output positions times the
surviving sizes of both.
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

from gbn.ids import Rows
from gbn.rules.base import (
    Dead,
    Info,
    MacRecord,
    OpCall,
    aten,
    fixed,
    join_dead,
    register_rule,
    stack,
    vanishes,
)


@register_rule(aten.convolution, aten._convolution)
def _convolution(call: OpCall) -> None:
    x, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    x_info, w = call.info(x), call.info(weight)
    batched = x.ndim == weight.ndim
    channel = 1 if batched else 0
    into, out_of = _ends(call, w, weight, transposed, groups)
    depthwise = weight.shape[:2] == (groups, 1)
    _consume(call, x_info, channel, into, None if depthwise else (w, 0 if transposed else 1))
    call.freeze(w, range(2, weight.ndim), "is a kernel dimension")
    call.freeze(x_info, range(channel + 1, x.ndim), "is a dimension that the kernel slides along")
    ids = {channel: out_of}
    if 0 in x_info.ids and batched:
        ids[0] = x_info.ids[0]
    _issue(call, ids, channel, w, bias, x_info.dead)
    if depthwise and bias is None and vanishes(x_info.dead):
        call.set(Info(ids, x_info.dead))  # a zero channel stays zero whatever the weight is
    spatial = x.shape[channel + 1 :] if transposed else call.out.shape[channel + 1 :]
    constant = (x.shape[0] if batched else 1) * math.prod(spatial) * math.prod(weight.shape[2:])
    call.facts.macs.append(
        MacRecord(
            call.name,
            call.module,
            constant,
            tuple(w.ids.get(d, fixed(weight.shape[d])) for d in (0, 1)),
        )
    )


def _ends(
    call: OpCall, w: Info, weight: Tensor, transposed: bool, groups: int
) -> tuple[Rows, Rows]:
    """Ids that the input's and the output's channels have by the weight."""
    dim0 = w.ids.get(0, fixed(weight.shape[0]))
    dim1 = w.ids.get(1, fixed(weight.shape[1]))
    if groups == 1:
        return (dim0, dim1) if transposed else (dim1, dim0)
    # Grouped: channel (g, i) survives if group g and member i of every group survive.
    group = call.fresh(groups)
    call.sized(group, "groups")
    inner = weight.shape[0] // groups
    own = [np.repeat(group, inner, axis=1)]
    if inner > 1:
        own.append(np.tile(call.fresh(inner), groups))
    call.tie(dim0, stack(own))
    if transposed and inner == weight.shape[1] == 1:
        return dim0, dim0
    if transposed and inner == 1:
        # (g, m) is channel m of group g: all of a group go together, the multiplier stays
        call.facts.space.freeze(dim1, "is the multiplier of a depthwise convolution")
        return dim0, np.repeat(dim0, weight.shape[1], axis=1)
    across = [np.repeat(group, weight.shape[1], axis=1)]
    if weight.shape[1] > 1:
        across.append(np.tile(dim1, groups))
    else:
        call.facts.space.freeze(dim1, "is the only input channel of each group")
    return (dim0, stack(across)) if transposed else (stack(across), dim0)


def _consume(
    call: OpCall, info: Info, dim: int, rows: Rows, weight: tuple[Info, int] | None
) -> None:
    """Channels `rows` are summed over here: what a dead one holds must not reach a sum.

    It holds zero, or the `weight` (its ids, and the dim that is summed) gets the gate that
    multiplies it by zero. Without weight each channel goes its own way and nothing is summed.
    """
    own = info.ids.get(dim)
    call.tie(fixed(rows.shape[1]) if own is None else own, rows)
    if own is None or weight is None or call.facts.space.stays(own):
        return
    w, summed = weight
    if _may_vanish(info.dead) and not vanishes(info.dead):
        if _gate_input(call, w, w.ids.get(summed)):
            return
        if vanishes(w.dead):
            call.gate(w.dead)  # a computed weight, zero where its own channels are removed
            return
    value = call.gate(info.dead)
    if value != 0.0:
        told = "an unknown value" if value is None else f"{value:g}"
        call.freeze(info, [dim], f"a removed channel would arrive as {told}, not zero,")


def _gate_input(call: OpCall, weight: Info, rows: Rows | None) -> bool:
    """Gate a weight along its input channels `rows`; False if it is not a parameter itself."""
    block = None if rows is None else call.facts.space.block_start(rows)
    raw = weight.dead
    if block is None or not isinstance(raw, frozenset) or block not in raw:
        return False
    if len(call.facts.space.owners(raw)) != 1:
        return False
    call.facts.input_gates.add(block)
    return True


def _may_vanish(dead: Dead) -> bool:
    """Zero times it is zero: it is not known to be infinite or no number."""
    return not isinstance(dead, float) or math.isfinite(dead)


def _issue(
    call: OpCall, ids: dict[int, Rows], channel: int, w: Info, bias: Any, before: Dead
) -> None:
    """Set the output's ids; its dead channels are zero once the weight (and bias) are gated.

    What is removed along other dimensions held `before`: zeros stay zeros but for the bias.
    """
    space = call.facts.space
    block = space.block_start(_once(ids[channel]))
    gateable = block is not None and vanishes(w.dead)
    dead: Dead = frozenset((block,)) if gateable and block is not None else None
    if block is not None:
        call.facts.produced[block] = call.module
    if isinstance(bias, Tensor) and (bias.ndim == 0 or bias.shape[-1] != ids[channel].shape[1]):
        dead = None  # one number is added to all
    elif isinstance(bias, Tensor):
        b = call.info(bias)
        call.tie(ids[channel], b.ids.get(bias.ndim - 1, fixed(bias.shape[-1])))
        both = isinstance(dead, frozenset) and isinstance(b.dead, frozenset)
        dead = dead | b.dead if both else None  # type: ignore[operator]
    if any(d != channel and not space.stays(rows) for d, rows in ids.items()):
        dead = None if isinstance(bias, Tensor) else join_dead([dead, before])
    call.set(Info(ids, dead))


def _once(rows: Rows) -> Rows:
    """Ids of which each is repeated equally often, without the repetitions."""
    if len(rows) > 1 or not rows.size:
        return rows
    times = int((rows[0] == rows[0, 0]).sum())
    single = rows[:, ::times]
    return single if np.array_equal(np.repeat(single, times, axis=1), rows) else rows


@register_rule(aten.addmm, aten.mm, aten.addbmm, aten.linear)
def _matrix_product(call: OpCall) -> None:
    packet = call.func.overloadpacket
    if packet is aten.addbmm:
        for tensor in call.inputs():
            call.freeze(call.info(tensor))
        return
    bias = call.args[0] if packet is aten.addmm else None
    x, weight = call.args[1:3] if packet is aten.addmm else call.args[:2]
    if packet is aten.linear:
        bias = call.arg(2, "bias")
        _product(call, x, weight, (weight.ndim - 1, 0), bias)
    else:
        _product(call, x, weight, (0, 1), bias)


@register_rule(aten.bmm, aten.baddbmm, aten.matmul)
def _batched_product(call: OpCall) -> None:
    if call.func.overloadpacket is aten.baddbmm:
        _product(call, call.args[1], call.args[2], (-2, -1), call.args[0])
    else:
        _product(call, call.args[0], call.args[1], (-2, -1), None)


@register_rule(aten.mv, aten.dot)
def _vector_product(call: OpCall) -> None:
    for tensor in call.inputs():
        call.freeze(call.info(tensor), why="is multiplied with a vector")
    call.set(Info())


def _product(call: OpCall, x: Tensor, y: Tensor, dims: tuple[int, int], bias: Any) -> None:
    """x (.., m, k) times y; `dims` are the dims of y that hold k and n."""
    k, n = dims[0] % y.ndim, dims[1] % y.ndim
    a, b = call.info(x), call.info(y)
    last = x.ndim - 1
    inner = _contract(call, (a, x.shape[last], last), (b, y.shape[k], k))
    ids: dict[int, Rows] = {}
    for dim in range(last):
        own = a.ids.get(dim)
        other = b.ids.get(dim) if y.ndim == x.ndim and dim < last - 1 else None
        met = own if other is None else other if own is None else own
        if own is not None and other is not None:
            call.tie(own, other)
        elif met is not None and y.ndim == x.ndim and dim < last - 1:
            call.tie(met, fixed(met.shape[1]))
        if met is not None:
            ids[dim] = met
    out_rows = b.ids.get(n)
    loops = [ids.get(d, fixed(x.shape[d])) for d in range(last)] + [inner]
    loops.append(fixed(y.shape[n]) if out_rows is None else out_rows)
    _count(call, loops)
    if out_rows is not None:
        ids[last] = out_rows
    if out_rows is not None and _is_weight(call, b, out_rows):
        _issue(call, ids, last, b, bias, a.dead)
        return
    dead = _dead_product(call, (a, x.ndim), (b, y.ndim), ids)
    if isinstance(bias, Tensor):
        shared = call.info(bias)
        call.freeze(shared, why="is added to a computed product")
        dead = None
    call.set(Info(ids, dead))


def _dead_product(
    call: OpCall, left: tuple[Info, int], right: tuple[Info, int], ids: dict[int, Rows]
) -> Dead:
    """What removed positions of a product hold: zero where the operand that has them holds it."""
    (a, rank), (b, other) = left, right
    along = []
    for dim, rows in ids.items():
        if call.facts.space.stays(rows):
            continue
        mine = dim < rank - 1 and dim in a.ids
        shared = dim < rank - 2 and other == rank and dim in b.ids
        values = ([a.dead] if mine else []) + ([b.dead] if shared or dim == rank - 1 else [])
        value = values[0] if len(values) == 1 else _either_zero(*values)
        along.append(value if vanishes(value) else None)
    return join_dead(along) if along else None


def _either_zero(a: Dead, b: Dead) -> Dead:
    if a == 0.0 or b == 0.0:
        return 0.0
    raw = [value for value in (b, a) if isinstance(value, frozenset)]
    return raw[0] if raw else None


def _contract(call: OpCall, a: tuple[Info, int, int], b: tuple[Info, int, int]) -> Rows:
    """Tie the summed dimension; one operand with zeros at dead channels is enough."""
    (x, size, dim), (y, _, other) = a, b
    left, right = x.ids.get(dim), y.ids.get(other)
    if left is None and right is None:
        return fixed(size)
    call.tie(fixed(size) if left is None else left, fixed(size) if right is None else right)
    # A weight's own values do not count as gated: then a constant would vanish unseen.
    sides = [(i, rows, _is_weight(call, i, rows)) for i, rows in ((x, left), (y, right))]
    values = [info.dead for info, _, is_weight in sides if not is_weight]
    dead = _either_zero(*values) if len(values) == 2 else values[0] if values else None
    if len(values) == 1 and _may_vanish(dead) and not vanishes(dead):
        dead = 0.0 if any(w and _gate_input(call, i, r) for i, r, w in sides) else dead
    if call.gate(dead) != 0.0:
        call.freeze(x, [dim], "a removed channel would not arrive as zero")
        call.freeze(y, [other], "a removed channel would not arrive as zero")
    return left if left is not None else fixed(size)


def _is_weight(call: OpCall, info: Info, rows: Rows | None) -> bool:
    """A parameter itself, however transposed: all dims of one tensor are still to be gated.

    An activation that a layer with this weight wrote waits for the gates of its output alone, a
    sum of parameters for those of several tensors.
    """
    block = None if rows is None else call.facts.space.block_start(rows)
    if block is None or not isinstance(info.dead, frozenset) or block not in info.dead:
        return False
    return len(info.dead) > 1 and len(call.facts.space.owners(info.dead)) == 1


def _count(call: OpCall, loops: list[Rows]) -> None:
    constant = 1
    rows = []
    for loop in loops:
        if (loop > 0).any():
            rows.append(loop)
        else:
            constant *= loop.shape[1]
    call.facts.macs.append(MacRecord(call.name, call.module, constant, tuple(rows)))
