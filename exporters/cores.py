"""Which processor cores to measure on.

Enters: a number of threads. Leaves: the least busy cores that this process may use, and a context
in which the calling thread stays on one of them. Where the system does not tell (only Linux does),
nothing is pinned. Refused: more threads than cores.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporters.errors import ExportError

_STAT = Path("/proc/stat")
_CPUINFO = Path("/proc/cpuinfo")
_WATCH_S = 0.3
_IDLE, _IOWAIT = 3, 4


def usable_cores() -> int:
    """How many cores this process may use. Raises nothing."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quiet_cores(count: int) -> tuple[int, ...]:
    """The `count` least busy cores, the quietest first; empty where the system does not tell.

    Raises ExportError where there are fewer: threads that wait for a core measure the wait.
    """
    if count < 1:
        raise ExportError(f"threads must be at least 1, got {count}")
    available = usable_cores()
    if count > available:
        raise ExportError(f"{count} threads do not fit on the {available} cores of this process")
    if not hasattr(os, "sched_setaffinity") or not _STAT.is_file():
        return ()
    before = _busy_ticks()
    time.sleep(_WATCH_S)
    after = _busy_ticks()
    allowed = sorted(os.sched_getaffinity(0))
    return tuple(sorted(allowed, key=lambda c: after.get(c, 0) - before.get(c, 0))[:count])


@contextmanager
def on_core(cores: tuple[int, ...]) -> Iterator[None]:
    """Keep the calling thread on the first of `cores`; of none, do nothing.

    Raises OSError where the system does not allow it.
    """
    if not cores:
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores[0]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _busy_ticks() -> dict[int, int]:
    """Core -> clock ticks that it has worked since the system started."""
    found = {}
    for line in _STAT.read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            ticks = [int(field) for field in fields[:8]]
            found[int(name[3:])] = sum(ticks) - ticks[_IDLE] - ticks[_IOWAIT]
    return found


def cpuinfo(*fields: str) -> list[str]:
    """Lines of these fields, of each core; none where the system does not tell."""
    if not _CPUINFO.is_file():
        return []
    lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.startswith(fields)]
