"""Scoring and training on Lightning Fabric: one device, mixed precision on CUDA.

Enters: a network, data, an objective and a phase of the schedule. Leaves: gate scores, or the
network trained, by the original if the objective asks it. Nothing here decides what goes.
"""

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import gbn
from gbn.groups import Mask
from gbn.streams import StreamReader, stream_readers
from gbn.ticktock import Phase
from pipeline.batches import BatchStream, in_small_batches
from pipeline.checkup import Checkup
from pipeline.console import RunConsole
from pipeline.data import Batch, Data
from pipeline.errors import CompressError
from pipeline.learning import (
    Frozen,
    last_linear,
    learn_in_leaves,
    learnable,
    lr_share,
    parts_of,
    sgd,
)
from pipeline.objectives import Ask
from pipeline.ranks import Ranks, Work, WorkKind, plan_hash
from pipeline.renewal import refit_inputs, renew_statistics
from pipeline.stream_distance import StreamDistance
from pipeline.training_settings import Pass, Progress, TrainingSettings

_CLIP_NORM = 5.0
_BN_BATCHES = 16

Loss = Callable[[Any, Tensor, Ask], Tensor]


class Trainer:
    """Runs phases on one network after another; holds the teacher and the stream of batches."""

    def __init__(
        self,
        fabric: Fabric,
        data: Data,
        teacher: nn.Module,
        settings: TrainingSettings,
        console: RunConsole,
        ranks: Ranks | None = None,
    ) -> None:
        self._fabric = fabric
        self._data = data
        self.stream = BatchStream(data)
        self._settings = settings
        self._console = console
        self._ranks = ranks or Ranks()
        self._teacher = fabric.to_device(copy.deepcopy(teacher)).eval().requires_grad_(False)
        self._readers: tuple[StreamReader, ...] | None = None

    @property
    def device(self) -> str:
        """Where scoring and training happen, such as cpu or cuda:0."""
        return str(self._fabric.device)

    @property
    def num_train(self) -> int:
        """Images in a pass over the training set."""
        return self._data.num_train

    @property
    def checkup(self) -> Checkup | None:
        """What `check` measures."""
        return self._settings.checkup

    def check(self, model: nn.Module) -> float | None:
        """What the check-up finds; None without one. The model is left as it was, on the CPU."""
        checkup = self._settings.checkup
        if checkup is None:
            return None
        with torch.no_grad():
            found = checkup.measure(self._fabric.to_device(model).eval())
        model.cpu()
        return found

    def log(self, values: dict[str, float], batch: int, *, save: bool = False) -> None:
        """To the loggers, if there are any, at this batch of the stream; `save` writes it out."""
        self._fabric.log_dict(values, batch)
        for logger in self._fabric.loggers if save else ():
            logger.save()

    def score(
        self, model: nn.Module, groups: gbn.ChannelGroups, alive: Mask, phase: Phase, start: int
    ) -> gbn.Scores:
        """Gate scores over the phase's batches, which begin at batch `start` of the stream.

        The model is left as it was, unless the phase has a learning rate: then the gates and the
        last linear layer learn. `alive`: the atoms of `groups` that the model still has. Raises
        CompressError when the loss is not finite.
        """
        plan = gbn.PrunePlan.of(groups, alive)
        self._send("score", model, plan, alive=alive, phase=phase, start=start)
        self._fabric.to_device(model).eval()
        learns = phase.lr_from > 0
        if learns:
            learn_in_leaves(model)
        # an objective that draws draws the same in a run that is resumed here
        torch.manual_seed(self._settings.seed + start)
        with gbn.Gates(model, groups) as gates:
            learning = {id(phi): phi for phi in gates.phi.values()}
            if learns:
                learning |= {id(p): p for p in last_linear(model)}
            for parameter in model.parameters():
                parameter.grad = None
            with Frozen(model, keep=set(learning)):
                lr = self._settings.peak_lr * phase.lr_from
                optimizer = self._sgd(list(learning.values()), lr) if learns else None
                together = [*learning.values()] if learns else []
                batches = self._score_batches(start, phase.batches)
                # where nothing learns, batches do not depend on each other
                for batch in batches if learns else self._ranks.own(batches):
                    value = self._backward(
                        self._settings.objective.score, model, batch, together=together
                    )
                    if not math.isfinite(value):
                        raise CompressError("the loss is not finite while scoring: check the data")
                    gates.accumulate(keep_gradients=learns)
                    if optimizer is not None:
                        optimizer.step()
                        optimizer.zero_grad(set_to_none=True)
            if not learns:
                self._ranks.add_up([*gates.sums.values()])
            return gates.scores(alive)

    def train(
        self,
        model: nn.Module,
        groups: gbn.ChannelGroups,
        phase: Phase,
        start: int,
        label: str,
        progress: Progress,
    ) -> nn.Module:
        """Train for the phase's batches, which begin at batch `start` of the stream.

        Goes on from `progress`, and saves it after each pass over the training set. Raises
        CompressError when the loss is not finite.
        """
        if progress.plan is not None and progress.alive is not None:
            here = {"step": progress.step, "optimizer": progress.optimizer, "label": label}
            what = {"alive": progress.alive, "phase": phase, "start": start} | here
            self._send("train", model, progress.plan, **what)
        learn_in_leaves(self._fabric.to_device(model))
        step, state = progress.step, progress.optimizer
        per_epoch = self.stream.per_epoch
        batches = self._batches(start + step, phase.batches - step)
        with self._console.progress(label, total=phase.batches) as advance:
            advance(step)
            while step < phase.batches:
                # dropout repeats itself, also in a run that is resumed here
                torch.manual_seed(self._settings.seed + start + step)
                end = min(step - step % per_epoch + per_epoch, phase.batches)
                with contextlib.ExitStack() as gated:
                    gates = gated.enter_context(gbn.Gates(model, groups)) if phase.penalty else None
                    streams = self._streams(model, progress.plan)
                    if streams is not None:
                        gated.enter_context(streams.watching())
                    one_pass = Pass(
                        phase=phase,
                        gates=gates,
                        streams=streams,
                        label=label,
                        start=start,
                        first=step,
                        state=state,
                    )
                    for _ in self._steps(model, one_pass, itertools.islice(batches, end - step)):
                        advance(1)
                step, state = end, one_pass.state
                if step < phase.batches:
                    assert state is not None
                    progress.save(step, state)
        self._ranks.average_statistics(model)
        return model.eval()

    def _steps(self, model: nn.Module, work: Pass, batches: Iterable[Batch]) -> Iterator[None]:
        """The steps of one pass; leaves the optimizer's state in `work`."""
        held = {id(p) for p in work.gates.stood_for} if work.gates else set()
        parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in held]
        optimizer = self._sgd(parameters, self._settings.peak_lr)
        if work.state is not None:
            optimizer.load_state_dict(work.state)
        with Frozen(model, keep={id(p) for p in parameters}):
            wrapped, optimizer = self._fabric.setup(model, optimizer)
            for step, batch in enumerate(batches, start=work.first):
                for group in optimizer.param_groups:
                    group["lr"] = self._settings.peak_lr * lr_share(work.phase, step)
                value = self._backward(
                    self._settings.objective.learn, wrapped, batch, work, together=parameters
                )
                if not math.isfinite(value):
                    raise CompressError(
                        f"the loss is not finite in {work.label}, step {step}: lower --lr "
                        f"(now {self._settings.peak_lr:g})"
                    )
                nn.utils.clip_grad_norm_(parameters, _CLIP_NORM)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                self.log({"loss": value, "lr": group["lr"]}, work.start + step)
                yield
        work.state = optimizer.state_dict()

    def _streams(self, model: nn.Module, plan: gbn.PrunePlan | None) -> StreamDistance | None:
        if plan is None or not self._settings.stream_weight:
            return None
        if self._readers is None:
            images, _ = next(iter(self._data.calibration_batches(1)))
            self._readers = stream_readers(self._teacher, self._place(images[:2]))
        return StreamDistance(self._teacher, model, plan, self._readers)

    def _send(self, kind: WorkKind, model: nn.Module, plan: gbn.PrunePlan, **what: Any) -> None:
        """Have the other processes, if there are any, do the same."""
        if self._ranks.size > 1 and self._ranks.leads:
            state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
            self._ranks.send(Work(kind=kind, plan=plan_hash(plan), state=state, **what))

    def follow(self, original: nn.Module, groups: gbn.ChannelGroups) -> None:
        """Do what the leader sends until it sends no more; see `pipeline.ranks`.

        Raises CompressError where a plan is not the leader's.
        """
        while (work := self._ranks.receive()) is not None:
            plan = gbn.PrunePlan.of(groups, work.alive)
            if plan_hash(plan) != work.plan:
                raise CompressError(
                    f"process {self._ranks.rank} follows another plan than process 0: all must "
                    "have the same model, code and versions"
                )
            model = gbn.prune(original, plan)
            model.load_state_dict(work.state)
            if work.kind == "score":
                self.score(model, groups, work.alive, work.phase, work.start)
                continue
            progress = Progress(
                step=work.step, optimizer=work.optimizer, plan=plan, save=lambda _step, _state: None
            )
            self.train(model, groups, work.phase, work.start, work.label, progress)

    def _sgd(self, parameters: list[nn.Parameter], lr: float) -> torch.optim.SGD:
        return sgd(parameters, lr, decay_all=self._settings.decay_all)

    def repair(
        self, original: nn.Module, small: nn.Module, plan: gbn.PrunePlan, *, last: bool
    ) -> None:
        """What can be made good after a cut without training: layers are refitted.

        `plan` leads from `original` to `small`; last: no training follows. Afterwards norms are
        settled, so that training starts from what the refit has reached.
        """
        images, settings = refit_inputs(self._data, last=last)
        inputs = self._place(images)
        self._fabric.to_device(small)
        gbn.refit(self._fabric.to_device(copy.deepcopy(original)), small, plan, inputs, settings)
        gbn.settle_norms(small, [inputs])

    def renew_statistics(self, model: nn.Module) -> None:
        """Batch norms' running statistics, anew from training images."""
        batches = self._data.calibration_batches(_BN_BATCHES)
        self._fabric.to_device(model).eval()
        renew_statistics(model, (self._place(images) for images, _ in batches))

    def _backward(
        self,
        kind: Loss,
        model: nn.Module,
        batch: Batch,
        work: Pass | None = None,
        *,
        together: Sequence[nn.Parameter] = (),
    ) -> float:
        """Gradients of a batch's loss, part by part; the loss, which may not be finite.

        together: what all processes learn, each from its share of the batch.
        """
        value, part = 0.0, 1.0
        if together:
            *shared, part = self._ranks.share(*batch)
            batch = (shared[0], shared[1])
        for images, targets, share in parts_of(*batch, self._settings.accumulate):
            with learnable():
                value += self._part(kind, model, (images, targets), share * part, work)
        return self._ranks.add_up_gradients(together, value) if together else value

    def _part(
        self, kind: Loss, model: nn.Module, batch: Batch, share: float, work: Pass | None
    ) -> float:
        """Gradients of this share of the loss; the share, which may not be finite."""
        loss = self._loss(kind, model, *batch)
        if work is not None and work.gates is not None:
            loss = loss + work.phase.penalty * work.gates.penalty()
        if work is not None and work.streams is not None:
            distance = work.streams.take()
            if distance is not None:
                loss = loss + self._settings.stream_weight * distance
        value = share * float(loss.detach())
        if math.isfinite(value):
            self._fabric.backward(share * loss)
        return value

    def _loss(self, kind: Loss, model: nn.Module, images: Tensor, targets: Any) -> Tensor:
        with self._fabric.autocast():
            outputs = model(images)

        def original() -> Any:
            with torch.no_grad(), self._fabric.autocast():
                return self._teacher(images)

        return kind(outputs, targets, original)

    def _batches(self, start: int, count: int, *, augmented: bool = True) -> Iterator[Batch]:
        for images, targets in self.stream.take(start, count, augmented=augmented):
            yield self._place(images), self._fabric.to_device(targets)

    def _score_batches(self, start: int, count: int) -> Iterator[Batch]:
        size = self._settings.objective.score_batch
        for batch in self._batches(start, count, augmented=self._settings.score_augmented):
            yield from [batch] if size is None else in_small_batches(*batch, size)

    def _place(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
        placed: Tensor = self._fabric.to_device(images.contiguous(memory_format=layout))
        return placed
