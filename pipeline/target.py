"""What a cost target means.

Enters: the text of `--target-flops`, `--target-params` or `--target-latency`.
Leaves: a `Target`, which gives the allowed count for a baseline, or a `LatencyTarget`.
Refused, with `UsageError`: shares outside (0, 1], counts and times without a unit, anything
unreadable.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from pipeline.errors import UsageError

_UNITS = {
    "": Fraction(1),
    "%": Fraction(1, 100),
    "k": Fraction(10**3),
    "m": Fraction(10**6),
    "g": Fraction(10**9),
    "t": Fraction(10**12),
}
_PREFIXES = ((10**9, "G"), (10**6, "M"), (10**3, "k"))
_TARGET = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[kmgt%]?)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What may remain of a cost: a share of the baseline, or an absolute count.

    Exactly one of the two is set. `share` is exact, so that 0.29 of 100 is 29 and not 28.
    """

    share: Fraction | None = None
    """Largest share of the baseline that may remain, in (0, 1]."""
    count: int | None = None
    """Largest count that may remain (MACs or parameters), at least 1."""

    def __post_init__(self) -> None:
        if (self.share is None) == (self.count is None):
            raise UsageError("a target is either a share or a count: give one of them")
        if self.share is not None and not 0 < self.share <= 1:
            raise UsageError(f"a target's share lies in (0, 1], {self.share} does not")
        if self.count is not None and self.count < 1:
            raise UsageError(f"a target's count is at least 1, {self.count} is not")

    @classmethod
    def parse(cls, text: str, what: str) -> "Target":
        """Read "0.6" or "60%" (keep at most 60 %), or "25M", "1.8G", "300k" (absolute).

        `what` names the option in messages. Raises UsageError for anything else, also for a bare
        number above 1, which could mean per cent, a speed-up or a count.
        """
        forms = "give the share to keep, 0.6 or 60%, or a count with a unit, 300k, 25M or 1.8G"
        match = _TARGET.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"{what}: cannot read {text!r}: {forms}")
        number, unit = Fraction(match["number"]), match["unit"].lower()
        is_share = unit in ("", "%")
        value = number * _UNITS[unit]
        if value == 0 or (not is_share and value < 1):
            raise UsageError(f"{what}: {text!r} keeps nothing: {forms}")
        if is_share and value > 1:
            hint = "a share is at most 100%" if unit else "did you mean 0.6 or 25M?"
            raise UsageError(f"{what}: {text!r} is above 1: {hint} ({forms})")
        return cls(share=value) if is_share else cls(count=math.floor(value))

    def absolute(self, baseline: int) -> int:
        """The largest count that meets the target, rounded down; `baseline` in the same unit."""
        if self.count is not None:
            return self.count
        assert self.share is not None
        return math.floor(self.share * baseline)

    def fraction(self, baseline: int) -> float:
        """The target as a share of `baseline`; above 1 where the baseline is already below it."""
        if baseline <= 0:
            raise UsageError("a baseline of 0 has no share: nothing in the model was counted")
        return float(self.share) if self.share is not None else self.absolute(baseline) / baseline

    def asked(self, unit: str) -> str:
        """ "keep at most 60 % of the FLOPs (remove at least 40 %)", before a baseline is known."""
        if self.count is not None:
            return f"keep at most {self.count:,} {unit}"
        assert self.share is not None
        kept = 100 * float(self.share)
        return f"keep at most {kept:.4g} % of the {unit} (remove at least {100 - kept:.4g} %)"

    def describe(self, baseline: int, unit: str) -> str:
        """ "keep 60.0 % = 24.6 of 41.0 MFLOPs (remove 40.0 %)" for a baseline in `unit` "FLOPs".

        Both shares are said, since tools disagree on which one a target means.
        """
        kept, allowed = self.fraction(baseline), self.absolute(baseline)
        step, prefix = next(
            ((step, prefix) for step, prefix in _PREFIXES if baseline >= step), (1, "")
        )
        digits = 1 if prefix else 0
        amounts = f"{allowed / step:.{digits}f} of {baseline / step:.{digits}f} {prefix}{unit}"
        if kept >= 1:
            return f"keep at most {amounts}: already met"
        return f"keep {100 * kept:.1f} % = {amounts} (remove {100 * (1 - kept):.1f} %)"


_TIME = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>us|ms|s|x)", re.IGNORECASE)
_MS = {"us": Fraction(1, 1000), "ms": Fraction(1), "s": Fraction(1000)}


@dataclass(frozen=True, kw_only=True)
class LatencyTarget:
    """What may remain of the median time of a run: a share of the baseline's, or milliseconds.

    Exactly one of the two is set.
    """

    TOLERANCE: ClassVar[float] = 0.03
    """Times measured twice differ; a target counts as met up to this share above it."""

    share: Fraction | None = None
    """In (0, 1]."""
    limit_ms: Fraction | None = None
    """Above 0."""

    def __post_init__(self) -> None:
        if (self.share is None) == (self.limit_ms is None):
            raise UsageError("a latency target is either a share or a time: give one of them")
        if self.share is not None and not 0 < self.share <= 1:
            raise UsageError(f"a latency target's share lies in (0, 1], {self.share} does not")
        if self.limit_ms is not None and self.limit_ms <= 0:
            raise UsageError(f"a latency target is above 0 ms, {self.limit_ms} is not")

    @classmethod
    def parse(cls, text: str, what: str) -> "LatencyTarget":
        """Read "0.6x" (at most 0.6 times the baseline's time) or "4ms", "800us", "0.1s".

        `what` names the option in messages. Raises UsageError for anything else.
        """
        forms = "give a time with its unit, 4ms or 800us, or the share of the time to keep, 0.6x"
        match = _TIME.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"{what}: cannot read {text!r}: {forms}")
        number, unit = Fraction(match["number"]), match["unit"].lower()
        if number == 0:
            raise UsageError(f"{what}: {text!r} leaves no time: {forms}")
        if unit == "x":
            if number > 1:
                raise UsageError(
                    f"{what}: {text!r} is above 1: 0.5x keeps half of the time, twice the speed "
                    f"({forms})"
                )
            return cls(share=number)
        return cls(limit_ms=number * _MS[unit])

    def ms(self, before_ms: float) -> float:
        """The time that may remain, for a baseline of `before_ms`."""
        if self.limit_ms is not None:
            return float(self.limit_ms)
        assert self.share is not None
        return float(self.share) * before_ms

    def asked(self) -> str:
        """ "at most 0.6 times the time" or "at most 4 ms a run", before a baseline is known."""
        if self.share is not None:
            return f"at most {float(self.share):.4g} times the time"
        assert self.limit_ms is not None
        return f"at most {float(self.limit_ms):.4g} ms a run"

    def describe(self, before_ms: float) -> str:
        """ "4 ms (0.6x) of 6.67 ms"."""
        ms = self.ms(before_ms)
        return f"{ms:.3g} ms ({ms / before_ms:.2f}x) of {before_ms:.3g} ms"
