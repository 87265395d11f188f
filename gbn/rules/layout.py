"""Layout ops move values without changing them: they are executed on the ids.

Ops that join or split dimensions are in `gbn.rules.reshape`; here are those that reorder, cut, copy
and lay side by side.
"""

import numpy as np

from gbn.ids import NONE, Rows
from gbn.rules.base import Info, OpCall, aten, fixed, join_dead, register_rule


@register_rule(aten.permute)
def _permute(call: OpCall) -> None:
    info = call.info(call.args[0])
    ndim = call.args[0].ndim
    call.set(
        Info(
            {new: info.ids[d % ndim] for new, d in enumerate(call.args[1]) if d % ndim in info.ids},
            info.dead,
        )
    )


@register_rule(aten.t, aten.t_, aten.numpy_T)
def _t(call: OpCall) -> None:
    info = call.info(call.args[0])
    last = call.args[0].ndim - 1
    call.set(Info({last - d: rows for d, rows in info.ids.items()}, info.dead))


@register_rule(aten.transpose, aten.transpose_)
def _transpose(call: OpCall) -> None:
    info = call.info(call.args[0])
    ndim = max(call.out.ndim, 1)
    a, b = call.args[1] % ndim, call.args[2] % ndim
    swap = {a: b, b: a}
    call.set(Info({swap.get(d, d): rows for d, rows in info.ids.items()}, info.dead))


@register_rule(aten.unsqueeze, aten.unsqueeze_)
def _unsqueeze(call: OpCall) -> None:
    info = call.info(call.args[0])
    at = call.args[1] % call.out.ndim
    call.set(Info({d + (d >= at): rows for d, rows in info.ids.items()}, info.dead))


@register_rule(aten.squeeze, aten.squeeze_)
def _squeeze(call: OpCall) -> None:
    shape = call.before  # in place, the argument has lost its dimensions by now
    chosen = call.arg(1, "dim")
    dims = range(len(shape)) if chosen is None else [chosen] if isinstance(chosen, int) else chosen
    gone = {d % len(shape) for d in dims if shape[d] == 1} if shape else set()
    left = [d for d in range(len(shape)) if d not in gone]
    info = call.info(call.args[0])
    call.freeze(info, gone, "squeezes its only channel")
    if chosen is None:
        for rows in info.ids.values():
            why = f"two stay, or a width of 1 would be squeezed away ({call.where})"
            call.facts.space.freeze(rows[:, :2], why)
    call.set(Info({new: info.ids[d] for new, d in enumerate(left) if d in info.ids}, info.dead))


@register_rule(aten.expand)
def _expand(call: OpCall) -> None:
    x = call.args[0]
    info = call.info(x)
    shift = call.out.ndim - x.ndim
    ids = {}
    copied = False
    for dim, size in enumerate(call.out.shape):
        own = dim - shift
        if own >= 0 and x.shape[own] == size:
            if own in info.ids:
                ids[dim] = info.ids[own]
        elif size > 1:
            ids[dim] = call.fresh(size)
            call.sized(ids[dim])  # copies of one value: any of them may go, none is zero
            copied = True
    call.set(Info(ids, info.dead if info.constant or not copied else None))


@register_rule(aten.repeat)
def _repeat(call: OpCall) -> None:
    info = call.info(call.args[0])
    shift = call.out.ndim - call.args[0].ndim
    ids = {d + shift: np.tile(rows, (1, call.args[1][d + shift])) for d, rows in info.ids.items()}
    call.set(Info(ids, info.dead))


@register_rule(aten.repeat_interleave.self_int)
def _repeat_interleave(call: OpCall) -> None:
    info = call.info(call.args[0])
    at = call.arg(2, "dim")
    if at is None:
        call.freeze(info, why="flattens while repeating")
        return
    at %= call.out.ndim
    ids = {d: np.repeat(r, call.args[1], axis=1) if d == at else r for d, r in info.ids.items()}
    call.set(Info(ids, info.dead))


@register_rule(aten.slice)
def _slice(call: OpCall) -> None:
    dim = call.arg(1, "dim", 0) % call.args[0].ndim
    cut = slice(call.arg(2, "start"), call.arg(3, "end"), call.arg(4, "step", 1))
    info = call.info(call.args[0])
    if dim in info.ids:
        call.sized(info.ids[dim][:, cut])
    call.set(Info({d: r[:, cut] if d == dim else r for d, r in info.ids.items()}, info.dead))


@register_rule(aten.select)
def _select(call: OpCall) -> None:
    info = call.info(call.args[0])
    at = call.args[1] % call.args[0].ndim
    call.freeze(info, [at], "picks one position by number")
    ids = {d - (d > at): rows for d, rows in info.ids.items() if d != at}
    call.set(Info(ids, info.dead))


@register_rule(aten.unbind)
def _unbind(call: OpCall) -> None:
    info = call.info(call.args[0])
    at = call.arg(1, "dim", 0) % call.args[0].ndim
    call.freeze(info, [at], "is unbound position by position")
    ids = {d - (d > at): rows for d, rows in info.ids.items() if d != at}
    for out in call.out:
        call.set(Info(ids, info.dead), out)


