"""Do two ONNX files compute the same?

Enters: two sessions and inputs. Leaves: a `Parity`. Refused: outputs of other names or shapes, no
inputs. Needs no torch.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from exporters.errors import ExportError
from exporters.session import Array, Session


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far two computations of one network are apart.

    max_abs_diff: the largest, over batches and outputs, of |difference| relative to the reference's
    scale: that of the whole output, between networks in memory, and that of each channel or column
    (`slice_difference`) between files; infinite when an output is NaN or infinite on either side.
    output_scale: the largest max |reference|. Zero means that nothing was proven.
    batches: how many were compared.
    """

    max_abs_diff: float
    tolerance: float
    output_scale: float
    batches: int

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance, on outputs that are not all zero."""
        return self.max_abs_diff <= self.tolerance and self.output_scale > 0


def check_session_parity(
    baseline: Session,
    candidate: Session,
    inputs: Iterable[dict[str, Array]],
    tolerance: float,
) -> Parity:
    """Run two files on the same inputs (by name) and compare their outputs by name, in float64.

    Raises ExportError where their outputs differ in name or shape.
    """
    if set(baseline.output_names) != set(candidate.output_names):
        raise ExportError(
            f"the baseline gives {', '.join(baseline.output_names)}, the candidate "
            f"{', '.join(candidate.output_names)}: their outputs cannot be compared"
        )
    order = [candidate.output_names.index(name) for name in baseline.output_names]
    worst, scale, count = 0.0, 0.0, 0
    for values in inputs:
        expected = _run_on(baseline, values)
        if not all(isinstance(x, np.ndarray) and x.dtype.kind not in "OSU" for x in expected):
            raise ExportError(
                "an output is text or a sequence: how far two files are apart is told of arrays of "
                "numbers"
            )
        found = _run_on(candidate, values)
        actual = [found[i] for i in order]
        require_same_shapes(expected, actual, candidate)
        for ours, theirs in zip(expected, actual, strict=True):
            _, output_scale = relative_difference(ours, theirs)
            worst, scale = max(worst, slice_difference(ours, theirs)), max(scale, output_scale)
        count += 1
    if count == 0:
        raise ExportError("parity cannot be checked: no inputs were given")
    return Parity(max_abs_diff=worst, tolerance=tolerance, output_scale=scale, batches=count)


def _run_on(session: Session, values: dict[str, Array]) -> list[Array]:
    return session.run({name: session.as_input(name, value) for name, value in values.items()})


def require_same_shapes(expected: list[Array], actual: list[Array], session: Session) -> None:
    """Raises ExportError where outputs differ in number or shape."""
    ours, theirs = [x.shape for x in expected], [x.shape for x in actual]
    if ours != theirs:
        raise ExportError(
            f"the reference gives {ours}, the ONNX file {theirs} "
            f"({', '.join(session.output_names)}): they are not the same network"
        )


def slice_difference(expected: Array, actual: Array) -> float:
    """The largest difference, relative to the scale of the channel or column that it stands in.

    Slices are those along axis 1 and, of more than two dimensions, along the last. One scale for
    all would hide class scores beside coordinates. A slice counts as having at least a tenth of the
    whole's scale, since rounding errors come from what is large. Infinite as for
    `relative_difference`.
    """
    worst, scale = relative_difference(expected, actual)
    if worst == 0 or math.isinf(worst) or expected.ndim < 2:
        return worst
    apart = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    for axis in {1, expected.ndim - 1} if expected.ndim > 2 else {1}:
        others = tuple(a for a in range(expected.ndim) if a != axis)
        own = np.abs(expected).max(axis=others).astype(np.float64)
        worst = max(worst, float((apart.max(axis=others) / np.maximum(own, 0.1 * scale)).max()))
    return worst


def relative_difference(expected: Array, actual: Array) -> tuple[float, float]:
    """max |difference| / max |expected|, and max |expected|; infinite where one is not finite."""
    if expected.size == 0:
        return 0.0, 0.0
    found = actual.astype(np.float64)
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return math.inf, 0.0
    scale = float(np.abs(expected).max())
    difference = float(np.abs(expected.astype(np.float64) - found).max())
    if difference == 0:
        return 0.0, scale
    return (difference / scale if scale > 0 else math.inf), scale
