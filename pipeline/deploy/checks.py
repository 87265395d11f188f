"""The outcome of a gate: checks, what they saw, and the exit code.

Enters: one `Check` for each limit. Leaves: a `GateResult`. Two checks of one kind (latency at two
batch sizes) are two `Check`s.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MET, MISSED, UNDECIDED, SKIPPED = "met", "missed", "undecided", "skipped"

EXIT_CODES = {"size": 10, "parity": 11, "accuracy": 12, "latency": 13, "provider": 14}
"""Kind of check -> exit code, in the order in which the first failure is returned."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One limit, what was measured, and the verdict.

    kind: decides the exit code. name: unique within a gate. measured, limit: for people, with
    units. reason: why it was skipped or not decided. seconds: what measuring took.
    """

    kind: str
    name: str
    state: str
    measured: str = "-"
    limit: str = "-"
    reason: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in EXIT_CODES or self.state not in (MET, MISSED, UNDECIDED, SKIPPED):
            raise ValueError(f"no such check: {self.kind} {self.state}")


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """All checks of one `compress verify`.

    figures: sections named and formed as those of the main job's report.json. undecided_passes:
    what an undecided check counts as.
    """

    candidate: Path
    baseline: Path | None
    checks: tuple[Check, ...]
    undecided_passes: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def fails(self, check: Check) -> bool:
        """Whether a check lets the gate fail.

        A skipped one does not by itself: what it was skipped for fails.
        """
        return check.state == MISSED or (check.state == UNDECIDED and not self.undecided_passes)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that fail, in the order of the exit codes."""
        order = list(EXIT_CODES)
        failing = [check for check in self.checks if self.fails(check)]
        return tuple(sorted(failing, key=lambda check: order.index(check.kind)))

    @property
    def exit_code(self) -> int:
        """0, or the code of the first failure."""
        return EXIT_CODES[self.failed[0].kind] if self.failed else 0

    @property
    def headline(self) -> str:
        """The outcome in one line."""
        if self.failed:
            names = ", ".join(
                check.name if check.state == MISSED else f"{check.name} (undecided)"
                for check in self.failed
            )
            return f"failed: {names} (exit code {self.exit_code})"
        open_checks = [check.name for check in self.checks if check.state == UNDECIDED]
        if open_checks:
            return f"passed, with undecided let pass: {', '.join(open_checks)}"
        return f"passed: {', '.join(check.name for check in self.checks if check.state == MET)}"

    def to_json(self) -> str:
        """Strict JSON, ending in a line break."""
        content = {
            "candidate": str(self.candidate),
            "baseline": None if self.baseline is None else str(self.baseline),
            **self.figures,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "verdict": {check.name: check.state for check in self.checks},
            "warnings": list(self.warnings),
            "exit_code": self.exit_code,
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"
