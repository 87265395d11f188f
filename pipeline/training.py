"""Scoring and training on Lightning Fabric: one device, mixed precision on CUDA.

Enters: a network, data, and a phase of the schedule. Leaves: gate scores, or the network trained.
The original network teaches: the loss is mostly the task's distance to its outputs, the rest the
task's own loss. Nothing here decides what goes.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import gbn
from gbn.groups import Mask
from gbn.ticktock import Phase
from pipeline.console import RunConsole
from pipeline.data import Batch, Data
from pipeline.errors import CompressError
from pipeline.tasks import CLASSIFICATION, Task

_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4
_WARMUP_SHARE = 0.05
_CLIP_NORM = 5.0
_BN_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """`peak_lr` of SGD; `distill`: learn from the teacher, by which share; what is learnt."""

    peak_lr: float
    distill: bool
    distill_share: float = 0.9
    seed: int = 0
    task: Task = CLASSIFICATION


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where in a phase to start, and how to keep where it is (`save(step, optimizer state)`)."""

    step: int = 0
    optimizer: dict[str, Any] | None = None
    save: Callable[[int, dict[str, Any]], None]


class BatchStream:
    """Training batches without end, by number: batch n is the same whoever asks, whenever."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self.per_epoch = len(data.train_loader(0))

    def take(self, start: int, count: int) -> Iterator[Batch]:
        """Batches start .. start + count - 1."""
        epoch, skip = divmod(start, self.per_epoch)
        while count > 0:
            for number, batch in enumerate(self._data.train_loader(epoch)):
                if number < skip:
                    continue
                if count == 0:
                    return
                count -= 1
                yield batch
            epoch, skip = epoch + 1, 0


class Trainer:
    """Runs phases on one network after another; holds the teacher and the stream of batches."""

    def __init__(
        self,
        fabric: Fabric,
        data: Data,
        teacher: nn.Module,
        settings: TrainingSettings,
        console: RunConsole,
    ) -> None:
        self._fabric = fabric
        self._data = data
        self.stream = BatchStream(data)
        self._settings = settings
        self._console = console
        self._teacher = fabric.to_device(copy.deepcopy(teacher)).eval().requires_grad_(False)

    @property
    def device(self) -> str:
        """Where scoring and training happen, such as cpu or cuda:0."""
        return str(self._fabric.device)

    def score(
        self, model: nn.Module, groups: gbn.ChannelGroups, alive: Mask, batches: range
    ) -> gbn.Scores:
        """Gate scores over these batches of the stream; the model is left as it was.

        `alive`: the atoms of `groups` that the model still has. Raises CompressError when the
        loss is not finite.
        """
        device_model = self._fabric.to_device(model).eval()
        with gbn.Gates(device_model, groups) as gates:
            for parameter in device_model.parameters():
                parameter.grad = None
            with self._only_gates_learn(device_model, gates):
                for images, targets in self._batches(batches.start, len(batches)):
                    with self._fabric.autocast():
                        loss = self._settings.task.loss(device_model(images), targets)
                    if not math.isfinite(float(loss.detach())):
                        raise CompressError("the loss is not finite while scoring: check the data")
                    self._fabric.backward(loss)
                    gates.accumulate()
            return gates.scores(alive)

    def train(
        self, model: nn.Module, phase: Phase, start: int, label: str, progress: Progress
    ) -> nn.Module:
        """Train for the phase's batches, which begin at batch `start` of the stream.

        Goes on from `progress`, and saves it after each pass over the training set. Raises
        CompressError when the loss is not finite.
        """
        learn_in_leaves(self._fabric.to_device(model))
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(
            _decay_groups(model), lr=self._settings.peak_lr, momentum=_MOMENTUM, nesterov=True
        )
        if progress.optimizer is not None:
            optimizer.load_state_dict(progress.optimizer)
        wrapped, optimizer = self._fabric.setup(model, optimizer)
        done = progress.step
        batches = self._batches(start + done, phase.batches - done)
        with self._console.progress(label, total=phase.batches) as advance:
            advance(done)
            for step, (images, targets) in enumerate(batches, start=done):
                if step == done or step % self.stream.per_epoch == 0:
                    # dropout repeats itself, also in a run that is resumed here
                    torch.manual_seed(self._settings.seed + start + step)
                for group in optimizer.param_groups:
                    group["lr"] = self._settings.peak_lr * lr_share(phase, step)
                loss = self._loss(wrapped, images, targets)
                if not math.isfinite(float(loss.detach())):
                    raise CompressError(
                        f"the loss is not finite in {label}, step {step}: lower --lr "
                        f"(now {self._settings.peak_lr:g})"
                    )
                self._fabric.backward(loss)
                nn.utils.clip_grad_norm_(parameters, _CLIP_NORM)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                advance(1)
                if (step + 1) % self.stream.per_epoch == 0 and step + 1 < phase.batches:
                    progress.save(step + 1, optimizer.state_dict())
        return model.eval()

    def renew_statistics(self, model: nn.Module) -> None:
        """Batch norms' running statistics, anew from training images: after a cut they are off."""
        norms = [
            m
            for m in model.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
        ]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        self._fabric.to_device(model).eval()
        for norm in norms:
            norm.train()  # and nothing else: dropout would distort what norms see
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
        whole = 0
        try:
            with torch.no_grad():
                for number, (images, _) in enumerate(self._data.calibration_batches(_BN_BATCHES)):
                    if number and len(images) < whole:
                        continue  # a part of a batch would weigh as much as a whole one
                    whole = len(images)
                    model(self._place(images))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            model.eval()

    def _loss(self, model: nn.Module, images: Tensor, targets: Any) -> Tensor:
        task = self._settings.task
        with self._fabric.autocast():
            outputs = model(images)
            own = task.loss(outputs, targets)
            if not self._settings.distill:
                return own
            with torch.no_grad():
                taught = self._teacher(images)
        share = self._settings.distill_share
        return share * task.distillation(outputs, taught) + (1 - share) * own

    def _batches(self, start: int, count: int) -> Iterator[Batch]:
        for images, targets in self.stream.take(start, count):
            yield self._place(images), self._fabric.to_device(targets)

    def _place(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
        placed: Tensor = self._fabric.to_device(images.contiguous(memory_format=layout))
        return placed

    def _only_gates_learn(self, model: nn.Module, gates: gbn.Gates) -> "_Frozen":
        return _Frozen(model, {id(phi) for phi in gates.phi.values()})


class _Frozen:
    """Turns gradients of all parameters off but the given ones, and back as they were."""

    def __init__(self, model: nn.Module, keep: set[int]) -> None:
        self._before = [(p, p.requires_grad) for p in model.parameters()]
        self._keep = keep

    def __enter__(self) -> None:
        for parameter, _ in self._before:
            parameter.requires_grad_(id(parameter) in self._keep)

    def __exit__(self, *_: object) -> None:
        for parameter, flag in self._before:
            parameter.requires_grad_(flag)


def learn_in_leaves(model: nn.Module) -> None:
    """Training mode for layers, eval mode for what holds them.

    Layers such as norms and dropout must know that they are being trained. A network that asks
    itself would run auxiliary heads, which the deployed graph does not have and no cut has seen.
    """
    for module in model.modules():
        is_layer = isinstance(module, nn.modules.batchnorm._NormBase)
        module.training = is_layer or next(module.children(), None) is None


def lr_share(phase: Phase, step: int) -> float:
    """Learning rate at a step as a share of the peak: short warm-up, then a cosine to `lr_to`."""
    warmup = max(round(_WARMUP_SHARE * phase.batches), 1)
    if step < warmup:
        return phase.lr_from * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(phase.batches - warmup, 1)
    return phase.lr_to + (phase.lr_from - phase.lr_to) * 0.5 * (1 + math.cos(math.pi * progress))


def _decay_groups(model: nn.Module) -> list[dict[str, object]]:
    """Weight decay for weights; none for biases and norms, which it would only shrink."""
    learning = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": _WEIGHT_DECAY},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
