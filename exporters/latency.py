"""Compare the latency of ONNX files under noise.

Enters: sessions on one provider, each with its inputs. Leaves: intervals and not single figures,
and for each limit a verdict. Refused: sessions on different providers, inputs of another batch
than stated.

All run in turns in one process (`timing`); the speed-up is the median of the ratios taken round by
round, with its interval (`intervals`), over the rounds that no other process broke. Times are those
of the computation, its inputs and outputs on the provider's device; copies are measured apart. With
limits, the sample grows until each is decided or the time is over.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from exporters.errors import ExportError
from exporters.intervals import Floats, Looks, median_interval
from exporters.latency_limits import LatencyLimits, LimitVerdict, judge
from exporters.session import Array, Session
from exporters.timing import Rounds, garbage_collection_off, warm_up

MAX_STEADY_CV = 0.025
"""A coefficient of variation over this is reported as a noisy measurement."""

_MANY_BROKEN = 0.1
_COPY_RUNS = 15
_COPY_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What is timed: a session and its inputs, (N, ...) arrays by input name."""

    name: str
    session: Session
    inputs: dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """How long and how often to measure.

    batch: dimension 0 of the inputs, for the report; checked against them.
    min_runs: rounds wanted; fewer (when max_seconds end first) are reported as a warning.
    max_runs: rounds after which enough is known.
    min_seconds, max_seconds: of measuring, after the warm-up. Without limits, the first that has
    min_runs ends it; with limits, the first look is at min_seconds.
    seed: of the order within the rounds and of the bootstrap.
    """

    batch: int = 1
    min_runs: int = 50
    max_runs: int = 20_000
    min_seconds: float = 3.0
    max_seconds: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.min_runs <= self.max_runs:
            raise ExportError(
                f"latency runs: 2 <= min_runs <= max_runs is needed, got {self.min_runs} and "
                f"{self.max_runs}"
            )
        if not 0 < self.min_seconds <= self.max_seconds:
            raise ExportError(
                f"latency seconds: 0 < min_seconds <= max_seconds is needed, got "
                f"{self.min_seconds} and {self.max_seconds}"
            )


