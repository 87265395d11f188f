"""PrunePlan: which channels of which tensor stay. The one thing that surgery needs.

It is plain data, saved as JSON; applied to a fresh instance of the same class it gives the pruned
shapes. It holds no score and no module.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gbn.errors import PlanMismatch
from gbn.groups import ChannelGroups, Mask

Kept = dict[str, dict[int, tuple[int, ...]]]


_RUNNING = ("running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class SizeChange:
    """`attribute` (or its item `index`) of a module goes from `old` to `new`."""

    module: str
    attribute: str
    index: int | None
    old: int
    new: int


@dataclass(frozen=True, kw_only=True)
class SurvivingStatistics:
    """Call number `call` of `op` in a run takes its statistics over these positions alone.

    `kept[axis]`: positions of the op's first argument, whose size there is `sizes[axis]`.
    """

    op: str
    call: int
    kept: dict[int, tuple[int, ...]]
    sizes: dict[int, int]


@dataclass(frozen=True, kw_only=True)
class GroupWidth:
    """A group's width before and after, for people."""

    name: str
    layers: tuple[str, ...]
    size_before: int
    size_after: int
    frozen: bool
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """`kept[name][dim]`: ascending positions that stay, for each tensor that shrinks.

    `shapes`: the shapes it was made for. `gates`: tensors (name, dim) whose removed channels are
    gated to zero in the network that the result must equal. `statistics`: where that network takes
    them over the survivors.
    """

    kept: Kept
    shapes: dict[str, tuple[int, ...]]
    gates: tuple[tuple[str, int], ...]
    sizes: tuple[SizeChange, ...]
    groups: tuple[GroupWidth, ...]
    statistics: tuple[SurvivingStatistics, ...] = ()

    @classmethod
    def of(cls, groups: ChannelGroups, alive: Mask) -> "PrunePlan":
        """The plan that keeps these atoms, `alive`: (num_atoms,)."""
        kept_dims = [dim.kept(alive) for dim in groups.dims]
        kept: Kept = {}
        for name, dims in groups.tensors.items():
            for axis, index in dims.items():
                if len(kept_dims[index]) < groups.dims[index].size:
                    kept.setdefault(name, {})[axis] = tuple(kept_dims[index].tolist())
        sizes = tuple(
            SizeChange(
                module=s.module,
                attribute=s.attribute,
                index=s.index,
                old=s.old,
                new=len(kept_dims[s.dim]),
            )
            for s in groups.sizes
            if len(kept_dims[s.dim]) != s.old
        )
        widths = tuple(
            GroupWidth(
                name=g.name,
                layers=g.layers,
                size_before=g.size,
                frozen=g.frozen,
                reason=g.reason,
                size_after=g.size if g.dim < 0 else len(kept_dims[g.dim]),
            )
            for g in groups.groups
        )
        gates = tuple(pair for site in groups.gates for pair in site.tensors if pair[0] in kept)
        shapes = {name: groups.shapes[name] for name in kept}
        statistics = tuple(
            SurvivingStatistics(
                op=s.op,
                call=s.call,
                kept={axis: tuple(kept_dims[dim].tolist()) for axis, dim in s.dims.items()},
                sizes={axis: groups.dims[dim].size for axis, dim in s.dims.items()},
            )
            for s in groups.statistics
        )
        return cls(
            kept=kept,
            shapes=shapes,
            gates=gates,
            sizes=sizes,
            groups=widths,
            statistics=statistics,
        )

    def after(self, earlier: "PrunePlan") -> "PrunePlan":
        """This plan for the network that `earlier` already made, both being of one network.

        What this plan keeps must be among what `earlier` kept.
        """
        kept: Kept = {}
        shapes = {}
        for name, dims in self.kept.items():
            before = earlier.kept.get(name, {})
            shapes[name] = tuple(
                len(before[axis]) if axis in before else size
                for axis, size in enumerate(self.shapes[name])
            )
            for axis, positions in dims.items():
                place = {p: i for i, p in enumerate(before.get(axis, range(shapes[name][axis])))}
                kept.setdefault(name, {})[axis] = tuple(place[p] for p in positions)
        held = {(s.module, s.attribute, s.index): s.new for s in earlier.sizes}
        sizes = tuple(
            replace(s, old=held.get((s.module, s.attribute, s.index), s.old)) for s in self.sizes
        )
        known = {(s.op, s.call): s for s in earlier.statistics}
        statistics = tuple(_after(s, known.get((s.op, s.call))) for s in self.statistics)
        return replace(self, kept=kept, shapes=shapes, sizes=sizes, statistics=statistics)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "format": "gbn-plan-1",
            "kept": {
                n: {str(d): list(k) for d, k in dims.items()} for n, dims in self.kept.items()
            },
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "gates": [list(gate) for gate in self.gates],
            "sizes": [vars(size) for size in self.sizes],
            "groups": [{**vars(g), "layers": list(g.layers)} for g in self.groups],
            "statistics": [
                {
                    "op": s.op,
                    "call": s.call,
                    "kept": {str(axis): list(k) for axis, k in s.kept.items()},
                    "sizes": {str(axis): size for axis, size in s.sizes.items()},
                }
                for s in self.statistics
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PrunePlan":
        """Inverse of `to_dict`; raises PlanMismatch for anything else."""
        if not isinstance(data, Mapping) or data.get("format") != "gbn-plan-1":
            raise PlanMismatch("not a plan of this library: 'format' is not 'gbn-plan-1'")
        try:
            plan = cls(
                kept={
                    name: {int(d): tuple(int(p) for p in k) for d, k in dims.items()}
                    for name, dims in data["kept"].items()
                },
                shapes={name: tuple(shape) for name, shape in data["shapes"].items()},
                gates=tuple((str(name), int(dim)) for name, dim in data["gates"]),
                sizes=tuple(SizeChange(**size) for size in data["sizes"]),
                groups=tuple(
                    GroupWidth(**{**g, "layers": tuple(g["layers"])}) for g in data["groups"]
                ),
                statistics=tuple(
                    SurvivingStatistics(
                        op=str(s["op"]),
                        call=int(s["call"]),
                        kept={int(a): tuple(int(p) for p in k) for a, k in s["kept"].items()},
                        sizes={int(a): int(size) for a, size in s["sizes"].items()},
                    )
                    for s in data.get("statistics", ())
                ),
            )
            plan._check_positions()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanMismatch(f"the plan is damaged: {error}") from error
        return plan

    def _check_positions(self) -> None:
        for name, dims in self.kept.items():
            if name not in self.shapes:
                raise ValueError(f"{name!r} has kept positions but no shape")
            for axis, kept in dims.items():
                if not 0 <= axis < len(self.shapes[name]):
                    raise ValueError(f"{name!r} of shape {self.shapes[name]} has no dim {axis}")
                _check_ascending(kept, self.shapes[name][axis], f"dim {axis} of {name!r}")
            self._check_running(name)
        for use in self.statistics:
            if use.kept.keys() != use.sizes.keys():
                raise ValueError(f"statistics of {use.op} number {use.call} lack a size")
            for axis, kept in use.kept.items():
                what = f"dim {axis} of the statistics of {use.op} number {use.call}"
                _check_ascending(kept, use.sizes[axis], what)

    def _check_running(self, name: str) -> None:
        """The running statistics of a norm keep the channels of its weight."""
        path, _, attribute = name.rpartition(".")
        if attribute in _RUNNING:
            weight = f"{path}.weight" if path else "weight"
            if weight in self.kept and self.kept[weight] != self.kept[name]:
                raise ValueError(f"{name!r} keeps other channels than {weight!r}")

    def save(self, path: Path | str) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1))

    @classmethod
    def load(cls, path: Path | str) -> "PrunePlan":
        """Read what `save` wrote; raises PlanMismatch for anything else."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise PlanMismatch(f"{path} is not JSON: {error}") from error

    def kept_array(self, name: str, axis: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Kept positions of one dimension of a tensor."""
        return np.array(self.kept[name][axis], dtype=np.int64)


def _check_ascending(kept: tuple[int, ...], size: int, what: str) -> None:
    ascending = all(a < b for a, b in pairwise(kept))
    if not kept or not ascending or kept[0] < 0 or kept[-1] >= size:
        raise ValueError(f"kept positions of {what} are not ascending in 0 .. {size - 1}")


def _after(
    statistics: SurvivingStatistics, earlier: SurvivingStatistics | None
) -> SurvivingStatistics:
    if earlier is None:
        return statistics
    place = {axis: {p: i for i, p in enumerate(k)} for axis, k in earlier.kept.items()}
    kept = {a: tuple(place[a][p] for p in k) for a, k in statistics.kept.items()}
    return replace(statistics, kept=kept, sizes={a: len(k) for a, k in earlier.kept.items()})
