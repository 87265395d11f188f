"""Time several ways of computing in turns.

Enters: calls that compute one thing each. Leaves: their times, round by round. In each round every
call is made once, in random order, so that what disturbs the machine disturbs all alike.
"""

import gc
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from exporters.intervals import Floats

if importlib.util.find_spec("resource") is not None:
    import resource
else:
    resource = None  # type: ignore[assignment]

Call = Callable[[], object]

_FEWEST_UNDISTURBED = 0.05

# trtexec's warm-up, for each of them.
_WARMUP_MS = 200.0
_WARMUP_RUNS = 10
_MAX_WARMUP_MS = 3000.0
_STEADY = 0.03
"""Medians of ten runs that differ by less are steady."""


@contextmanager
def garbage_collection_off() -> Iterator[None]:
    """A collection in the middle of a run would count as its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def run_ms(call: Call) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def warm_up(call: Call) -> bool:
    """Call until times are steady: ten times and 0.2 s at the least, 3 s at the most.

    Steady: the median of the last ten is not below that of the ten before by more than 3 %.
    Whether they are; where not even twenty fit into the time, that is not asked.
    """
    times: list[float] = []
    spent_ms = 0.0
    while spent_ms < _MAX_WARMUP_MS:
        times.append(run_ms(call))
        spent_ms += times[-1]
        if len(times) >= 2 * _WARMUP_RUNS and spent_ms >= _WARMUP_MS:
            last = float(np.median(times[-_WARMUP_RUNS:]))
            if last >= (1 - _STEADY) * float(np.median(times[-2 * _WARMUP_RUNS : -_WARMUP_RUNS])):
                return True
    return len(times) < 2 * _WARMUP_RUNS


class Rounds:
    """A growing sample. `samples()` is (n, calls) milliseconds, `undisturbed()` is (n,)."""

    def __init__(self, calls: Sequence[Call], rng: np.random.Generator) -> None:
        self._calls = tuple(calls)
        self._rng = rng
        self._rows: list[list[float]] = []
        self._disturbed: list[bool] = []
        self._spent_s = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def spent_s(self) -> float:
        """Seconds of measuring so far."""
        return self._spent_s

    def samples(self) -> Floats:
        """All times so far, in milliseconds."""
        return np.array(self._rows, dtype=np.float64)

    def undisturbed(self) -> npt.NDArray[np.bool_]:
        """The rounds to judge by: those in which no other process took the core from a run.

        A median over all rounds would jump where about half of the runs are interrupted, as a
        slightly longer one is a little more often. All rounds only where less than one in twenty is
        undisturbed, since runs far longer than the system's time slices are interrupted always
        and alike; and where the system does not tell (Windows).
        """
        quiet = ~np.array(self._disturbed, dtype=np.bool_)
        if quiet.mean() < _FEWEST_UNDISTURBED:
            return np.ones(len(quiet), dtype=np.bool_)
        return quiet

    def add(self, until_s: float, at_most: int) -> None:
        """Go on until so many seconds are spent or so many rounds are there; two at the least."""
        start = time.perf_counter() - self._spent_s
        while len(self) < 2 or (self._spent_s < until_s and len(self) < at_most):
            row = [0.0] * len(self._calls)
            disturbed = False
            for index in self._rng.permutation(len(self._calls)):
                _begin_time_slice()
                switches = _times_preempted()
                row[index] = run_ms(self._calls[index])
                disturbed |= _times_preempted() != switches
            self._rows.append(row)
            self._disturbed.append(disturbed)
            self._spent_s = time.perf_counter() - start


def _begin_time_slice() -> None:
    """Let others go first, where any wait, so that a short run is less often interrupted."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()


def _times_preempted() -> int:
    """How often the system has taken a core from this process for another one."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
