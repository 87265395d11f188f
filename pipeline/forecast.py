"""What a run would do and how long that would take, for `--dry-run`.

Enters: the measured baseline, the goal and the settings. Leaves: a `Forecast`, plain values. Two
training steps are timed, on the device and with the batch size of the run; all else is arithmetic,
so the time is an estimate.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

import torch
from torch import Tensor, nn

from gbn.ticktock import Phase
from pipeline.baseline import Baseline
from pipeline.config import RunConfig
from pipeline.data import Data
from pipeline.data_free import amounts, cannot_learn
from pipeline.goal import Goal, phases_of
from pipeline.mixed_data import made_images
from pipeline.objectives import float_tensors

_TIMED_STEPS = 2
_STUDENT = 3 / 4  # of a training step: forward and backward; the rest is the teacher's forward


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Phases of one kind: how many, batches in all, estimated seconds."""

    kind: str
    count: int
    batches: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """phases: what will be done, in the order of first use. images: (number, seconds) that are
    made where no data is given."""

    phases: tuple[Planned, ...]
    batch_size: int
    images: tuple[int, float] | None = None

    @property
    def seconds(self) -> float:
        """Of scoring, training and making images; loading, export and verifying come on top."""
        made = self.images[1] if self.images else 0.0
        return made + sum(planned.seconds for planned in self.phases)

    def lines(self) -> Iterator[str]:
        """For the console."""
        if self.images is not None:
            count, seconds = self.images
            yield f"images: {count} made from the network, about {_duration(seconds)}"
        for planned in self.phases:
            yield (
                f"{planned.kind}: {planned.count} x, {planned.batches} batches of "
                f"{self.batch_size} in all, about {_duration(planned.seconds)}"
            )
        yield (
            f"estimate: {_duration(self.seconds)} of scoring and training on this machine; "
            "refits, proofs, export and verify come on top"
        )


def forecast(config: RunConfig, baseline: Baseline, goal: Goal) -> Forecast:
    """The schedule, and what it costs at the speed of two steps timed now."""
    images, data, steps = None, baseline.data, 0
    if data is None and not goal.holds_uncut(baseline.groups):
        if cannot_learn(baseline.loaded) is not None:
            once = phases_of(goal.recipe, _target_share(goal, baseline), epochs=0, per_epoch=None)
            return Forecast(phases=_planned(once, 0.0, 1.0), batch_size=0)
        plan = amounts(baseline.cost.num_macs, baseline.device.type, config.data.batch_size)
        steps = plan.steps * plan.batches
        images = (plan.batch_size * plan.batches, 0.0)
        data = _stand_in(baseline, plan.batch_size, plan.batch_size * plan.batches)
    if data is None:
        return Forecast(phases=(), batch_size=0)
    batch, load_s = _first_batch(data)
    step_s = _step_seconds(baseline.loaded.module, batch, baseline.device)
    if images is not None:
        images = (images[0], steps * step_s * _STUDENT)
    per_epoch = len(data.train_loader(0))
    phases = phases_of(
        goal.recipe,
        _target_share(goal, baseline),
        epochs=config.recovery.epochs,
        per_epoch=per_epoch,
    )
    shares = _target_share(goal, baseline)
    return Forecast(
        phases=_planned(phases, step_s, shares, load_s), batch_size=len(batch), images=images
    )


def _planned(
    phases: tuple[Phase, ...], step_s: float, target: float, load_s: float = 0.0
) -> tuple[Planned, ...]:
    """`target`: share of the cost that is left at the end; a smaller network learns faster."""
    kept = 1.0
    found: dict[str, list[tuple[int, float]]] = {}
    for phase in phases:
        own = step_s * (_STUDENT * kept + 1 - _STUDENT) + load_s
        found.setdefault(phase.kind, []).append((phase.batches, phase.batches * own))
        if phase.kind == "tick":
            kept = target + phase.keep * (1 - target)
    return tuple(
        Planned(
            kind=kind,
            count=len(each),
            batches=sum(batches for batches, _ in each),
            seconds=sum(seconds for _, seconds in each),
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


def _step_seconds(module: nn.Module, images: Tensor, device: torch.device) -> float:
    """Of a step of training with a teacher: forward, backward, and the teacher's forward."""
    module.to(device)
    images = images.to(device)

    def step() -> None:
        outputs = float_tensors(module(images))
        learnt = [output for output in outputs if output.requires_grad]
        torch.autograd.backward([output.square().mean() for output in learnt])
        with torch.no_grad():
            module(images)
        module.zero_grad(set_to_none=True)

    _timed(step, device)
    seconds = min(_timed(step, device) for _ in range(_TIMED_STEPS))
    module.cpu()
    return seconds


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
