"""Measure what was written: two ONNX files, run by onnxruntime, against each other and PyTorch.

Enters: the baseline's and the result's files, the PyTorch twin, and data where there is some.
Leaves: plain measurements for the report. Refused: a provider that did not run the graph.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import exporters
from exporters.intervals import Floats
from exporters.session import Session
from pipeline.console import RunConsole
from pipeline.data import Batch, Data
from pipeline.data_free import MadeData, NothingMade
from pipeline.errors import UsageError
from pipeline.exporting import at_other_sizes
from pipeline.importers import LoadedModel
from pipeline.report import Accuracy, Difference, Fidelity, Latency, LatencySummary
from pipeline.tasks import Judge, Task

PARITY_BATCH = 8
_FIDELITY_BATCH = 32
LATENCY_THREADS = 1
"""More are steady only on a quiet machine; `compress bench --threads N` measures with others."""
_SIGMAS = 3.0


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Inputs (N, C, H, W) on which networks are compared: random ones, and real ones if any.

    `other_sizes`: random ones where height or width are free.
    """

    random: Tensor
    real: Tensor | None
    other_sizes: Tensor | None = None

    @classmethod
    def make(cls, loaded: LoadedModel, data: Data | None, seed: int) -> "Probes":
        """`PARITY_BATCH` of each kind."""
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(PARITY_BATCH, *loaded.input_size, generator=generator)
        real = None
        if data is not None:
            images, _ = next(iter(data.val_loader()))
            real = images[:PARITY_BATCH].float()
        return cls(random=random, real=real, other_sizes=at_other_sizes(loaded, random[:2]))

    def batches(self) -> list[Tensor]:
        """At batch 1 and at the whole size, of each kind."""
        kinds = [self.random] + ([] if self.real is None else [self.real])
        batches = [part for kind in kinds for part in (kind[:1], kind)]
        return batches if self.other_sizes is None else [*batches, self.other_sizes]

    def mixed(self, count: int) -> Tensor:
        """`count` of each kind in one batch, for proofs."""
        parts = [self.random[:count]] + ([] if self.real is None else [self.real[:count]])
        return torch.cat(parts)


def parity(
    model: nn.Module, session: Session, probes: Probes, tolerance: float = 1e-4
) -> Difference:
    """PyTorch against onnxruntime, at batch 1 and a larger one, on random and real inputs."""
    found = exporters.check_parity(model.eval(), session, probes.batches(), tolerance)
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
            f"which is chance level for {classes} classes: check {_normalised(data)}, the order of "
            "the classes and --arch"
        )


def _normalised(data: Data) -> str:
    if data.mean is None or data.std is None:
        return "how the images are normalised in the data (it is taken as it is)"
    mean, std = (",".join(f"{v:g}" for v in values) for values in (data.mean, data.std))
    return f"--mean/--std (now {mean} / {std})"


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


def fidelity(
    before: Session, after: Session, made: MadeData | NothingMade | None
) -> Fidelity | None:
    """Agreement with the original on mixtures of held-out images, where images were made."""
    if not isinstance(made, MadeData):
        return None
    measure = exporters.agreement if made.classes else exporters.relative_error
    found = measure(before, after, made.compared_on.split(_FIDELITY_BATCH))
    return Fidelity(metric=found.metric, samples=found.samples, value=found.value)


def latency(before: Path, after: Path, provider: str, probe: Tensor, seed: int) -> Latency:
    """Both files in turns, in one process, on one input batch, as `compress bench` times them."""
    cores = exporters.quiet_cores(LATENCY_THREADS)
    sessions = [
        exporters.open_session(p, provider, LATENCY_THREADS, cores=cores) for p in (before, after)
    ]
    timed = [
        exporters.Timed(
            name=name,
            session=session,
            inputs={session.input_names[0]: session.as_taken(probe.numpy())},
        )
        for name, session in zip(("before", "after"), sessions, strict=True)
    ]
    with exporters.on_core(cores):
        found = exporters.compare_latency(
            timed[0], timed[1], exporters.LatencySettings(batch=len(probe), seed=seed)
        )
    return Latency(
        provider=found.measured.provider,
        batch=found.measured.batch,
        threads=LATENCY_THREADS,
        before=_summary(found.before, found.measured.samples_ms[:, 0]),
        after=_summary(found.after, found.measured.samples_ms[:, 1]),
        speedup_median=found.speedup_median,
        speedup_ci95=found.speedup_ci95,
        undisturbed_share=found.measured.undisturbed_share,
        warnings=found.measured.warnings,
    )


def _summary(stats: exporters.LatencyStats, samples_ms: Floats) -> LatencySummary:
    quantiles = np.percentile(samples_ms, np.arange(101))
    return LatencySummary(
        p50_ms=stats.p50_ms,
        p90_ms=stats.p90_ms,
        p99_ms=stats.p99_ms,
        n=stats.n,
        cv=stats.cv,
        quantiles_ms=tuple(float(f"{value:.5g}") for value in quantiles),
    )
