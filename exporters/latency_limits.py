"""Hold measured times against limits: pass, fail, or not decided yet.

Enters: times (n, 1) or (n, 2) in rounds, limits, the confidence of the interval. Leaves: one
`LimitVerdict` for each limit. Decided on the interval: a limit inside it is undecided. Refused:
limits that nothing or everything meets.
"""

import math
from dataclasses import dataclass

import numpy as np

from exporters.errors import ExportError
from exporters.intervals import Floats, fewest_values, median_interval

PASS, FAIL, UNDECIDED = "pass", "fail", "undecided"


@dataclass(frozen=True, kw_only=True)
class LatencyLimits:
    """What must hold of the median latency.

    max_ms: at most so many milliseconds.
    min_speedup: at least so many times as fast as the baseline.
    max_regression: at most this share slower than the baseline; 0.03 is 3 %.
    """

    max_ms: float | None = None
    min_speedup: float | None = None
    max_regression: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_ms", "min_speedup"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ExportError(f"latency limit {name}: {value} is not a finite number above 0")
        slower = self.max_regression
        if slower is not None and not 0 <= slower < math.inf:
            raise ExportError(
                f"latency limit max_regression: {slower} is not a finite share of 0 or more"
            )

    @property
    def need_baseline(self) -> bool:
        """Whether a limit is relative to a baseline."""
        return self.min_speedup is not None or self.max_regression is not None


@dataclass(frozen=True, kw_only=True)
class LimitVerdict:
    """One limit. value, low, high: the median and its interval; in milliseconds for "max_ms", a
    speed-up for "min_speedup", a share (0.03 = 3 % slower) for "max_regression"."""

    limit_name: str
    limit: float
    value: float
    low: float
    high: float
    level: float
    state: str

    @property
    def decided(self) -> bool:
        """Whether more measuring is needless."""
        return self.state != UNDECIDED


def judge(
    samples_ms: Floats, limits: LatencyLimits, level: float, rng: np.random.Generator
) -> tuple[LimitVerdict, ...]:
    """Hold the last column, against the first, to each limit.

    Too few rounds for an interval at `level` leave all undecided.
    """
    enough = len(samples_ms) >= fewest_values(level)
    ratios = samples_ms[:, -1] / samples_ms[:, 0]
    quantities: tuple[tuple[str, float | None, Floats], ...] = (
        ("max_ms", limits.max_ms, samples_ms[:, -1]),
        ("min_speedup", limits.min_speedup, 1 / ratios),
        ("max_regression", limits.max_regression, ratios - 1),
    )
    found = []
    for name, limit, values in quantities:
        if limit is None:
            continue
        low, high = median_interval(values, rng, level)
        state = UNDECIDED
        if enough:
            state = _state(low, high, limit, at_least=name == "min_speedup")
        found.append(
            LimitVerdict(
                limit_name=name,
                limit=limit,
                value=float(np.median(values)),
                low=low,
                high=high,
                level=level,
                state=state,
            )
        )
    return tuple(found)


def _state(low: float, high: float, limit: float, *, at_least: bool) -> str:
    if at_least:
        low, high, limit = -high, -low, -limit
    if high <= limit:
        return PASS
    return FAIL if low > limit else UNDECIDED
