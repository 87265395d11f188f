"""Tick-Tock on a real network: score, cut, prove, recover, one stage artefact at a time.

Enters: a network traced into groups, a target, and a trainer where there is data. Leaves: the
smaller, recovered network and the plan that made it. Refused: a cut that changes what the gated
network computes.
"""

import copy
import hashlib
from dataclasses import dataclass, field
from importlib.metadata import version
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gbn
from gbn.groups import Mask
from gbn.ticktock import Phase
from pipeline.console import RunConsole
from pipeline.errors import UsageError
from pipeline.goal import Goal, phases_of
from pipeline.rundir import RunDirectory
from pipeline.training import Trainer
from pipeline.training_settings import Progress

_STAGE = "compress"
_LATENCY_STAGE = "latency"


@dataclass(kw_only=True)
class Compressed:
    """The network as it stands; `done` phases of the schedule are behind it."""

    model: nn.Module
    alive: Mask
    done: int = 0
    device: str = "cpu"  # where it was scored and trained
    position: int = 0  # batches of the stream used so far
    step: int = 0  # within the phase that is under way
    optimizer: dict[str, Any] | None = None
    given: float | None = None  # what the check-up finds on the network as given
    surgery: list[dict[str, Any]] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)


class Compressor:
    """Runs the schedule, saving after each phase and each pass over the training set."""

    def __init__(
        self,
        model: nn.Module,
        groups: gbn.ChannelGroups,
        goal: Goal,
        trainer: Trainer | None,
        probe: Tensor,
        run: RunDirectory,
        console: RunConsole,
    ) -> None:
        self._original = model
        self._groups = groups
        self._goal = goal
        self._trainer = trainer
        self._probe = probe
        self._run = run
        self._console = console
        self._macs = gbn.CostModel.macs(groups)
        self._params = gbn.CostModel.params(groups)
        self._phases: tuple[Phase, ...] = ()
        everything = np.ones(groups.num_atoms, dtype=np.bool_)
        self._whole = (self._macs.total(everything), self._params.total(everything))

    def phases(self, epochs: int) -> tuple[Phase, ...]:
        """The schedule of this run."""
        shares = self._goal.cost_shares(self._groups)
        if self._goal.latency is not None:
            shares.append(self._first_share(self._goal.latency.own_share))
        per_epoch = None if self._trainer is None else self._trainer.stream.per_epoch
        return phases_of(self._goal.recipe, min(shares), epochs=epochs, per_epoch=per_epoch)

    def _first_share(self, share: float) -> float:
        """The share that the run began with: times are measured anew when it is resumed."""
        if not self._run.is_done(_LATENCY_STAGE):
            self._run.save_stage(_LATENCY_STAGE, {"share": share})
        return float(self._run.load_stage(_LATENCY_STAGE)["share"])

    def compress(self, epochs: int) -> Compressed:
        """Run all phases that are not done yet. Raises ProofFailed, UnreachableTarget."""
        self._phases = self.phases(epochs)
        now = self._restored()
        now.device = "cpu" if self._trainer is None else self._trainer.device
        now.given = self._check(copy.deepcopy(self._original), "as given")
        phases = self._phases
        for number, phase in enumerate(phases):
            if number < now.done:
                continue
            began = monotonic()
            label = f"{phase.kind} {sum(p.kind == phase.kind for p in phases[: number + 1])}"
            if phase.kind == "tick":
                self._tick(now, phase, label)
            else:
                self._recover(now, phase, label)
            now.done, now.step, now.optimizer = number + 1, 0, None
            now.position += phase.batches
            point: dict[str, Any] = {
                "name": label,
                "seconds": round(monotonic() - began, 2),
                "flops_kept": self._macs.total(now.alive) / self._whole[0],
            }
            found = self._check(now.model, label)
            now.curve.append(point if found is None else point | {"check": found})
            self._log(now.position, point["flops_kept"], found)
            self._save(now)
        return now

    def plan(self, alive: Mask) -> gbn.PrunePlan:
        """The plan, for the original network, that keeps these atoms."""
        return gbn.PrunePlan.of(self._groups, alive)

    def _check(self, model: nn.Module, label: str) -> float | None:
        if self._trainer is None or self._trainer.checkup is None:
            return None
        found = self._trainer.check(model)
        if found is None:
            metric = self._trainer.checkup.metric
            self._console.warn(f"{label}: {metric} is not finite on the samples of the check-up")
        return found

    def _log(self, position: int, flops_kept: float, found: float | None) -> None:
        if self._trainer is None:
            return
        checkup, values = self._trainer.checkup, {"flops_kept": flops_kept}
        if checkup is not None and found is not None:
            values[checkup.metric] = found
        self._trainer.log(values, position, save=True)

    def history(self, now: Compressed) -> dict[str, Any] | None:
        """For the report: what check-ups found after each phase; None without check-ups."""
        checkup = None if self._trainer is None else self._trainer.checkup
        if checkup is None or now.given is None:
            return None
        given = {"name": "as given", "kind": "given", "flops_kept": 1.0, "value": now.given}
        return {
            "metric": checkup.metric,
            "samples": checkup.samples,
            "higher_is_better": checkup.higher_is_better,
            "in_points": checkup.in_points,
            "points": [given]
            + [
                {
                    "name": point["name"],
                    "kind": point["name"].partition(" ")[0],
                    "flops_kept": point["flops_kept"],
                    "value": point["check"],
                }
                for point in now.curve
            ],
        }

    def _tick(self, now: Compressed, phase: Phase, label: str) -> None:
        if self._trainer is None:
            scores = gbn.magnitude_scores(now.model, self._groups)
        else:
            scores = self._trainer.score(now.model, self._groups, now.alive, phase, now.position)
            now.model.cpu()
        alive = self._chosen(scores, phase.keep, now.alive)
        if (alive == now.alive).all():
            told = "nothing to cut yet" if alive.all() else "the last cut went far enough already"
            self._console.say(f"{label}: {told}")
            return
        step = self.plan(alive).after(self.plan(now.alive))
        small = gbn.prune(now.model, step)
        proof = gbn.prove(now.model, step, small, self._probe)
        if proof.vacuous:
            raise gbn.ProofFailed(
                f"{label}: the cut changes no output on the probes, so nothing is proven; give "
                "--data, so that real inputs are compared as well"
            )
        if not proof.ok:
            raise gbn.ProofFailed(
                f"{label}: the pruned network differs from the gated one by "
                f"{proof.max_abs_diff:.2e} of the output's scale (allowed {proof.tolerance:.0e})"
            )
        now.surgery.append(
            {
                "name": label,
                "max_abs_diff": proof.max_abs_diff,
                "tolerance": proof.tolerance,
                "effect": proof.effect,
                "dtype": proof.dtype,
                "randomised": proof.randomised,
                "num_overruled": proof.num_overruled,
            }
        )
        if self._trainer is not None:
            self._repair(now, small, step, self.plan(alive))
        now.model, now.alive = small, alive
        kept = self._macs.total(alive) / self._whole[0]
        self._console.say(
            f"{label}: {kept:.1%} of the MACs kept, gated = removed within {proof.max_abs_diff:.0e}"
        )

    def _chosen(self, scores: gbn.Scores, keep: float, alive: Mask) -> Mask:
        """What stays of `alive` at a tick to `keep` (1: the original cost, 0: the target)."""
        asked = (
            (self._macs, self._goal.flops, self._whole[0], "MACs"),
            (self._params, self._goal.params, self._whole[1], "parameters"),
        )
        counted = [
            gbn.Limit(cost=cost, at_most=limit + round(keep * max(whole - limit, 0)), unit=unit)
            for cost, limit, whole, unit in asked
            if limit is not None
        ]

        settings = self._goal.settings

        def pick(time: gbn.Limit) -> Mask:
            return gbn.choose_in_time(
                self._groups, scores, time, counted, settings=settings, alive=alive
            )

        if self._goal.latency is not None:
            return self._goal.latency.choose(pick, keep)
        return gbn.choose_within(self._groups, scores, counted, settings=settings, alive=alive)

    def _repair(
        self, now: Compressed, small: nn.Module, step: gbn.PrunePlan, plan: gbn.PrunePlan
    ) -> None:
        """Without training. `step` leads to `small` from the network as it stood, `plan` from the
        original."""
        assert self._trainer is not None
        trains = [phase.kind != "tick" for phase in self._phases]
        if not self._refits():
            self._trainer.renew_statistics(small)
        elif any(trains[: now.done]):
            # what a trained network computes by now is its own; before, the original is the aim
            self._trainer.repair(now.model, small, step, last=False)
        else:
            self._trainer.repair(self._original, small, plan, last=not any(trains))
        small.cpu()

    def _refits(self) -> bool:
        return self._goal.recipe.refits(self._phases, self._original)

    def _recover(self, now: Compressed, phase: Phase, label: str) -> None:
        assert self._trainer is not None, "only ticks are scheduled without data"

        def save(step: int, optimizer: dict[str, Any]) -> None:
            now.step, now.optimizer = step, optimizer
            self._save(now)

        progress = Progress(
            step=now.step,
            optimizer=now.optimizer,
            plan=self.plan(now.alive),
            alive=now.alive,
            save=save,
        )
        self._trainer.train(now.model, self._groups, phase, now.position, label, progress)
        now.model.cpu()

    def _save(self, now: Compressed) -> None:
        payload = {
            "made_for": self._made_for(),
            "alive": torch.from_numpy(now.alive),
            "state": {k: v.detach().cpu().clone() for k, v in now.model.state_dict().items()},
            "done": now.done,
            "position": now.position,
            "step": now.step,
            "optimizer": now.optimizer,
            "surgery": now.surgery,
            "curve": now.curve,
            "timed": [] if self._goal.latency is None else self._goal.latency.attempts,
        }
        self._run.save_stage(_STAGE, payload)

    def _made_for(self) -> str:
        """What atom numbers and phases mean, and the recipe's numbers."""
        groups = [(g.name, g.layers, g.atoms, g.size) for g in self._groups.groups]
        recipe = {k: v for k, v in vars(self._goal.recipe).items() if not callable(v)}
        content = repr((version("gbn-compress"), self._phases, groups, recipe))
        return hashlib.sha256(content.encode()).hexdigest()

    def _restored(self) -> Compressed:
        whole = np.ones(self._groups.num_atoms, dtype=np.bool_)
        if not self._run.is_done(_STAGE):
            return Compressed(model=copy.deepcopy(self._original), alive=whole)
        saved = self._run.load_stage(_STAGE)
        if saved.pop("made_for", None) != self._made_for():
            raise UsageError(
                f"--resume: the stages in '{self._run.path}' were made by another version of this "
                "tool or of the model's code: start anew with another --out"
            )
        timed = saved.pop("timed", [])
        if self._goal.latency is not None:
            self._goal.latency.attempts[:] = timed
        alive: Mask = saved.pop("alive").numpy()
        model = gbn.prune(self._original, self.plan(alive))
        model.load_state_dict(saved.pop("state"))
        self._console.say(f"resumed after {len(saved['curve'])} finished phases")
        return Compressed(model=model, alive=alive, **saved)
