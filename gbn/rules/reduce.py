"""Norms, pools and reductions: values that are computed over part of a tensor.

Over dimensions without channels they pass ids on. Over channels: a sum is exact (dead channels add
zero); whatever depends on how many channels there are, or on statistics across them, freezes them.
"""

import re
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from gbn.ids import Rows
from gbn.rules.base import Dead, Info, NormGate, OpCall, aten, fixed, register_rule, vanishes


@register_rule(
    aten.native_batch_norm,
    aten._native_batch_norm_legit,
    aten.cudnn_batch_norm,
    aten._native_batch_norm_legit_no_training,
    aten._batch_norm_no_update,
    aten._batch_norm_with_update,
    aten.miopen_batch_norm,
    aten._native_batch_norm_legit_functional,
)
def _batch_norm(call: OpCall) -> None:
    """Each channel alone. γ and β are its gate: both zero, and the channel is zero."""
    x = call.args[0]
    info = call.info(x)
    ids = dict(info.ids)
    for tensor in call.args[1:5]:
        if not isinstance(tensor, Tensor):
            continue
        own = call.info(tensor).ids.get(0, fixed(tensor.shape[0]))
        if 1 in ids:
            call.tie(own, ids[1])
        else:
            call.tie(own, fixed(x.shape[1]))
    own_statistics = not any(isinstance(t, Tensor) for t in call.args[3:5])
    across = own_statistics and call.over_channels(info, [d for d in ids if d != 1])
    dead = _dead_after_own_norm(call, info) if own_statistics else _dead_after_norm(call, info)
    _set_normed(call, ids, dead if dead is not None or not across else None)


def _set_normed(call: OpCall, ids: dict[int, Rows], dead: Dead) -> None:
    """The normed tensor, then the statistics of each channel (last dim of what has any)."""
    out, *statistics = call.outputs()
    call.set(Info(ids, dead), out)
    for tensor in statistics:
        last = tensor.ndim - 1
        call.set(Info({last: ids[1]} if 1 in ids else {}), tensor)


def _dead_after_norm(call: OpCall, info: Info) -> Dead:
    """Zero once γ and β are gated. What is removed along other dimensions is shifted by β."""
    if any(dim != 1 and not call.facts.space.stays(rows) for dim, rows in info.ids.items()):
        return None
    return _gated(call, call.args[1:3]) if isinstance(call.args[1], Tensor) else None


def _dead_after_own_norm(call: OpCall, info: Info) -> Dead:
    """As above. Without γ and β, zero where each channel's own mean is subtracted from zeros.

    Along dimensions that the statistics are taken over, the reference puts zeros in the place of
    what is removed.
    """
    if any(isinstance(tensor, Tensor) for tensor in call.args[1:3]):
        return _gated(call, call.args[1:3]) if isinstance(call.args[1], Tensor) else None
    keeps_zero = vanishes(info.dead)
    return info.dead if keeps_zero else None


def _gated(call: OpCall, affine: Sequence[Tensor | None]) -> Dead:
    """γ and, if there is one, β: blocks of parameters that one gate a channel multiplies."""
    blocks = []
    for tensor in affine:
        if tensor is None:
            continue
        ids = call.info(tensor).ids.get(tensor.ndim - 1, fixed(1))
        start = call.facts.space.block_start(ids)
        if start is None:  # instance norm repeats γ and β for each sample
            start = call.facts.space.block_start(np.unique(ids)[None])
        if start is None:
            return None
        blocks.append(start)
    call.facts.norm_gates.append(NormGate(call.module, tuple(blocks)))
    return frozenset(blocks)


