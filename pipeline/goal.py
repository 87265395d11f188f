"""What a run must reach, in the planner's units.

Enters: the run's settings and the measured baseline. Leaves: the `Goal` of the cut. Refused: a
target that no cut can reach.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

import gbn
from exporters.width_steps import fast_step
from gbn.rules.base import OVER_CHANNELS
from gbn.ticktock import Phase
from pipeline.baseline import Baseline
from pipeline.config import RunConfig
from pipeline.console import RunConsole
from pipeline.errors import UsageError
from pipeline.latency.goal import LatencyGoal
from pipeline.latency.network import place_of, time_network
from pipeline.recipes import RECIPES, Recipe


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the cut must reach: MACs and parameters as the tracer counts them, and time as it was
    measured; None: not asked.

    recipe: the way there.
    """

    flops: int | None
    params: int | None
    settings: gbn.PlanSettings
    latency: LatencyGoal | None = None
    recipe: Recipe = RECIPES["default"]

    def holds_uncut(self, groups: gbn.ChannelGroups) -> bool:
        """Whether the whole network is within it already."""
        return all(share >= 1 for share in self.shares(groups))

    def shares(self, groups: gbn.ChannelGroups) -> list[float]:
        """What may stay of each cost that was asked for, time included."""
        timed = [] if self.latency is None else [self.latency.own_share]
        return self.cost_shares(groups) + timed

    def cost_shares(self, groups: gbn.ChannelGroups) -> list[float]:
        """What may stay of the MACs and the parameters, as far as they were asked for."""
        everything = np.ones(groups.num_atoms, dtype=np.bool_)
        asked = ((self.flops, gbn.CostModel.macs), (self.params, gbn.CostModel.params))
        return [
            limit / cost(groups).total(everything) for limit, cost in asked if limit is not None
        ]


def phases_of(
    recipe: Recipe, share: float, *, epochs: int, per_epoch: int | None
) -> tuple[Phase, ...]:
    """The schedule; without batches there is nothing to recover with, and one cut is all."""
    if per_epoch is None:
        return (Phase(kind="tick", batches=0),) if share < 1 else ()
    return recipe.schedule(budget=epochs * per_epoch, target=share)


def set_goal(config: RunConfig, baseline: Baseline, console: RunConsole) -> Goal:
    """Targets in the tracer's units; says them, and refuses what no cut can reach."""
    target, groups, cost = config.target, baseline.groups, baseline.cost
    settings, step = _plan_settings(config, baseline)
    everything = np.ones(groups.num_atoms, dtype=np.bool_)
    asked: dict[str, int | None] = {"flops": None, "params": None}
    for name, wanted, exported, model, unit in (
        ("flops", target.flops, cost.num_macs, gbn.CostModel.macs(groups), "FLOPs"),
        ("params", target.params, cost.num_params, gbn.CostModel.params(groups), "params"),
    ):
        if wanted is None:
            continue
        console.say(f"target: {wanted.describe(exported, unit)}")
        # The exported graph has its norms folded; shares carry over to the tracer's count.
        whole = model.total(everything)
        asked[name] = int(min(wanted.absolute(exported) / exported, 1.0) * whole + 1e-6)
        least = gbn.smallest(groups, model, settings)
        if least > (asked[name] or 0):
            raise UsageError(
                f"the target of {wanted.fraction(exported):.1%} of the {unit} cannot be reached: "
                f"the smallest reachable is {least / whole:.1%}; "
                + _what_holds(groups, model, settings, least)
            )
    console.detail(
        "FLOPs are multiply-accumulates of convolutions, linear layers and matrix products on the "
        f"exported graph at batch 1; not counted: {dict(cost.uncounted)}"
    )
    return Goal(
        flops=asked["flops"],
        params=asked["params"],
        settings=settings,
        latency=_latency_goal(config, baseline, settings, step, console),
        recipe=RECIPES[config.recovery.recipe],
    )


def _what_holds(
    groups: gbn.ChannelGroups, cost: gbn.CostModel, settings: gbn.PlanSettings, least: int
) -> str:
    """What keeps the cost from falling below `least`, and what could be done about it."""
    free = replace(settings, multiple=1, fastest=1, min_channels=1)
    frozen = [group for group in groups.groups if group.frozen]
    reasons = Counter(group.reason or "of unknown width" for group in frozen)
    told = [
        f"{len(frozen)} of {len(groups.groups)} groups are frozen ("
        + "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common(2))
        + ("; …" if len(reasons) > 2 else "")
        + ")"
    ]
    if gbn.smallest(groups, cost, free) < least:
        told.append("a smaller --channel-multiple or --min-channels allows less")
    if any(OVER_CHANNELS in reason for reason in reasons):
        told.append("--prune-norms lets norms over channels lose some")
    return "; ".join(told)


def _plan_settings(config: RunConfig, baseline: Baseline) -> tuple[gbn.PlanSettings, int]:
    """With the step of widths that was measured to be fast, where the user gives none.

    Where time is the target, all widths sit on that step: below it, nothing is won.
    """
    multiple: int | str = config.constraints.channel_multiple
    step = fast_step(place_of(config, baseline)) if multiple == "auto" else int(multiple)
    if config.target.latency is not None:
        multiple = step
    settings = gbn.PlanSettings(
        multiple=multiple,
        fastest=step if multiple == "auto" else 1,
        min_channels=config.constraints.min_channels,
        rank=RECIPES[config.recovery.recipe].rank,
    )
    return settings, step


def _latency_goal(
    config: RunConfig,
    baseline: Baseline,
    settings: gbn.PlanSettings,
    step: int,
    console: RunConsole,
) -> LatencyGoal | None:
    target = config.target.latency
    if target is None:
        return None
    network = time_network(config, baseline, step, console)
    console.say(f"target: {target.describe(network.before_ms)}; widths in steps of {step}")
    goal = LatencyGoal(target=target, network=network, console=console)
    goal.require_reachable(settings)
    return goal
