"""What a run would do and how long that would take, for `--dry-run`.

Enters: the measured baseline, the goal and the settings. Leaves: a `Forecast`, plain values. Steps
of scoring and of training are timed, on the device and with the batch size of the run, and a part
of a refit; all else is arithmetic, so the time is an estimate.
"""

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

import gbn
from gbn.ticktock import Phase
from pipeline.baseline import Baseline
from pipeline.config import RunConfig
from pipeline.data import Data
from pipeline.data_free import amounts, cannot_learn
from pipeline.goal import Goal, phases_of
from pipeline.mixed_data import made_images
from pipeline.objectives import float_tensors
from pipeline.renewal import refit_inputs

_TIMED_STEPS = 2
_STUDENT = 3 / 4  # of a training step: forward and backward; the rest is the teacher's forward


_REFIT_PART = 4  # of the images of a refit, one in so many is timed


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of a batch scored, of a batch trained on, of loading one, and of a refit."""

    score: float = 0.0
    train: float = 0.0
    load: float = 0.0
    refit: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Phases of one kind: how many, batches in all, estimated seconds, and whether each ends in a
    refit."""

    kind: str
    count: int
    batches: int
    seconds: float
    refits: bool = False


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """phases: what will be done, in the order of first use. images: (number, seconds) that are
    made where no data is given."""

    phases: tuple[Planned, ...]
    batch_size: int
    images: tuple[int, float] | None = None

    @property
    def seconds(self) -> float:
        """Of scoring, refits, training and making images; all else comes on top."""
        made = self.images[1] if self.images else 0.0
        return made + sum(planned.seconds for planned in self.phases)

    def to_json(self) -> str:
        """Strict JSON, ending in a line break: {dry_run: {phases, batch_size, images, seconds}}."""
        images = self.images and dict(zip(("count", "seconds"), self.images, strict=True))
        content = asdict(self) | {"images": images, "seconds": self.seconds}
        return json.dumps({"dry_run": content}, indent=2) + "\n"

    def lines(self) -> Iterator[str]:
        """For the console."""
        if self.images is not None:
            count, seconds = self.images
            yield f"images: {count} made from the network, about {_duration(seconds)}"
        for planned in self.phases:
            refits = " and refits" if planned.refits else ""
            yield (
                f"{planned.kind}: {planned.count} x, {planned.batches} batches of "
                f"{self.batch_size} in all{refits}, about {_duration(planned.seconds)}"
            )
        work = ", refits" if any(planned.refits for planned in self.phases) else ""
        yield (
            f"estimate: {_duration(self.seconds)} of scoring{work} and training on this machine; "
            "proofs, statistics of norms, export and verify come on top"
        )


def forecast(config: RunConfig, baseline: Baseline, goal: Goal) -> Forecast:
    """The schedule, and what it costs at the speed that is measured now."""
    images, data, steps = None, baseline.data, 0
    share = _target_share(goal, baseline)
    if data is None and not goal.holds_uncut(baseline.groups):
        if cannot_learn(baseline.loaded) is not None:
            once = phases_of(goal.recipe, share, epochs=0, per_epoch=None)
            return Forecast(phases=_planned(once, Speed(), 1.0), batch_size=0)
        plan = amounts(baseline.cost.num_macs, baseline.device.type, config.data.batch_size)
        steps = plan.steps * plan.batches
        images = (plan.batch_size * plan.batches, 0.0)
        data = _stand_in(baseline, plan.batch_size, plan.batch_size * plan.batches)
    if data is None:
        return Forecast(phases=(), batch_size=0)
    phases = phases_of(
        goal.recipe, share, epochs=config.recovery.epochs, per_epoch=len(data.train_loader(0))
    )
    batch, load_s = _first_batch(data)
    speed = Speed(
        score=_step_seconds(baseline, batch, goal.recipe.score_batch, teacher=False),
        train=_step_seconds(
            baseline,
            batch,
            math.ceil(len(batch) / config.recovery.accumulate),
            teacher=config.data.source is None or (goal.recipe.distill and config.recovery.distill),
        ),
        load=load_s,
        refit=_refit_seconds(baseline, goal, share, data, phases),
    )
    if images is not None:
        images = (images[0], steps * speed.train * _STUDENT)
    return Forecast(phases=_planned(phases, speed, share), batch_size=len(batch), images=images)


