"""Tick-Tock: when to score and cut (tick), when to recover (tock), when to stop. Pure numbers.

After You et al. 2019: channels go a few at a time, lowest scores first, with recovery in between,
and a longer fine-tuning at the end. The whole training budget, in batches, is given beforehand
and divided here; scoring batches are part of it.
"""

import math
from dataclasses import dataclass
from typing import Literal

# Measured on CIFAR: see benchmarks/. Cuts of a tenth of the remaining MACs lose less than one cut.
_CUT_PER_TICK = 0.9
_MAX_TICKS = 20
_TOCK_SHARE = 0.25
_SCORE_SHARE = 0.08  # of the budget goes into scores, unless it is very small
_MAX_SCORE_BATCHES = 16
_MIN_SCORE_BATCHES = 3
_MIN_TICKS = 3


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One step of the schedule.

    tick: score on `batches`, then cut to `keep` (1 is the original cost, 0 the target).
    tock, finetune: train on `batches` with the learning rate going from `lr_from` to `lr_to`, as
    shares of the peak.
    """

    kind: Literal["tick", "tock", "finetune"]
    batches: int
    keep: float = 0.0
    lr_from: float = 0.0
    lr_to: float = 0.0


def schedule(*, budget: int, target: float) -> tuple[Phase, ...]:
    """Divide `budget` training batches; `target` is the share of the cost that is to stay.

    With a budget of 0 there are ticks alone: scoring is calibration, not training. `Phase.keep`
    falls geometrically, so that each tick cuts the same share of what is left.
    """
    if not 0 < target < 1:
        return (Phase(kind="finetune", batches=budget, lr_from=1.0),) if budget else ()
    ticks = min(max(math.ceil(math.log(target) / math.log(_CUT_PER_TICK)), 1), _MAX_TICKS)
    score = _MAX_SCORE_BATCHES
    if budget:
        ticks = min(ticks, max(round(_SCORE_SHARE * budget), _MIN_TICKS), budget)
        least = min(_MIN_SCORE_BATCHES, max(budget // (4 * ticks), 1))
        score = min(max(round(_SCORE_SHARE * budget / ticks), least), _MAX_SCORE_BATCHES)
    left = max(budget - ticks * score, 0) if budget else 0
    tock = round(_TOCK_SHARE * left / ticks)
    phases = []
    for number in range(1, ticks + 1):
        cost = target ** (number / ticks)
        keep = 0.0 if number == ticks else (cost - target) / (1 - target)
        phases.append(Phase(kind="tick", batches=score, keep=keep))
        if tock and number < ticks:
            phases.append(Phase(kind="tock", batches=tock, lr_from=0.5, lr_to=0.5))
            left -= tock
    if left:
        phases.append(Phase(kind="finetune", batches=left, lr_from=1.0, lr_to=0.0))
    return tuple(phases)
