"""Intervals of a median, from measurements that disturb each other, and how often to look.

Enters: values in the order in which they were measured. Leaves: the ends of an interval.
Times of a busy machine have heavy tails, and what disturbs it lasts for many measurements. So the
estimate is a median, and its interval is the wider, at each end, of two:

- from resampling runs of neighbours (moving-block bootstrap, Kunsch 1989, percentile method),
  which sees what changes slowly, but is too narrow where there are few such runs;
- from order statistics. Since chance decides who runs first in a round, each ratio falls above or
  below the true one like a fair coin, whatever disturbs the rounds: this one is exact.
"""

import math
import statistics
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_RESAMPLES = 2000
_MAX_VALUES = 1500
_MAX_EXACT = 200


def median_interval(
    values: Floats, rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """The interval of the median of `values` (n,) at confidence `level`."""
    resampled, ordered = _bootstrap(values, rng, level), _order_statistics(values, level)
    return min(resampled[0], ordered[0]), max(resampled[1], ordered[1])


def _bootstrap(values: Floats, rng: np.random.Generator, level: float) -> tuple[float, float]:
    # More values are first taken together in runs of neighbours, each by its median; runs are odd,
    # since a median of an even number is a mean, whose median is another where values are skewed.
    run = -(-len(values) // _MAX_VALUES) | 1
    if run > 1:
        whole = len(values) // run * run
        values = np.median(values[:whole].reshape(-1, run), axis=1)
    block = max(round(len(values) ** 0.5), 1)
    starts = rng.integers(0, len(values) - block + 1, size=(_RESAMPLES, -(-len(values) // block)))
    picks = (starts[..., None] + np.arange(block)).reshape(_RESAMPLES, -1)[:, : len(values)]
    tail = 50 * (1 - level)
    low, high = np.percentile(np.median(values[picks], axis=1), [tail, 100 - tail])
    return float(low), float(high)


def _order_statistics(values: Floats, level: float) -> tuple[float, float]:
    ordered = np.sort(values)
    outside = _most_outside(len(values), (1 - level) / 2)
    return float(ordered[outside]), float(ordered[len(values) - 1 - outside])


def _most_outside(n: int, tail: float) -> int:
    """How many of n values may be left out at each end: the binomial quantile, less one."""
    if n > _MAX_EXACT:
        sigmas = -statistics.NormalDist().inv_cdf(tail)
        return max(math.floor((n - sigmas * n**0.5) / 2) - 1, 0)
    left_out, below = 0, 0
    for count in range(n // 2):
        below += math.comb(n, count)
        if below > tail * 2**n:
            break
        left_out = count
    return left_out


def fewest_values(level: float) -> int:
    """How many values it takes for any interval of the median at `level`.

    The whole range of n values misses it with probability 2^(1 - n).
    """
    return max(math.ceil(1 - math.log2(1 - level)), 2)


@dataclass(frozen=True, kw_only=True)
class Looks:
    """When a growing sample is looked at, and how sure each look must be.

    Looking again and again until something is found finds it in noise as well. The allowed share
    of errors is spent in equal parts on the looks that can happen (Bonferroni), so that all of
    them together stay below it. seconds: the times of the looks, each 1.5 times the one before.
    level: the confidence of each interval.
    """

    seconds: tuple[float, ...]
    level: float

    @classmethod
    def plan(cls, first_s: float, last_s: float, error: float = 0.05) -> "Looks":
        """From the first to the last second, with a share of wrong verdicts of at most `error`."""
        times = [first_s]
        while times[-1] < last_s:
            # A last look just after another one would cost confidence and bring nothing.
            following = times[-1] * 1.5
            times.append(last_s if following * 1.25 > last_s else following)
        return cls(seconds=tuple(times), level=1 - error / len(times))
