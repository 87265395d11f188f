"""Scores and costs and targets -> PrunePlan. Pure: sees no module and no tensor."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real

import numpy as np

from gbn.cost import CostModel, Sparing
from gbn.groups import ChannelGroups, Mask
from gbn.plan_search import Limit, PlanSettings, Search
from gbn.prune_plan import PrunePlan
from gbn.scores import Scores

_SPARING = (0.0, 0.5, 0.8, 1.0)


def plan(
    groups: ChannelGroups,
    scores: Scores,
    *,
    flops: float | int | None = None,
    params: float | int | None = None,
    settings: PlanSettings | None = None,
) -> PrunePlan:
    """Choose what goes so that MACs and parameters are at or under their targets.

    A target in (0, 1] is the share of the original that may stay (1.0: all), an int above 1 an
    absolute number. Raises UnreachableTarget with the smallest reachable value, and ValueError for
    a target that is not positive.
    """
    return PrunePlan.of(
        groups, choose(groups, scores, flops=flops, params=params, settings=settings)
    )


def choose(
    groups: ChannelGroups,
    scores: Scores,
    *,
    flops: float | int | None = None,
    params: float | int | None = None,
    settings: PlanSettings | None = None,
    alive: Mask | None = None,
) -> Mask:
    """As `plan`, but from atoms still `alive` (num_atoms,) to those that stay, (num_atoms,).

    Raises as `plan` does, and ValueError where `scores` are of other groups.
    """
    limits = [
        Limit(cost=cost, at_most=_absolute(target, cost, unit), unit=unit)
        for cost, target, unit in (
            (CostModel.macs(groups), flops, "MACs"),
            (CostModel.params(groups), params, "parameters"),
        )
        if target is not None
    ]
    return choose_within(groups, scores, limits, settings=settings, alive=alive)


def choose_within(
    groups: ChannelGroups,
    scores: Scores,
    limits: Sequence[Limit],
    *,
    settings: PlanSettings | None = None,
    alive: Mask | None = None,
) -> Mask:
    """The atoms that stay, of those still `alive`, so that all limits hold, one after another.

    Raises UnreachableTarget with the smallest reachable value.
    """
    if not isinstance(scores, Scores):
        raise TypeError(f"scores are a {type(scores).__name__}: give gbn.Scores(values, kind)")
    if len(scores.values) != groups.num_atoms:
        raise ValueError(f"{len(scores.values)} scores for {groups.num_atoms} atoms")
    search = Search(groups, scores, settings or PlanSettings(), alive)
    for limit in limits:
        search.reduce(limit)
    search.give_back(limits)
    return search.alive


def choose_in_time(
    groups: ChannelGroups,
    scores: Scores,
    time: Limit,
    others: Sequence[Limit],
    *,
    settings: PlanSettings | None = None,
    alive: Mask | None = None,
) -> Mask:
    """As `choose_within` for `time` and then the `others`, all paid for by time saved.

    Where there are others, several plans are made, which spare the first one's cost more or less on
    the way to the time, so that neither falls far below its limit; the one whose remaining atoms
    have the highest scores is taken.

    `alive` and what is returned are masks (num_atoms,). Raises as `choose_within` does.
    """
    paid = [replace(limit, spent_for=time.cost) for limit in others]
    plans: list[Mask] = []
    for weight in _SPARING if others else _SPARING[:1]:
        first = time
        if weight:
            sparing = Sparing(of=time.cost, leaving=others[0].cost, weight=weight)
            first = replace(time, spent_for=sparing)
        plans.append(choose_within(groups, scores, [first, *paid], settings=settings, alive=alive))
    return max(plans, key=lambda kept: float(scores.values[kept].sum()))


def smallest(groups: ChannelGroups, cost: CostModel, settings: PlanSettings) -> int:
    """The least cost that any plan under these settings can reach, in the unit of `cost`.

    MACs for `CostModel.macs(groups)`, elements for `CostModel.params(groups)`. Raises nothing:
    where all is frozen it is the cost of the whole.
    """
    search = Search(groups, Scores(np.ones(groups.num_atoms), "none"), settings)
    search.exhaust()
    return cost.total(search.alive)


def _absolute(target: float, cost: CostModel, unit: str) -> int:
    if isinstance(target, bool) or not isinstance(target, Real):
        raise TypeError(f"a target of {target!r} {unit} is no number")
    if not target > 0:
        raise ValueError(f"a target of {target} {unit} is not positive")
    if target > 1 and not isinstance(target, Integral):
        raise ValueError(
            f"a target of {target} {unit} is no share: give one up to 1, or an int for a number"
        )
    whole = cost.total(np.ones(cost.groups.num_atoms, dtype=np.bool_))
    # 1e-9: 0.6 * 10 must stay 6
    return int(target * whole + 1e-9) if target <= 1 else int(target)
