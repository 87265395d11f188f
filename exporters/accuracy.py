"""Accuracy of an ONNX file, measured on the file itself and never on its torch twin.

Enters: a session and batches with what is right. Leaves: an `Accuracy`, by top-1 or by a metric of
the caller. Refused: outputs or labels that do not fit top-1, values that are no metric, no samples.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from exporters.errors import ExportError
from exporters.session import Array, Session


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """metric: its name. samples: how many were judged. value: for top1 the fraction that is right,
    else the metric's mean over the samples."""

    metric: str
    samples: int
    value: float


def mean_metric(
    session: Session,
    batches: Iterable[tuple[Tensor, Any]],
    name: str,
    judge: Callable[[list[Array], Any], Any],
) -> Accuracy:
    """The mean over all samples of what `judge(outputs, targets)` says of each batch.

    Each batch is images (N, C, H, W) and targets of any kind; `outputs` are the graph's, each
    (N, ...). `judge` gives a number, which counts for all N samples, or an array (N,). Raises
    ExportError.
    """
    total, samples = 0.0, 0
    for images, targets in batches:
        outputs = session.run_batch(images.detach().cpu().numpy())
        total += sum_of(judge(outputs, targets), len(images), name)
        samples += len(images)
    if samples == 0:
        raise ExportError(f"{name} cannot be measured: no samples were given")
    return Accuracy(metric=name, samples=samples, value=total / samples)


def sum_of(found: Any, num_samples: int, name: str) -> float:
    """The sum over a batch of what its judge found: a number for all, or an array (N,).

    Raises ExportError for values that are no metric.
    """
    values = np.asarray(found)
    if values.dtype.kind not in "biuf" or values.shape not in ((), (num_samples,)):
        raise ExportError(
            f"the metric {name} gives {values.dtype} of shape {values.shape} for {num_samples} "
            f"samples: it must give one number or ({num_samples},)"
        )
    if not np.isfinite(values).all():
        raise ExportError(f"the metric {name} is not finite on a batch of {num_samples} samples")
    return float(values.sum(dtype=np.float64)) * (num_samples if values.ndim == 0 else 1)


def top1(session: Session, batches: Iterable[tuple[Tensor, Tensor]]) -> Accuracy:
    """The fraction of samples whose highest class score is at the label.

    Each batch is images (N, C, H, W) and integer labels (N,). A sample whose scores contain NaN is
    wrong. Files with a fixed batch are fed in batches of that size. Raises ExportError.
    """
    if len(session.output_names) != 1:
        raise ExportError(
            f"top-1 accuracy needs one output (N, classes), the graph has "
            f"{len(session.output_names)}: {', '.join(session.output_names)}"
        )
    correct, samples = 0, 0
    for images, labels in batches:
        scores = session.run_batch(images.detach().cpu().numpy())[0]
        correct += _num_correct(scores, labels.detach().cpu().numpy(), session.output_names[0])
        samples += len(scores)
    if samples == 0:
        raise ExportError("accuracy cannot be measured: no samples were given")
    return Accuracy(metric="top1", samples=samples, value=correct / samples)


def _num_correct(scores: Array, labels: Array, output_name: str) -> int:
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ExportError(
            f"top-1 accuracy needs an output (N, classes), {output_name!r} is {scores.shape}"
        )
    if labels.shape != scores.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ExportError(
            f"top-1 accuracy needs {len(scores)} integer labels, got {labels.dtype} of shape "
            f"{labels.shape}"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= scores.shape[1]:
        raise ExportError(
            f"labels run from {lowest} to {highest}, the model has classes 0 to "
            f"{scores.shape[1] - 1}"
        )
    known = ~np.isnan(scores).any(axis=1)
    return int(np.sum((scores.argmax(axis=1) == labels) & known))