def _planned(phases: tuple[Phase, ...], speed: Speed, target: float) -> tuple[Planned, ...]:
    """`target`: share of the cost that is left at the end; a smaller network is faster.

    A refit also runs the original, and is taken as equally long at each tick.
    """
    kept = 1.0
    found: dict[str, list[tuple[int, float]]] = {}
    for phase in phases:
        if phase.kind == "tick":
            seconds = phase.batches * (speed.score * kept + speed.load) + speed.refit
            kept = target + phase.keep * (1 - target)
        else:
            step = speed.train * (_STUDENT * kept + 1 - _STUDENT) + speed.load
            seconds = phase.batches * step
        found.setdefault(phase.kind, []).append((phase.batches, seconds))
    return tuple(
        Planned(
            kind=kind,
            count=len(each),
            batches=sum(batches for batches, _ in each),
            seconds=sum(seconds for _, seconds in each),
            refits=kind == "tick" and speed.refit > 0,
        )
        for kind, each in found.items()
    )


def _target_share(goal: Goal, baseline: Baseline) -> float:
    return min([*goal.shares(baseline.groups), 1.0])


def _stand_in(baseline: Baseline, batch_size: int, count: int) -> Data:
    """Noise of the size and number that would be made."""
    noise = torch.randn(count, *baseline.loaded.input_size)
    return made_images(noise, noise[:1], batch_size, seed=0)


def _first_batch(data: Data) -> tuple[Tensor, float]:
    """A batch, and the seconds that a further one takes to load."""
    began = perf_counter()
    batches = [images for images, _ in islice(data.train_loader(0), 2)]
    return batches[0], (perf_counter() - began) / len(batches)


def _step_seconds(baseline: Baseline, images: Tensor, part: int | None, *, teacher: bool) -> float:
    """Of one batch: forward and backward, in parts of so many images, and a teacher's forward."""
    device, module = baseline.device, baseline.loaded.module
    module.to(device)
    images = images.to(device)

    def step() -> None:
        for some in images.split(part or len(images)):
            outputs = float_tensors(module(some))
            learnt = [output for output in outputs if output.requires_grad]
            torch.autograd.backward([output.square().mean() for output in learnt])
        if teacher:
            with torch.no_grad():
                module(images)
        module.zero_grad(set_to_none=True)

    _timed(step, device)
    seconds = min(_timed(step, device) for _ in range(_TIMED_STEPS))
    module.cpu()
    return seconds


def _refit_seconds(
    baseline: Baseline, goal: Goal, share: float, data: Data, phases: tuple[Phase, ...]
) -> float:
    """Of a refit after the whole cut, by the size of weights; 0 where there is none."""
    groups, device = baseline.groups, baseline.device
    original, cuts = baseline.loaded.module, any(phase.kind == "tick" for phase in phases)
    if not cuts or not goal.recipe.refits(phases, original):
        return 0.0
    macs = gbn.CostModel.macs(groups)
    everything = np.ones(groups.num_atoms, dtype=np.bool_)
    wanted = int(share * macs.total(everything))
    least = gbn.smallest(groups, macs, goal.settings)
    limit = gbn.Limit(cost=macs, at_most=max(wanted, least), unit="MACs")
    scores = gbn.magnitude_scores(original, groups)
    alive = gbn.choose_within(groups, scores, [limit], settings=goal.settings)
    plan = gbn.PrunePlan.of(groups, alive)
    small = gbn.prune(original, plan).to(device)
    images, settings = refit_inputs(data, last=all(phase.kind == "tick" for phase in phases))
    images = images[: max(len(images) // _REFIT_PART, 2)].to(device)
    settings = replace(settings, rows=max(settings.rows // _REFIT_PART, 1))

    def refit() -> None:
        gbn.refit(copy.deepcopy(original).to(device), small, plan, images, settings)
        gbn.settle_norms(small, [images])

    return _REFIT_PART * _timed(refit, device)


def _timed(step: Callable[[], None], device: torch.device) -> float:
    began = perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - began


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
