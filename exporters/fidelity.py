"""How faithful one ONNX file is to another on the same inputs; no label is needed.

Enters: two sessions and batches of inputs (N, C, H, W). Leaves: a `Fidelity`.
Refused: files whose outputs differ in number or shape, no samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from exporters.errors import ExportError
from exporters.session import Array, Session

AGREEMENT = "top1 agreement"
RELATIVE_ERROR = "relative error"


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """metric: AGREEMENT, a share where 1 is best, or RELATIVE_ERROR, where 0 is best."""

    metric: str
    samples: int
    value: float


def agreement(before: Session, after: Session, batches: Iterable[Tensor]) -> Fidelity:
    """The share of samples for which both files put the same class first.

    Both have one output (N, classes). Scores that contain NaN agree with nothing. Raises
    ExportError.
    """
    equal, samples = 0, 0
    for outputs, others in _both(before, after, batches):
        scores, other = outputs[0], others[0]
        if len(outputs) != 1 or scores.ndim != 2 or scores.shape[1] < 2:
            raise ExportError(
                "agreement needs one output (N, classes), the graph gives "
                + ", ".join(str(output.shape) for output in outputs)
            )
        known = ~(np.isnan(scores).any(axis=1) | np.isnan(other).any(axis=1))
        equal += int(np.sum((scores.argmax(axis=1) == other.argmax(axis=1)) & known))
        samples += len(scores)
    return Fidelity(metric=AGREEMENT, samples=_some(samples), value=equal / samples)


def relative_error(before: Session, after: Session, batches: Iterable[Tensor]) -> Fidelity:
    """The L2 norm of the difference over that of what `before` gives, of the worst output.

    Each output is judged over all samples. Raises ExportError.
    """
    samples = 0
    errors: dict[int, float] = {}
    sizes: dict[int, float] = {}
    for outputs, others in _both(before, after, batches):
        for number, (output, other) in enumerate(zip(outputs, others, strict=True)):
            wanted, found = output.astype(np.float64), other.astype(np.float64)
            errors[number] = errors.get(number, 0.0) + float(np.square(found - wanted).sum())
            sizes[number] = sizes.get(number, 0.0) + float(np.square(wanted).sum())
        samples += len(outputs[0])
    _some(samples)
    worst = max(_ratio(error, sizes[number]) for number, error in errors.items())
    return Fidelity(metric=RELATIVE_ERROR, samples=samples, value=worst)


def _ratio(error: float, size: float) -> float:
    if error == 0:
        return 0.0
    return (error / size) ** 0.5 if size > 0 else float("inf")


def _some(samples: int) -> int:
    if samples == 0:
        raise ExportError("fidelity cannot be measured: no samples were given")
    return samples


def _both(
    before: Session, after: Session, batches: Iterable[Tensor]
) -> Iterable[tuple[list[Array], list[Array]]]:
    for images in batches:
        values = images.detach().cpu().numpy()
        outputs, others = before.run_batch(values), after.run_batch(values)
        shapes, other_shapes = [o.shape for o in outputs], [o.shape for o in others]
        if shapes != other_shapes:
            raise ExportError(
                f"the files cannot be compared: one gives {shapes}, the other {other_shapes}"
            )
        yield outputs, others
