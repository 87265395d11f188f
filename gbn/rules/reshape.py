"""Reshapes: ids read in another shape.

Ids are one vector a dimension; only where a reshape joins or splits dimensions are they expanded. A
dimension that splits into several gets new ids for each factor, and the old ids become the product
of the new: removing row r removes every (r, c), which keeps the result rectangular.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from gbn.ids import Rows
from gbn.rules.base import Info, OpCall, Split, aten, join_dead, register_rule, stack, vanishes


@register_rule(aten.view.default, aten._unsafe_view, aten.reshape, aten._reshape_alias)
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


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
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
            else:
                raise ValueError(f"shapes {old} and {new} have different numbers of elements")
            if a == b and (left or i >= len(old)) and (right or j >= len(new)):
                break
        blocks.append((left, right))
    return blocks


def _regroup(
    call: OpCall,
    info: Info,
    old_shape: Sequence[int],
    old: list[int],
    new_shape: tuple[int, ...],
    new: list[int],
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


@register_rule(aten.as_strided_)
def _restride(call: OpCall) -> None:
    """Pools of channels-last inputs set the strides of their result so; its sizes stay."""
    info = call.info(call.args[0])
    sizes = dict(enumerate(call.out.shape))
    if any(sizes.get(dim) != rows.shape[1] for dim, rows in info.ids.items()):
        call.freeze(info, why="is read with other strides")
        info = Info()
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


@register_rule(aten.unfold)
def _unfold(call: OpCall) -> None:
    """Windows along one dimension, which come last; the others pass."""
    info = call.info(call.args[0])
    at = call.args[1] % max(call.args[0].ndim, 1)
    call.freeze(info, [at], "is read in windows")
    call.set(Info({d: rows for d, rows in info.ids.items() if d != at}, info.dead))


@register_rule(aten.im2col)
def _im2col(call: OpCall) -> None:
    """(N, C, H, W) -> (N, C * kernel, windows): each channel is repeated for its kernel."""
    x, kernel, _, padding = call.args[:4]
    info = call.info(x)
    at = x.ndim - 3
    call.freeze(info, [d for d in info.ids if d > at], "is read in windows")
    ids = {d: rows for d, rows in info.ids.items() if d < at}
    if at in info.ids:
        ids[at] = np.repeat(info.ids[at], math.prod(kernel), axis=1)
    call.set(Info(ids, join_dead([info.dead, 0.0]) if any(padding) else info.dead))


@register_rule(aten.col2im)
def _col2im(call: OpCall) -> None:
    """(N, C * kernel, windows) -> (N, C, H, W): each channel is the sum of its kernel's rows."""
    x, kernel = call.args[0], call.args[2]
    info = call.info(x)
    at = x.ndim - 2
    call.freeze(info, [d for d in info.ids if d > at], "is laid out in windows")
    ids = {d: rows for d, rows in info.ids.items() if d < at}
    if at in info.ids:
        rows = info.ids[at].reshape(len(info.ids[at]), -1, math.prod(kernel))
        for offset in range(1, rows.shape[2]):
            call.tie(rows[:, :, 0], rows[:, :, offset])
        ids[at] = rows[:, :, 0]
        call.sized(ids[at])
    call.set(Info(ids, info.dead if vanishes(info.dead) else None))