@register_rule(aten.native_layer_norm, aten.rms_norm, aten._fused_rms_norm)
def _layer_norm(call: OpCall) -> None:
    x, shape = call.args[0], call.args[1]
    info = call.info(x)
    dims = range(x.ndim - len(shape), x.ndim)
    across = call.over_channels(info, dims)
    for dim in dims:
        if dim in info.ids:
            call.sized(info.ids[dim], "normalized_shape")
    for tensor in call.args[2:4]:
        if isinstance(tensor, Tensor):
            own = call.info(tensor)
            for dim, rows in own.ids.items():
                call.tie(rows, info.ids.get(dim + x.ndim - len(shape), fixed(rows.shape[1])))
    others = {d: rows for d, rows in info.ids.items() if d not in dims}
    # Only where γ is a vector over the removed dimension does its gate reach all that is removed.
    gateable = (
        across and len(shape) == 1 and all(call.facts.space.stays(r) for r in others.values())
    )
    affine = [call.arg(number, name) for number, name in ((2, "weight"), (3, "bias"))]
    scaled = isinstance(affine[0], Tensor)
    dead = (
        _gated(call, [t for t in affine if isinstance(t, Tensor)]) if gateable and scaled else None
    )
    for number, out in enumerate(call.outputs()):  # then the statistics, if it gives them
        call.set(Info(others) if number else Info(info.ids, dead), out)


@register_rule(aten.native_group_norm)
def _group_norm(call: OpCall) -> None:
    x, groups = call.args[0], call.args[6]
    info = call.info(x)
    alone = groups == x.shape[1]
    across = call.over_channels(info, [d for d in info.ids if d > (1 if alone else 0)])
    if across and not alone and 1 in info.ids:
        call.sized(info.ids[1])
        _same_in_each(call, info.ids[1], groups)
    for tensor in call.args[1:3]:
        if isinstance(tensor, Tensor):
            call.tie(
                call.info(tensor).ids.get(0, fixed(x.shape[1])), info.ids.get(1, fixed(x.shape[1]))
            )
    affine = [call.arg(number, name) for number, name in ((1, "weight"), (2, "bias"))]
    only_channels = all(call.facts.space.stays(r) for d, r in info.ids.items() if d != 1)
    if alone:
        call.sized(info.ids.get(1, fixed(groups)))
        _set_normed(call, info.ids, _dead_after_own_norm(call, info) if only_channels else None)
    else:
        gateable = across and only_channels and isinstance(affine[0], Tensor)
        _set_normed(call, info.ids, _gated(call, affine) if gateable else None)


def _same_in_each(call: OpCall, rows: Rows, groups: int) -> None:
    """All groups keep equally many channels: the same offset of each goes together."""
    size = rows.shape[1] // groups
    for start in range(size, rows.shape[1], size):
        call.tie(rows[:, :size], rows[:, start : start + size])


@register_rule(
    aten.max_pool2d_with_indices,
    aten.max_pool3d_with_indices,
    aten.avg_pool1d,
    aten.avg_pool2d,
    aten.avg_pool3d,
    aten._adaptive_avg_pool2d,
    aten._adaptive_avg_pool3d,
    aten.adaptive_avg_pool1d,
    aten.adaptive_max_pool2d,
    aten.adaptive_max_pool3d,
    aten.upsample_nearest2d,
    aten.upsample_bilinear2d,
    aten.upsample_bicubic2d,
    aten._upsample_bilinear2d_aa,
    aten._upsample_bicubic2d_aa,
    aten.upsample_nearest1d,
    aten.upsample_nearest3d,
    aten.upsample_linear1d,
    aten.upsample_trilinear3d,
    aten._upsample_nearest_exact2d,
    aten.reflection_pad1d,
    aten.reflection_pad2d,
    aten.reflection_pad3d,
    aten.replication_pad1d,
    aten.replication_pad2d,
    aten.replication_pad3d,
    aten.max_pool2d,
    "torchvision::roi_align",
    "torchvision::roi_pool",
)
def _spatial(call: OpCall) -> None:
    """Each channel alone; dead zeros stay zeros (padding of a maximum is minus infinity)."""
    x = call.args[0]
    info = call.info(x)
    for other in call.args[1:]:
        call.freeze(call.info(other), why="says where to pool")
    spatial = range(x.ndim - _num_spatial(call), x.ndim)
    call.freeze(info, spatial, "is pooled or resampled")
    ids = {d: rows for d, rows in info.ids.items() if d not in spatial}
    dead = info.dead
    averages = "avg_pool" in call.name
    divides = averages and call.arg(6, "divisor_override") is not None
    if (divides or (averages and any(call.arg(3, "padding", ()) or ()))) and not (vanishes(dead)):
        dead = None
    for out in call.outputs():
        same_batch = out.shape[0] == x.shape[0]  # of regions there are as many as were found
        value = dead if out.is_floating_point() else None  # positions are no values
        call.set(Info({d: r for d, r in ids.items() if d > 0 or same_batch}, value), out)


