"""Accuracy of an ONNX file, measured on the file itself and never on its torch twin.

Enters: a session and labelled batches. Leaves: an `Accuracy`. Refused: outputs that are not
(N, classes), labels that do not fit them, no samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from exporters.errors import ExportError
from exporters.session import Array, Session


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """metric: its name. samples: how many were judged. value: the fraction that is right."""

    metric: str
    samples: int
    value: float


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
