"""Layout ops move values without changing them: they are executed on the ids.

Ids are one vector a dimension; only where an op joins or splits dimensions are they expanded. A
dimension that splits into several gets new ids for each factor, and the old ids become the product
of the new: removing row r removes every (r, c), which keeps the result rectangular.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from gbn.ids import NONE, Rows
from gbn.rules.base import Dead, Info, OpCall, Split, aten, fixed, register_rule, stack


@register_rule(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias)
def _view(call: OpCall) -> None:
    reshape(call, call.args[0], tuple(call.out.shape))


def reshape(call: OpCall, x: Tensor, shape: tuple[int, ...]) -> None:
    """Ids of `x` read in the given shape."""
    info = call.info(x)
    if x.numel() == 0:
        call.freeze(info, why="reshapes an empty tensor")
        return
    ids: dict[int, Rows] = {}
    for old, new in _blocks(tuple(x.shape), shape):
        for dim, rows in _regroup(call, info, x.shape, old, shape, new).items():
            ids[dim] = rows
            call.sized(rows)
    call.set(Info(ids, info.dead))


def _blocks(
    old: tuple[int, ...], new: tuple[int, ...]
) -> list[tuple[list[int], list[int]]]:
    """Split two shapes into the shortest runs of dimensions with equal products."""
    blocks = []
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [], []
        a = b = 1
        while True:
            if i < len(old) and (a <= b or j >= len(new)):
                a *= old[i]
                left.append(i)
                i += 1
            elif j < len(new):
                b *= new[j]
                right.append(j)
                j += 1
            if a == b and (left or i >= len(old)) and (right or j >= len(new)):
                break
        blocks.append((left, right))
    return blocks


def _regroup(
    call: OpCall, info: Info, old_shape: Sequence[int], old: list[int],
    new_shape: tuple[int, ...], new: list[int],
) -> dict[int, Rows]:
    if not any(dim in info.ids for dim in old):
        return {}
    if len(old) == 1 and len(new) == 1:
        return {new[0]: info.ids[old[0]]}
    size_old = [old_shape[d] for d in old]
    size_new = [new_shape[d] for d in new]
    axes = {axis: info.ids[dim] for axis, dim in enumerate(old) if dim in info.ids}
    out: dict[int, list[Rows]] = {}
    for joint in _joint_rows(call, axes, len(old)):
        spread = np.broadcast_to(joint, size_old).reshape(size_new)
        for new_axis, vector in _split(call, spread).items():
            out.setdefault(new[new_axis], []).append(vector)
    return {dim: stack(parts) for dim, parts in out.items()}


def _joint_rows(call: OpCall, axes: dict[int, Rows], ndim: int) -> list[Rows]:
    """Every row of the axes, broadcastable over all of them; factors of one split rejoined."""
    joined = _rejoin(call, axes)
    if joined is not None:
        shape = [joined.shape[sorted(axes).index(a)] if a in axes else 1 for a in range(ndim)]
        return [joined.reshape(shape)]
    return [
        row.reshape([-1 if a == axis else 1 for a in range(ndim)])
        for axis, rows in axes.items()
        for row in rows
    ]


def _rejoin(call: OpCall, axes: dict[int, Rows]) -> Rows | None:
    """Ids that a split took apart, where all of its factors are joined again.

    In another order than they were split, it is a shuffle: then which channels sit where depends
    on the number of rows, and only the longest factor may shrink.
    """
    order = sorted(axes)
    if len(order) < 2 or any(len(axes[a]) != 1 for a in order):
        return None
    split = call.facts.splits.get(int(axes[order[0]][0, 0]))
    if split is None or len(split.factors) != len(order):
        return None
    found = [
        next((i for i, f in enumerate(split.factors) if np.array_equal(f, axes[a])), -1)
        for a in order
    ]
    if sorted(found) != list(range(len(order))):
        return None
    if found != sorted(found):
        longest = max(split.factors, key=lambda factor: factor.shape[1])
        for factor in split.factors:
            if factor is not longest:
                call.facts.space.freeze(factor, f"is shuffled by {call.where}")
    return split.joint.transpose(found)


def _split(call: OpCall, joint: Rows) -> dict[int, Rows]:
    """Ids over several dimensions as ids of single dimensions, shape (1, n) each."""
    varies = [a for a in range(joint.ndim) if (joint != joint.take([0], axis=a)).any()]
    if not varies:
        if joint.size > 1 or joint.ndim == 0:
            # one channel spread over many positions would leave an empty dimension behind
            call.facts.space.freeze(joint.reshape(1, -1), f"is a whole dimension of {call.where}")
            return {}
        return {0: joint.reshape(1, 1)}
    if len(varies) == 1:
        axis = varies[0]
        index = tuple(slice(None) if a == axis else 0 for a in range(joint.ndim))
        return {axis: joint[index].reshape(1, -1)}
    factors = {axis: call.fresh(joint.shape[axis]) for axis in varies}
    sizes = [joint.shape[a] for a in varies]
    index = tuple(slice(None) if a in varies else 0 for a in range(joint.ndim))
    parts = [
        np.broadcast_to(f.reshape([-1 if a == v else 1 for v in varies]), sizes).reshape(1, -1)
        for a, f in factors.items()
    ]
    call.facts.space.tie(joint[index].reshape(1, -1), stack(parts), "")
    split = Split(joint[index], tuple(factors.values()))
    call.facts.splits.update((int(factor[0, 0]), split) for factor in split.factors)
    return factors


@register_rule(aten.permute)
def _permute(call: OpCall) -> None:
    info = call.info(call.args[0])
    ndim = call.args[0].ndim
    call.set(Info({new: info.ids[d % ndim] for new, d in enumerate(call.args[1])
                   if d % ndim in info.ids}, info.dead))


@register_rule(aten.t, aten.numpy_T)
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


@register_rule(aten.squeeze)
def _squeeze(call: OpCall) -> None:
    x = call.args[0]
    chosen = call.arg(1, "dim")
    dims = range(x.ndim) if chosen is None else [chosen] if isinstance(chosen, int) else chosen
    gone = {d % x.ndim for d in dims if x.shape[d] == 1} if x.ndim else set()
    left = [d for d in range(x.ndim) if d not in gone]
    info = call.info(x)
    call.freeze(info, gone, "squeezes its only channel")
    call.set(Info({new: info.ids[d] for new, d in enumerate(left) if d in info.ids}, info.dead))


@register_rule(aten.expand)
def _expand(call: OpCall) -> None:
    x = call.args[0]
    info = call.info(x)
    shift = call.out.ndim - x.ndim
    ids = {}
    for dim, size in enumerate(call.out.shape):
        own = dim - shift
        if own >= 0 and x.shape[own] == size:
            if own in info.ids:
                ids[dim] = info.ids[own]
        elif size > 1:
            ids[dim] = call.fresh(size)
            call.sized(ids[dim])  # copies of one value: any of them may go
    call.set(Info(ids, info.dead))


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


@register_rule(aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split,
               aten.unsafe_split, aten.unsafe_chunk)
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
            met = _meet_all(call, found, call.out.shape[dim])
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
            met = _meet_all(call, [info.ids.get(own) for info in infos], call.out.shape[dim])
            if met is not None:
                ids[dim] = met
    call.set(Info(ids, join_dead(info.dead for info in infos if info.ids)))


def _meet_all(call: OpCall, found: list[Rows | None], size: int) -> Rows | None:
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


def join_dead(values: Any) -> Dead:
    """Dead value of tensors that lie side by side."""
    seen = list(values)
    if all(value == 0.0 or isinstance(value, frozenset) for value in seen):
        raw = [value for value in seen if isinstance(value, frozenset)]
        return frozenset().union(*raw) if raw else 0.0
    return seen[0] if seen and all(value == seen[0] for value in seen) else None


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
        parts = [call.fresh(low) if low > 0 else None,
                 info.ids[dim][:, max(-low, 0) : x.shape[dim] - max(-high, 0)],
                 call.fresh(high) if high > 0 else None]
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


@register_rule(aten.channel_shuffle, aten.native_channel_shuffle)
def _channel_shuffle(call: OpCall) -> None:
    """(groups, n / groups) transposed; the same offset of each part goes together."""
    info = call.info(call.args[0])
    groups = call.args[1]
    ids = dict(info.ids)
    if 1 in ids:
        rows = ids[1].reshape(len(ids[1]), groups, -1)
        for g in range(1, groups):
            call.tie(rows[:, 0], rows[:, g])
        ids[1] = rows.transpose(0, 2, 1).reshape(len(rows), -1)
    call.set(Info(ids, info.dead))


@register_rule(aten.pixel_shuffle, aten.pixel_unshuffle)
def _pixel_shuffle(call: OpCall) -> None:
    """A channel of the narrow side is r * r neighbours of the wide side."""
    info = call.info(call.args[0])
    factor = call.args[1] ** 2
    at = call.out.ndim - 3
    ids = {d: rows for d, rows in info.ids.items() if d < at}
    if at in info.ids:
        rows = info.ids[at]
        if call.func.overloadpacket is aten.pixel_shuffle:
            runs = rows.reshape(len(rows), -1, factor)
            for offset in range(1, factor):
                call.tie(runs[:, :, 0], runs[:, :, offset])
            ids[at] = runs[:, :, 0]
        else:
            ids[at] = np.repeat(rows, factor, axis=1)
    call.set(Info(ids, info.dead))


@register_rule(aten.index_select, aten.gather, aten.index)
def _index(call: OpCall) -> None:
    """Picks positions by number: dimensions that are indexed stay, others pass."""
    x = call.args[0]
    info = call.info(x)
    if call.func.overloadpacket is aten.index:
        at = [d for d, index in enumerate(call.args[1]) if index is not None]
    else:
        at = [call.args[1] % x.ndim] if call.func.overloadpacket is aten.index_select else list(
            range(x.ndim))
    call.freeze(info, at, "is indexed by position")
    if call.func.overloadpacket is aten.index_select or (len(at) == 1 and at[0] == x.ndim - 1):
        call.set(Info({d: r for d, r in info.ids.items() if d not in at}, info.dead))
        return
    if call.func.overloadpacket is aten.index and len(at) and at == list(range(at[0], at[-1] + 1)):
        new = max(index.ndim for index in call.args[1] if index is not None)
        shift = new - len(at)
        ids = {d + shift * (d > at[-1]): r for d, r in info.ids.items() if d not in at}
        call.set(Info(ids, info.dead))
        return
    call.freeze(info, why="is indexed by position")
    call.set(Info())