@dataclass(frozen=True, kw_only=True)
class LatencyStats:
    """Percentiles in milliseconds, the number of samples and their std / mean (`cv`).

    p50_ci95_ms: interval of the median. copies_ms: what copying inputs and outputs to and from the
    device adds to a call.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int
    cv: float
    p50_ci95_ms: tuple[float, float]
    copies_ms: float


@dataclass(frozen=True, kw_only=True)
class LatencyMeasurement:
    """Several files, timed in turns. `stats` and the columns of `samples_ms` follow their order.

    undisturbed: (n,) the rounds in which the system let all run without a break. Ratios and
    verdicts come from these; `stats` are of all rounds.
    warnings: what makes the figures less certain, one line each.
    """

    provider: str
    batch: int
    seconds: float
    stats: tuple[LatencyStats, ...]
    verdicts: tuple[LimitVerdict, ...]
    warnings: tuple[str, ...]
    samples_ms: Floats
    undisturbed: npt.NDArray[np.bool_]

    @property
    def undisturbed_share(self) -> float:
        """Of the rounds."""
        return float(self.undisturbed.mean())

    def speedups(self, index: int) -> Floats:
        """How many times as long the first file took as this one, in each undisturbed round."""
        samples = self.samples_ms[self.undisturbed]
        ratios: Floats = samples[:, 0] / samples[:, index]
        return ratios


@dataclass(frozen=True, kw_only=True)
class LatencyComparison:
    """speedup = before / after, so over 1 is faster; `speedup_ci95` is its 95 % interval."""

    measured: LatencyMeasurement
    before: LatencyStats
    after: LatencyStats
    speedup_median: float
    speedup_ci95: tuple[float, float]

    def to_dict(self) -> dict[str, object]:
        """The `latency` part of report.json, without the samples."""
        return {
            "provider": self.measured.provider,
            "batch": self.measured.batch,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "speedup": {"median": self.speedup_median, "ci95": list(self.speedup_ci95)},
            "undisturbed_share": self.measured.undisturbed_share,
            "warnings": list(self.measured.warnings),
        }


def compare_latency(
    before: Timed,
    after: Timed,
    settings: LatencySettings | None = None,
    limits: LatencyLimits | None = None,
) -> LatencyComparison:
    """Time both in turns; `limits` are of `after`. Raises ExportError."""
    settings = settings or LatencySettings()
    measured = measure_latency((before, after), settings, limits)
    ratios = measured.speedups(1)
    return LatencyComparison(
        measured=measured,
        before=measured.stats[0],
        after=measured.stats[1],
        speedup_median=float(np.median(ratios)),
        speedup_ci95=median_interval(ratios, np.random.default_rng(settings.seed)),
    )


def measure_latency(
    timed: Sequence[Timed], settings: LatencySettings, limits: LatencyLimits | None = None
) -> LatencyMeasurement:
    """Time all in turns. `limits` are of the last one, against the first. Raises ExportError."""
    _require_comparable(timed, settings)
    rng = np.random.default_rng(settings.seed)
    runs = [t.session.bind(t.inputs) for t in timed]
    with garbage_collection_off():
        steady = [warm_up(run) for run in runs]
        copies = [_copies_ms(t) for t in timed]
        rounds = Rounds(runs, rng)
        verdicts = _grow(rounds, settings, limits, rng)
    samples, undisturbed = rounds.samples(), rounds.undisturbed()
    stats = tuple(_stats(samples[:, i], copy_ms, rng) for i, copy_ms in enumerate(copies))
    names = [t.name for t in timed]
    unsteady = [name for name, settled in zip(names, steady, strict=True) if not settled]
    return LatencyMeasurement(
        provider=timed[0].session.provider,
        batch=settings.batch,
        seconds=rounds.spent_s,
        stats=stats,
        verdicts=verdicts,
        warnings=(*_broken(undisturbed), *_warnings(names, stats, unsteady, settings)),
        samples_ms=samples,
        undisturbed=undisturbed,
    )


def _grow(
    rounds: Rounds,
    settings: LatencySettings,
    limits: LatencyLimits | None,
    rng: np.random.Generator,
) -> tuple[LimitVerdict, ...]:
    """Measure until enough is known."""
    if limits is None:
        rounds.add(settings.min_seconds, settings.max_runs)
        if len(rounds) < settings.min_runs and rounds.spent_s < settings.max_seconds:
            rounds.add(settings.max_seconds, settings.min_runs)
        return ()
    looks = Looks.plan(settings.min_seconds, settings.max_seconds)
    verdicts: tuple[LimitVerdict, ...] = ()
    for until_s in looks.seconds:
        rounds.add(until_s, settings.max_runs)
        verdicts = judge(rounds.samples()[rounds.undisturbed()], limits, looks.level, rng)
        decided = all(verdict.decided for verdict in verdicts)
        if (decided and len(rounds) >= settings.min_runs) or len(rounds) >= settings.max_runs:
            break
    return verdicts


def _require_comparable(timed: Sequence[Timed], settings: LatencySettings) -> None:
    providers = sorted({t.session.provider for t in timed})
    if len(providers) > 1:
        raise ExportError(
            f"latencies on different providers do not compare: {' and '.join(providers)}"
        )
    for t in timed:
        for name, value in t.inputs.items():
            if value.ndim == 0 or len(value) != settings.batch:
                raise ExportError(
                    f"input {name!r} is {value.shape}, the stated batch is {settings.batch}"
                )


def _copies_ms(timed: Timed) -> float:
    """What a whole call, from arrays to arrays, takes longer than the computation alone."""
    calls = (lambda: timed.session.run(timed.inputs), timed.session.bind(timed.inputs))
    rounds = Rounds(calls, np.random.default_rng(0))
    rounds.add(_COPY_SECONDS, _COPY_RUNS)
    whole, alone = np.median(rounds.samples(), axis=0)
    return max(float(whole - alone), 0.0)


def _stats(samples_ms: Floats, copies_ms: float, rng: np.random.Generator) -> LatencyStats:
    p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
    return LatencyStats(
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        n=len(samples_ms),
        cv=float(samples_ms.std() / samples_ms.mean()),
        p50_ci95_ms=median_interval(samples_ms, rng),
        copies_ms=copies_ms,
    )


def _broken(undisturbed: npt.NDArray[np.bool_]) -> Iterator[str]:
    share = 1 - float(undisturbed.mean())
    if share > _MANY_BROKEN:
        yield (
            f"other processes broke {100 * share:.0f} % of {len(undisturbed)} rounds; these count "
            f"for p50, p90 and p99, not for comparisons and limits"
        )


def _warnings(
    names: Sequence[str],
    stats: Sequence[LatencyStats],
    unsteady: Sequence[str],
    settings: LatencySettings,
) -> Iterator[str]:
    if stats[0].n < settings.min_runs:
        yield (
            f"only {stats[0].n} of {settings.min_runs} rounds fit into {settings.max_seconds:g} s: "
            f"the interval is wider than it could be"
        )
    for name in unsteady:
        yield f"{name}: still getting faster after the warm-up"
    for name, found in zip(names, stats, strict=True):
        if found.cv > MAX_STEADY_CV:
            yield (
                f"{name}: coefficient of variation {100 * found.cv:.1f} % is over "
                f"{100 * MAX_STEADY_CV:.1f} %: the machine was not quiet"
            )