def _num_spatial(call: OpCall) -> int:
    """The digit before the d of the op's name: pool2d, pad3d, linear1d."""
    digits = re.findall(r"(\d)d", call.name)
    return int(digits[0]) if digits else call.args[0].ndim - 2


@register_rule(
    aten.mean,
    aten.sum,
    aten.amax,
    aten.amin,
    aten.max,
    aten.min,
    aten.var,
    aten.std,
    aten.var_mean,
    aten.std_mean,
    aten.any,
    aten.all,
    aten.argmax,
    aten.argmin,
    aten.prod,
    aten.linalg_vector_norm,
    aten.norm,
    aten.logsumexp,
    aten.count_nonzero,
)
def _reduction(call: OpCall) -> None:
    x = call.args[0]
    info = call.info(x)
    dims = _reduced(call, x)
    packet = call.func.overloadpacket
    over = [d for d in dims if d in info.ids]
    dead: Dead = info.dead
    if over and packet in (aten.sum, aten.any):
        if call.gate(dead) != 0.0:
            call.freeze(info, over, "a removed channel would not add zero")
        dead = 0.0 if isinstance(dead, frozenset) or dead == 0.0 else None
    elif over and packet in _STATISTICS:
        # What is left does not depend on what is removed here; along other dimensions zeros stay.
        if call.over_channels(info, over):
            call.gate(dead)  # nothing else may read them, and scores come from gates
        dead = dead if vanishes(dead) else None
    elif over:
        call.freeze(info, over, "is reduced over channels")
    elif packet is aten.logsumexp:
        dead = None  # of n zeros it is log n
    elif packet not in (aten.mean, aten.amax, aten.amin, aten.max, aten.min):
        dead = dead if vanishes(dead) else None
    for out in call.outputs():
        kept = out.ndim == x.ndim
        left = [d for d in range(x.ndim) if d not in dims]
        ids: dict[int, Rows] = {}
        for new, d in enumerate(left):
            if d in info.ids:
                ids[d if kept else new] = info.ids[d]
        call.set(Info(ids, dead if out.dtype == x.dtype else None), out)


_STATISTICS = {
    *(aten.mean, aten.var, aten.std, aten.var_mean, aten.std_mean),
    *(aten.amax, aten.amin, aten.linalg_vector_norm, aten.norm),
}


def _reduced(call: OpCall, x: Tensor) -> set[int]:
    overload = call.func._schema
    names = [argument.name for argument in overload.arguments]
    if "dim" not in names:
        return set(range(x.ndim))
    chosen = call.arg(names.index("dim"), "dim")
    if chosen is None or chosen == []:
        return set(range(x.ndim))
    return (
        {d % x.ndim for d in ([chosen] if isinstance(chosen, int) else chosen)} if x.ndim else set()
    )


@register_rule(
    aten._softmax, aten._safe_softmax, aten._log_softmax, aten.cumsum, aten.sort, aten.topk
)
def _along(call: OpCall) -> None:
    """Along one dimension: channels there stay, others pass; zeros summed or ordered are zeros."""
    x = call.args[0]
    info = call.info(x)
    at = call.arg(2 if "topk" in call.name else 1, "dim", -1) % max(x.ndim, 1)
    call.freeze(info, [at], "is normalised or ordered over channels")
    ids = {d: rows for d, rows in info.ids.items() if d != at}
    keeps_zero = vanishes(info.dead)
    values = keeps_zero and "softmax" not in call.name
    for number, out in enumerate(call.outputs()):
        call.set(Info(ids, info.dead if values and number == 0 else None), out)
