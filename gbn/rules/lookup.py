"""Reads and writes at positions that are told by number: indexing, tables, sampling grids.

Dimensions that are indexed stay, since what stands at a number would be another channel after a
cut; the others pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gbn.rules.base import Info, OpCall, aten, join_dead, register_rule, vanishes
from gbn.rules.layout import meet_all


@register_rule(aten.embedding)
def _embedding(call: OpCall) -> None:
    """Rows of a table: its entries stay, their channels pass."""
    table, indices = call.info(call.args[0]), call.info(call.args[1])
    call.freeze(table, [0], "is looked up by number")
    call.freeze(indices, why="says what is looked up")
    ids = {call.out.ndim - 1: table.ids[1]} if 1 in table.ids else {}
    call.set(Info(ids, table.dead))


@register_rule(aten.grid_sampler, aten.grid_sampler_2d, aten.grid_sampler_3d)
def _grid_sampler(call: OpCall) -> None:
    """Each channel alone, at positions that a grid tells; outside of it zeros are read."""
    image, grid = call.info(call.args[0]), call.info(call.args[1])
    call.freeze(grid, why="says where to sample")
    call.freeze(image, range(2, call.args[0].ndim), "is sampled by position")
    ids = {dim: rows for dim, rows in image.ids.items() if dim < 2}
    call.set(Info(ids, image.dead if vanishes(image.dead) else None))


@register_rule(aten.index_select, aten.gather, aten.index)
def _index(call: OpCall) -> None:
    """Picks positions by number: dimensions that are indexed stay, others pass."""
    x = call.args[0]
    info = call.info(x)
    if call.func.overloadpacket is aten.index:
        at = _indexed(call.args[1])
    else:
        at = (
            [call.args[1] % x.ndim]
            if call.func.overloadpacket is aten.index_select
            else list(range(x.ndim))
        )
    call.freeze(info, at, "is indexed by position")
    if call.func.overloadpacket is aten.index_select or (len(at) == 1 and at[0] == x.ndim - 1):
        call.set(Info({d: r for d, r in info.ids.items() if d not in at}, info.dead))
        return
    if call.func.overloadpacket is aten.index and len(at) and at == list(range(at[0], at[-1] + 1)):
        shift = call.out.ndim - x.ndim
        ids = {d + shift * (d > at[-1]): r for d, r in info.ids.items() if d not in at}
        call.set(Info(ids, info.dead))
        return
    call.freeze(info, why="is indexed by position")
    call.set(Info())


@register_rule(aten.index_put, aten.index_put_, aten._unsafe_index_put)
def _index_put(call: OpCall) -> None:
    """Writes at positions by number: dimensions that are indexed stay, those behind them meet."""
    x, indices, values = call.args[:3]
    target, source = call.info(x), call.info(values)
    at = _indexed(indices)
    if at != list(range(len(at))) or any(d >= x.ndim for d in at):
        call.freeze(target, why="is written into by position")
        call.freeze(source, why="is written by position")
        call.set(Info())
        return
    call.freeze(target, at, "is written into by position")
    shift = x.ndim - values.ndim
    call.freeze(source, [d for d in source.ids if d + shift < len(at)], "is written by position")
    ids = {}
    for dim in range(len(at), x.ndim):
        rows = [target.ids.get(dim)]
        if dim - shift >= 0 and values.shape[dim - shift] == x.shape[dim]:
            rows.append(source.ids.get(dim - shift))
        met = meet_all(call, rows, x.shape[dim])
        if met is not None:
            ids[dim] = met
    # a value written over removable positions that has none itself is no zero there
    given = {d + shift for d in source.ids if values.shape[d] > 1}
    known = all(d in given or call.facts.space.stays(rows) for d, rows in ids.items())
    call.set(Info(ids, join_dead([target.dead, source.dead]) if known else None))


def _indexed(indices: Sequence[Tensor | None]) -> list[int]:
    """Dimensions that are indexed; a boolean index covers as many as it has of its own."""
    at: list[int] = []
    dim = 0
    for index in indices:
        mask = index is not None and index.dtype in (torch.bool, torch.uint8)
        width = index.ndim if mask and index is not None else 1
        at += range(dim, dim + width) if index is not None else ()
        dim += width
    return at
