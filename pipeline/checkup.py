"""How good the network is between the phases of a run, measured on a few held-out images.

Enters: the run's data, or images made without data, and the original network. Leaves: a `Checkup`,
which measures any network in PyTorch. Its figures draw the curve of a run and decide nothing: what
a run promises is measured on the ONNX files (`verify`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from exporters.accuracy import sum_of
from exporters.fidelity import AGREEMENT, RELATIVE_ERROR
from pipeline.data import Batch, Data
from pipeline.objectives import float_tensors
from pipeline.tasks import Judge

_MIN_IMAGES = 128
_MAX_IMAGES = 512
_SHARE = 0.01  # of the work of a run that may go into its check-ups
_TRAINING_COST = 3  # forward passes that a training step is worth


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """metric: as in the report. in_points: values are fractions in [0, 1].

    measure: of a network in eval mode, on its own device, called without gradients; None where
    the metric is not finite.
    """

    metric: str
    samples: int
    higher_is_better: bool
    in_points: bool
    measure: Callable[[nn.Module], float | None]


def num_images(training_images: int, phases: int) -> int:
    """So many that all check-ups cost a hundredth of training on `training_images`; 128 to 512."""
    affordable = int(_SHARE * _TRAINING_COST * training_images / max(phases, 1))
    return min(max(affordable, _MIN_IMAGES), _MAX_IMAGES)


def on_data(data: Data, judge: Judge, images: int) -> Checkup:
    """Top-1, or the task's metric, on at most `images` validation images."""
    batches = data.val_sample(images)
    metric = judge.task.metric

    def measure(model: nn.Module) -> float | None:
        name = "top1" if metric is None else metric.name
        total, samples = 0.0, 0
        for outputs, targets, size in _outputs(model, batches):
            if metric is None:
                total += int((tree_leaves(outputs)[0].argmax(1) == targets).sum())
            else:
                arrays = [leaf.numpy() for leaf in tree_leaves(outputs)]
                judged = np.asarray(judge.judge(arrays, targets))
                if judged.dtype.kind == "f" and not np.isfinite(judged).all():
                    return None
                total += sum_of(judged, size, name)
            samples += size
        return total / samples

    return Checkup(
        metric="top1" if metric is None else metric.name,
        samples=min(images, data.num_val),
        higher_is_better=metric is None or metric.higher_is_better,
        in_points=judge.task.is_classification,
        measure=measure,
    )


def against_original(compared_on: Tensor, original: nn.Module, classes: bool) -> Checkup:
    """Agreement with `original` on images (N, C, H, W), or the relative error of the outputs."""
    images = compared_on[:_MAX_IMAGES]
    batches = [(part, part) for part in images.split(_MIN_IMAGES)]

    def measure(model: nn.Module) -> float:
        device = next(model.parameters()).device
        pairs = zip(
            _outputs(model, batches), _outputs(original.to(device).eval(), batches), strict=True
        )
        if classes:
            equal = sum(
                int((tree_leaves(a)[0].argmax(1) == tree_leaves(b)[0].argmax(1)).sum())
                for (a, _, _), (b, _, _) in pairs
            )
            return equal / len(images)
        errors, sizes = 0.0, 0.0
        for (a, _, _), (b, _, _) in pairs:
            for found, wanted in zip(float_tensors(a), float_tensors(b), strict=True):
                errors += float((found - wanted).double().square().sum())
                sizes += float(wanted.double().square().sum())
        return float((errors / sizes) ** 0.5) if sizes else 0.0

    return Checkup(
        metric=AGREEMENT if classes else RELATIVE_ERROR,
        samples=len(images),
        higher_is_better=classes,
        in_points=classes,
        measure=measure,
    )


def _outputs(model: nn.Module, batches: Iterable[Batch]) -> Iterator[tuple[Any, Any, int]]:
    """(outputs on the CPU, targets, images in the batch)."""
    device = next(model.parameters()).device
    for images, targets in batches:
        found = model(images.to(device))
        yield torch.utils._pytree.tree_map(_to_cpu, found), targets, len(images)


def _to_cpu(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value
