"""A target in time: what the planner is told at each tick, and the proof on the whole graph.

Enters: a `LatencyTarget` and a `TimedNetwork`. Leaves: a `LatencyGoal`. Its last choice is measured
as a whole graph, and repeated with a corrected aim until it is met. Refused, before any work:
targets that no cut can reach by the measured times.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import gbn
from gbn.groups import Mask
from pipeline.console import RunConsole
from pipeline.errors import UsageError
from pipeline.latency.cuts import whole
from pipeline.latency.network import NS, TimedNetwork
from pipeline.target import LatencyTarget

_AIM = 0.996
_LEAST, _MOST = 0.988, 1.008
"""A plan is taken where its whole graph needs between these shares of the target."""
_ATTEMPTS = 6

Pick = Callable[[gbn.Limit], Mask]
"""From a limit in time, beside those that hold anyway, to atoms that stay; raises
UnreachableTarget."""


@dataclass(kw_only=True)
class LatencyGoal:
    """attempts: what was measured on the way, {aim, found} as shares of the target."""

    target: LatencyTarget
    network: TimedNetwork
    console: RunConsole
    attempts: list[dict[str, float]] = field(default_factory=list)

    @property
    def _target_ns(self) -> float:
        return self.target.ms(self.network.before_ms) * NS

    @property
    def _whole_ns(self) -> int:
        return self.network.cost.total(whole(self.network.groups))

    @property
    def own_share(self) -> float:
        """The target as a share of the uncut graph's time in the run's precision."""
        if self.network.same_graph:
            return self.target.ms(self.network.before_ms) / self.network.before_ms
        return self._target_ns / max(self._whole_ns, 1)

    def require_reachable(self, settings: gbn.PlanSettings) -> None:
        """Raises UsageError."""
        least = gbn.smallest(self.network.groups, self.network.cost, settings)
        if least > self._target_ns * (1 + self.target.TOLERANCE):
            before = self.network.before_ms
            frozen = sum(g.frozen for g in self.network.groups.groups)
            raise UsageError(
                f"--target-latency: {self.target.describe(before)} cannot be reached: with the "
                f"fewest channels everywhere the measured layers still take "
                f"{least / NS:.3g} ms ({least / NS / before:.2f}x); frozen groups keep all "
                f"({frozen} of {len(self.network.groups.groups)} are frozen)"
            )

    def limit(self, nanoseconds: float) -> gbn.Limit:
        """For the planner."""
        return gbn.Limit(
            cost=self.network.cost, at_most=max(int(nanoseconds), 1), unit="ns by measured layers"
        )

    def choose(self, pick: Pick, keep: float) -> Mask:
        """What stays at a tick that goes to `keep` (1: all of the time, 0: the target)."""
        if keep > 0:
            level = self._target_ns + keep * max(self._whole_ns - self._target_ns, 0)
            return pick(self.limit(level))
        return self._confirmed(pick)

    def _confirmed(self, pick: Pick) -> Mask:
        aim, nearest = _AIM, float("inf")
        best: Mask | None = None
        before = whole(self.network.groups)
        for _ in range(_ATTEMPTS):
            try:
                alive = pick(self.limit(aim * self._target_ns))
            except gbn.UnreachableTarget:
                # the least of what can be: let the measurement at the end judge it
                if best is None:
                    raise
                break
            if best is not None and (alive == before).all():
                break
            before, found = alive, self._found(alive)
            self.attempts.append({"aim": aim, "found": found})
            self.console.detail(f"aimed at {aim:.3f}, whole graph at {found:.3f} of the target")
            if abs(found - _AIM) < nearest:
                best, nearest = alive, abs(found - _AIM)
            if _LEAST <= found <= _MOST:
                break
            # of all attempts, since each one's measurement is a little off
            aim = _AIM / median(a["found"] / a["aim"] for a in self.attempts)
        assert best is not None, "the first attempt gives a plan or raises"
        return best

    def _found(self, alive: Mask) -> float:
        """The whole graph's time as a share of the target."""
        measured = self.network.whole_time(alive)
        if self.target.share is not None:
            return measured.share / float(self.target.share)
        return measured.ms / self.target.ms(self.network.before_ms)

    def described(self) -> dict[str, Any]:
        """For the report."""
        return self.network.described() | {"attempts": list(self.attempts)}