@register_rule(
    aten.split,
    aten.split_with_sizes,
    aten.chunk,
    aten.tensor_split,
    aten.unsafe_split,
    aten.unsafe_chunk,
)
def _split_rule(call: OpCall) -> None:
    """Equal parts are tied offset by offset: however the size is computed, it stays right."""
    info = call.info(call.args[0])
    at = call.arg(2, "dim", 0) % call.args[0].ndim
    start = 0
    first: Rows | None = None
    equal = len({out.shape[at] for out in call.out}) == 1 and "with_sizes" not in call.name
    if not equal and at in info.ids and "with_sizes" not in call.name:
        call.freeze(info, [at], "splits channels into unequal parts")
    for out in call.out:
        ids = dict(info.ids)
        if at in ids:
            ids[at] = info.ids[at][:, start : start + out.shape[at]]
            first = ids[at] if first is None else first
            call.sized(ids[at])
            if equal:
                call.tie(first, ids[at])
        start += out.shape[at]
        call.set(Info(ids, info.dead), out)


@register_rule(aten.cat, aten.concat)
def _cat(call: OpCall) -> None:
    tensors = [t for t in call.args[0] if t.numel() or t.ndim > 1]
    at = call.arg(1, "dim", 0) % call.out.ndim
    infos = [call.info(t) for t in tensors]
    ids: dict[int, Rows] = {}
    for dim in range(call.out.ndim):
        found = [info.ids.get(dim) for info in infos]
        if dim == at and any(rows is not None for rows in found):
            ids[dim] = _concatenate(found, [t.shape[dim] for t in tensors])
        elif dim != at:
            met = meet_all(call, found, call.out.shape[dim])
            if met is not None:
                ids[dim] = met
    call.set(Info(ids, join_dead(info.dead for info in infos if info.ids)))


@register_rule(aten.stack)
def _stack(call: OpCall) -> None:
    at = call.arg(1, "dim", 0) % call.out.ndim
    infos = [call.info(t) for t in call.args[0]]
    ids: dict[int, Rows] = {}
    for dim in range(call.out.ndim):
        own = dim - (dim > at)
        if dim != at:
            met = meet_all(call, [info.ids.get(own) for info in infos], call.out.shape[dim])
            if met is not None:
                ids[dim] = met
    call.set(Info(ids, join_dead(info.dead for info in infos if info.ids)))


def meet_all(call: OpCall, found: list[Rows | None], size: int) -> Rows | None:
    present = [rows for rows in found if rows is not None]
    for rows in present[1:]:
        call.tie(present[0], rows)
    if present and len(present) < len(found) and size > 1:
        call.tie(present[0], fixed(size))
    return present[0] if present else None


def _concatenate(found: list[Rows | None], sizes: list[int]) -> Rows:
    parts = [fixed(n) if rows is None else rows for rows, n in zip(found, sizes, strict=True)]
    k = max(len(rows) for rows in parts)
    return np.concatenate(
        [np.pad(rows, ((0, k - len(rows)), (0, 0)), constant_values=NONE) for rows in parts], axis=1
    )


@register_rule(aten.constant_pad_nd)
def _pad(call: OpCall) -> None:
    """Padded channels hold one constant: they get ids of their own and may go as well."""
    x, pads = call.args[0], call.args[1]
    value = float(call.arg(2, "value", 0))
    info = call.info(x)
    ids = {}
    grows = False
    for dim in range(x.ndim):
        k = 2 * (x.ndim - 1 - dim)
        low, high = (pads[k], pads[k + 1]) if k + 1 < len(pads) else (0, 0)
        grows = grows or low > 0 or high > 0
        if dim not in info.ids:
            continue
        parts = [
            call.fresh(low) if low > 0 else None,
            info.ids[dim][:, max(-low, 0) : x.shape[dim] - max(-high, 0)],
            call.fresh(high) if high > 0 else None,
        ]
        present = [p for p in parts if p is not None]
        for grown in (parts[0], parts[2]):
            if grown is not None:
                call.sized(grown)
        ids[dim] = _concatenate(list(present), [p.shape[1] for p in present])
    same = not grows or info.dead == value or (value == 0.0 and isinstance(info.dead, frozenset))
    call.set(Info(ids, info.dead if same else None))


@register_rule(aten.flip)
def _flip(call: OpCall) -> None:
    info = call.info(call.args[0])
    dims = {d % call.out.ndim for d in call.args[1]}
    call.set(Info({d: r[:, ::-1] if d in dims else r for d, r in info.ids.items()}, info.dead))


@register_rule(aten.roll)
def _roll(call: OpCall) -> None:
    info = call.info(call.args[0])
    dims = {d % call.out.ndim for d in call.arg(2, "dims", ()) or range(call.out.ndim)}
    call.freeze(info, dims, "is rolled by a fixed number of positions")
    call.set(info)
