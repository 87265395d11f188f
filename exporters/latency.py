"""Compare the latency of two ONNX files under noise.

Enters: two sessions on the same provider and one set of inputs. Leaves: a `LatencyComparison`,
an interval and not a single figure. Refused: sessions on different providers, inputs of another
batch than stated.

The two run alternately in one process, in random order within each pair, so that what disturbs
the machine disturbs both; the speed-up is the median of the ratios taken pair by pair, with a
bootstrap interval (Efron 1979, percentile method). Times are those of a whole call, with the
copies to and from a device.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from exporters.errors import ExportError
from exporters.session import Array, Session

MAX_STEADY_CV = 0.025
"""A coefficient of variation over this is reported as a noisy measurement."""

# trtexec's warm-up, for each of the two.
_WARMUP_MS = 200.0
_WARMUP_RUNS = 10
_RESAMPLES = 2000

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """How long and how often to measure.

    batch: dimension 0 of the inputs, for the report; checked against them.
    min_runs: pairs wanted; fewer (when max_seconds end first) are reported as a warning.
    max_runs: pairs after which enough is known.
    min_seconds, max_seconds: of measuring, after the warm-up.
    seed: of the order within the pairs and of the bootstrap.
    """

    batch: int = 1
    min_runs: int = 50
    max_runs: int = 2000
    min_seconds: float = 3.0
    max_seconds: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.min_runs <= self.max_runs:
            raise ExportError(
                f"latency runs: 2 <= min_runs <= max_runs is needed, got {self.min_runs} and "
                f"{self.max_runs}"
            )
        if not 0 <= self.min_seconds <= self.max_seconds:
            raise ExportError(
                f"latency seconds: 0 <= min_seconds <= max_seconds is needed, got "
                f"{self.min_seconds} and {self.max_seconds}"
            )


@dataclass(frozen=True, kw_only=True)
class LatencyStats:
    """Percentiles in milliseconds, the number of samples and their std / mean (`cv`)."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int
    cv: float


@dataclass(frozen=True, kw_only=True)
class LatencyComparison:
    """speedup = before / after, so over 1 is faster; `speedup_ci95` is its 95 % interval.

    warnings: what makes the figures less certain, one line each. The samples are in the order of
    the pairs.
    """

    provider: str
    batch: int
    before: LatencyStats
    after: LatencyStats
    speedup_median: float
    speedup_ci95: tuple[float, float]
    warnings: tuple[str, ...]
    samples_before_ms: tuple[float, ...]
    samples_after_ms: tuple[float, ...]

    def to_dict(self) -> dict[str, object]:
        """The `latency` part of report.json, without the samples."""
        return {
            "provider": self.provider,
            "batch": self.batch,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "speedup": {"median": self.speedup_median, "ci95": list(self.speedup_ci95)},
            "warnings": list(self.warnings),
        }


def compare_latency(
    before: Session,
    after: Session,
    inputs: dict[str, Array],
    settings: LatencySettings | None = None,
) -> LatencyComparison:
    """Time both sessions on `inputs` ((N, ...) arrays by input name). Raises ExportError."""
    settings = settings or LatencySettings()
    _require_comparable(before, after, inputs, settings)
    rng = np.random.default_rng(settings.seed)
    with _garbage_collection_off():
        _warm_up(before, inputs)
        _warm_up(after, inputs)
        pairs = _time_pairs(before, after, inputs, settings, rng)
    stats_before, stats_after = _stats(pairs[:, 0]), _stats(pairs[:, 1])
    ratios = pairs[:, 0] / pairs[:, 1]
    return LatencyComparison(
        provider=before.provider,
        batch=settings.batch,
        before=stats_before,
        after=stats_after,
        speedup_median=float(np.median(ratios)),
        speedup_ci95=bootstrap_median_ci95(ratios, rng),
        warnings=tuple(_warnings(stats_before, stats_after, settings)),
        samples_before_ms=tuple(pairs[:, 0].tolist()),
        samples_after_ms=tuple(pairs[:, 1].tolist()),
    )


def bootstrap_median_ci95(values: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """The 95 % interval of the median of `values` (n,), in the order they were measured.

    From 2000 resamples of runs of neighbours (moving-block bootstrap, Kunsch 1989): what disturbs
    a machine lasts for many pairs, so neighbours are no independent evidence.
    """
    block = max(round(len(values) ** 0.5), 1)
    starts = rng.integers(0, len(values) - block + 1, size=(_RESAMPLES, -(-len(values) // block)))
    picks = (starts[..., None] + np.arange(block)).reshape(_RESAMPLES, -1)[:, : len(values)]
    low, high = np.percentile(np.median(values[picks], axis=1), [2.5, 97.5])
    return float(low), float(high)


def _require_comparable(
    before: Session, after: Session, inputs: dict[str, Array], settings: LatencySettings
) -> None:
    if before.provider != after.provider:
        raise ExportError(
            f"latencies on different providers do not compare: {before.provider} and "
            f"{after.provider}"
        )
    for name, value in inputs.items():
        if value.ndim == 0 or len(value) != settings.batch:
            raise ExportError(
                f"input {name!r} is {value.shape}, the stated batch is {settings.batch}"
            )


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """A collection in the middle of a run would count as its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run_ms(session: Session, inputs: dict[str, Array]) -> float:
    start = time.perf_counter_ns()
    session.run(inputs)
    return (time.perf_counter_ns() - start) / 1e6


def _warm_up(session: Session, inputs: dict[str, Array]) -> None:
    spent_ms, runs = 0.0, 0
    while spent_ms < _WARMUP_MS or runs < _WARMUP_RUNS:
        spent_ms += _run_ms(session, inputs)
        runs += 1


def _time_pairs(
    before: Session,
    after: Session,
    inputs: dict[str, Array],
    settings: LatencySettings,
    rng: np.random.Generator,
) -> Floats:
    """(n, 2) milliseconds, before and after; at least two pairs whatever they take."""
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < settings.max_runs:
        spent = time.perf_counter() - start
        enough = len(pairs) >= settings.min_runs and spent >= settings.min_seconds
        if enough or (len(pairs) >= 2 and spent >= settings.max_seconds):
            break
        if rng.random() < 0.5:
            first = _run_ms(before, inputs)
            pairs.append((first, _run_ms(after, inputs)))
        else:
            second = _run_ms(after, inputs)
            pairs.append((_run_ms(before, inputs), second))
    return np.array(pairs, dtype=np.float64)


def _stats(samples_ms: Floats) -> LatencyStats:
    p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
    return LatencyStats(
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        n=len(samples_ms),
        cv=float(samples_ms.std() / samples_ms.mean()),
    )


def _warnings(
    before: LatencyStats, after: LatencyStats, settings: LatencySettings
) -> Iterator[str]:
    if before.n < settings.min_runs:
        yield (
            f"only {before.n} of {settings.min_runs} pairs fit into {settings.max_seconds:g} s: "
            f"the interval is wider than it could be"
        )
    for name, stats in (("before", before), ("after", after)):
        if stats.cv > MAX_STEADY_CV:
            yield (
                f"{name}: coefficient of variation {100 * stats.cv:.1f} % is over "
                f"{100 * MAX_STEADY_CV:.1f} %: the machine was not quiet"
            )
