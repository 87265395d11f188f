"""Measure what was written: two ONNX files, run by onnxruntime, against each other and PyTorch.

Enters: the baseline's and the result's files, the PyTorch twin, and data where there is some.
Leaves: plain measurements for the report. Refused: a provider that did not run the graph.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import exporters
from exporters.session import Session
from pipeline.console import RunConsole
from pipeline.data import Batch, Data
from pipeline.errors import UsageError
from pipeline.report import Accuracy, Difference, Latency, LatencySummary
from pipeline.tasks import Judge, Task

PARITY_BATCH = 8
_SIGMAS = 3.0


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Inputs (N, C, H, W) on which networks are compared: random ones, and real ones if any."""

    random: Tensor
    real: Tensor | None

    @classmethod
    def make(cls, input_size: tuple[int, int, int], data: Data | None, seed: int) -> "Probes":
        """`PARITY_BATCH` of each kind."""
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(PARITY_BATCH, *input_size, generator=generator)
        real = None
        if data is not None:
            images, _ = next(iter(data.val_loader()))
            real = images[:PARITY_BATCH].float()
        return cls(random=random, real=real)

    def batches(self) -> list[Tensor]:
        """At batch 1 and at the whole size, of each kind."""
        kinds = [self.random] + ([] if self.real is None else [self.real])
        return [part for kind in kinds for part in (kind[:1], kind)]

    def mixed(self, count: int) -> Tensor:
        """`count` of each kind in one batch, for proofs."""
        parts = [self.random[:count]] + ([] if self.real is None else [self.real[:count]])
        return torch.cat(parts)


def parity(model: nn.Module, session: Session, probes: Probes) -> Difference:
    """PyTorch against onnxruntime, at batch 1 and a larger one, on random and real inputs."""
    found = exporters.check_parity(model.eval(), session, probes.batches())
    difference = found.max_abs_diff if found.output_scale > 0 else float("inf")
    return Difference(max_abs_diff=difference, tolerance=found.tolerance)


def accuracy(
    session: Session, data: Data, judge: Judge, console: RunConsole, label: str
) -> exporters.Accuracy:
    """Top-1, or the metric of the user's task, of an ONNX file on the validation images."""
    loader = data.val_loader()
    with console.progress(label, total=len(loader)) as advance:

        def counted() -> Iterator[Batch]:
            for batch in loader:
                yield batch
                advance(1)

        if judge.task.metric is None:
            return exporters.top1(session, counted())
        return exporters.mean_metric(session, counted(), judge.task.metric.name, judge.judge)


def require_better_than_chance(found: exporters.Accuracy, data: Data, num_outputs: int) -> None:
    """A baseline that guesses means wrong preprocessing or labels: stop before any work.

    Raises UsageError.
    """
    classes = data.num_classes or num_outputs
    chance = 1 / classes
    bound = chance + _SIGMAS * (chance * (1 - chance) / found.samples) ** 0.5
    if found.value <= bound:
        raise UsageError(
            f"the given model is right on {found.value:.1%} of {found.samples} validation images, "
            f"which is chance level for {classes} classes: check --mean/--std (now "
            f"{_numbers(data.mean)} / {_numbers(data.std)}), the order of the classes and --arch"
        )


def _numbers(values: tuple[float, ...] | None) -> str:
    return ",".join(f"{v:g}" for v in values) if values else "none"


def accuracies(before: exporters.Accuracy, after: exporters.Accuracy, task: Task) -> Accuracy:
    """Both files' accuracy, for the report."""
    return Accuracy(
        metric=before.metric,
        samples=before.samples,
        before=before.value,
        after=after.value,
        higher_is_better=task.metric is None or task.metric.higher_is_better,
        in_points=task.is_classification,
    )


def latency(before: Session, after: Session, probe: Tensor, seed: int) -> Latency:
    """Both files in turns, in one process, on one input batch."""
    values = probe.numpy()
    found = exporters.compare_latency(
        before,
        after,
        {before.input_names[0]: values},
        exporters.LatencySettings(batch=len(values), seed=seed),
    )
    return Latency(
        provider=found.provider,
        batch=found.batch,
        before=_summary(found.before),
        after=_summary(found.after),
        speedup_median=found.speedup_median,
        speedup_ci95=found.speedup_ci95,
        warnings=found.warnings,
    )


def _summary(stats: exporters.LatencyStats) -> LatencySummary:
    return LatencySummary(
        p50_ms=stats.p50_ms, p90_ms=stats.p90_ms, p99_ms=stats.p99_ms, n=stats.n, cv=stats.cv
    )
