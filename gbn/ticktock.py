"""Tick-Tock: when to score and cut (tick), when to recover (tock), when to stop. Pure numbers.

Two recipes: `schedule`, this project's own, and `schedule_2019`, as published.

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
_SCORE_SHARE = 0.08  # of the budget goes into scores, but no fewer than ...
_MIN_SCORED = 18  # batches over all ticks, unless that is more than a quarter of it
_MAX_SCORE_BATCHES = 16
_MIN_SCORE_BATCHES = 6  # a tick, so that what goes is no matter of luck
_MIN_TICKS = 3
_MIN_TOCK = 20  # batches: a shorter one recovers little, and a cut after it loses that
_FULL_RATE = 100  # batches of fine-tuning worth the whole peak rate: short ways, small steps

# You et al. 2019 and the authors' settings, in passes over the training set.
_TICKS_A_TOCK = 10
_TICK, _TOCK, _FINETUNE = 1, 10, 40
_CUT_2019 = 0.99  # a tick takes 0.5 % of the channels: about 1 % of the MACs
_LOW_LR = 0.1  # of the peak: 1e-3 where that is 1e-2
_LAMBDA = 1e-3
_MIN_SCORE_2019 = 3  # batches of a tick


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One step of the schedule.

    tick: score on `batches`, then cut to `keep` (1 is the original cost, 0 the target). With an
    `lr_from` above 0, the gates and the last linear layer learn meanwhile, at that rate.
    tock, finetune: train on `batches` with the learning rate going from `lr_from` to `lr_to`, as
    shares of the peak: in a half cosine, or in two straight lines where `lr_top` is half-way.
    `penalty`: λ, weight of Σ|φ| in the loss.
    """

    kind: Literal["tick", "tock", "finetune"]
    batches: int
    keep: float = 0.0
    lr_from: float = 0.0
    lr_to: float = 0.0
    lr_top: float | None = None
    penalty: float = 0.0


def schedule(*, budget: int, target: float) -> tuple[Phase, ...]:
    """Divide `budget` training batches; `target` is the share of the cost that is to stay.

    With a budget of 0 there are ticks alone: scoring is calibration, not training. `Phase.keep`
    falls geometrically, so that each tick cuts the same share of what is left. A target outside
    0 to 1 cuts nothing: all goes to fine-tuning. Raises nothing. The order is Tick-Tock of You et
    al. 2019 (arXiv 1909.08174), the lengths are this project's own.
    """
    if not 0 < target < 1:
        return (Phase(kind="finetune", batches=budget, lr_from=1.0),) if budget else ()
    ticks = min(max(math.ceil(math.log(target) / math.log(_CUT_PER_TICK)), 1), _MAX_TICKS)
    score = _MAX_SCORE_BATCHES
    if budget:
        scored = min(max(round(_SCORE_SHARE * budget), _MIN_SCORED), max(budget // 4, 1))
        ticks = min(ticks, max(scored // _MIN_SCORE_BATCHES, min(_MIN_TICKS, scored)))
        score = min(scored // ticks, _MAX_SCORE_BATCHES)
    left = max(budget - ticks * score, 0) if budget else 0
    tock = round(_TOCK_SHARE * left / ticks)
    tock = tock if tock >= _MIN_TOCK else 0
    phases = []
    for number in range(1, ticks + 1):
        cost = target ** (number / ticks)
        keep = 0.0 if number == ticks else (cost - target) / (1 - target)
        phases.append(Phase(kind="tick", batches=score, keep=keep))
        if tock and number < ticks:
            phases.append(Phase(kind="tock", batches=tock, lr_from=0.5, lr_to=0.5))
            left -= tock
    if left:
        rate = min((left / _FULL_RATE) ** 0.5, 1.0)
        phases.append(Phase(kind="finetune", batches=left, lr_from=rate, lr_to=0.0))
    return tuple(phases)


def schedule_2019(*, budget: int, target: float) -> tuple[Phase, ...]:
    """As `schedule`, in the order of You et al. 2019: tock, (10 ticks, tock) x rounds, fine-tune.

    Published lengths, in passes over the training set: 1 a tick, 10 a tock, 40 at the end. Here
    they are proportions: the longest whole number of batches, at least 1, for a tick, at which all
    fit the budget; what remains goes to tocks and fine-tuning as 10 to 40.

    The published tick removes a fixed share of the channels, 0.5 % at most, until the target is
    met, however long it takes. Where budget and target are both given, the share follows: each
    tick removes the share 1 - target ** (1 / ticks) of the remaining cost. There are as many rounds
    as make that 1 %, which is about 0.5 % of the channels, but no more than leave a tick
    `_MIN_SCORE_2019`, and one at least. With a budget below 70 batches, ticks are fewer too.
    With a budget of 0 nothing learns: ticks alone.
    """
    tock_lr = {"lr_from": _LOW_LR, "lr_top": 1.0, "lr_to": _LOW_LR}
    if not 0 < target < 1:
        return (Phase(kind="finetune", batches=budget, **tock_lr),) if budget else ()
    per_round = _TICKS_A_TOCK * _TICK + _TOCK
    wanted = math.ceil(math.log(target) / math.log(_CUT_2019) / _TICKS_A_TOCK)
    fitting = (budget // _MIN_SCORE_2019 - _TOCK - _FINETUNE) // per_round
    rounds = max(min(wanted, fitting), 1)
    units = _TOCK + rounds * per_round + _FINETUNE
    score = max(budget // units, 1) if budget else _MAX_SCORE_BATCHES
    shortest = (2 * _TOCK + _FINETUNE) // _TICKS_A_TOCK + _TICK  # batches for each tick of a round
    a_tock = min(_TICKS_A_TOCK, max(budget // shortest, 1)) if budget else _TICKS_A_TOCK
    ticks = rounds * a_tock
    left = max(budget - ticks * score, 0)
    tock = left * _TOCK // (_TOCK * (rounds + 1) + _FINETUNE)
    recover = Phase(kind="tock", batches=tock, penalty=_LAMBDA, **tock_lr)
    phases = [recover] if tock else []
    for number in range(1, ticks + 1):
        cost = target ** (number / ticks)
        keep = 0.0 if number == ticks else (cost - target) / (1 - target)
        lr = _LOW_LR if budget else 0.0
        phases.append(Phase(kind="tick", batches=score, keep=keep, lr_from=lr))
        if tock and number % a_tock == 0:
            phases.append(recover)
    left -= (rounds + 1) * tock
    if left:
        phases.append(Phase(kind="finetune", batches=left, **tock_lr))
    return tuple(phases)
