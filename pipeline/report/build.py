"""From measurements to verdicts, an exit code, and `report.json`.

Enters: `Measurements`. Leaves: a frozen `Report`.
A check that nobody asked for is measured and shown, and cannot fail. One that was asked for, and
the proofs of surgery and parity, must be measured: skipped, they fail like a miss.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.report.measurements import CHECKS, BeforeAfter, Difference, Measurements

MET = "met"
MISSED = "missed"
SKIPPED = "skipped: "
NOT_ASKED = f"{SKIPPED}no target was asked"

EXIT_CODES = {
    "flops": 10,
    "params": 10,
    "surgery": 11,
    "parity": 11,
    "accuracy": 12,
    "latency": 13,
    "provider": 14,
}

# A difference of two decimal fractions is off by some 1e-14; one sample in a billion is 1e-7.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of `report.json`; sections that were not measured are None."""

    target: dict[str, Any]
    flops: dict[str, Any] | None
    params: dict[str, Any] | None
    size_bytes: dict[str, Any] | None
    accuracy: dict[str, Any] | None
    fidelity: dict[str, Any] | None
    data_free: dict[str, Any] | None
    surgery: dict[str, Any] | None
    parity: dict[str, Any] | None
    latency: dict[str, Any] | None
    precision: dict[str, Any]
    groups: list[dict[str, Any]]
    stages: list[dict[str, Any]]
    environment: dict[str, Any]
    verdict: dict[str, str]
    exit_code: int
    layers: list[dict[str, Any]] = field(default_factory=list)
    history: dict[str, Any] | None = None
    sensitivity: dict[str, Any] | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Report":
        """From what `to_json` wrote, once it is known to be whole; unknown keys are left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})

    def to_json(self) -> str:
        """Strict JSON, ending in a line break; numbers that are not finite become null."""
        content = _finite({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
        return json.dumps(content, indent=2, allow_nan=False) + "\n"


def build_report(measured: Measurements) -> Report:
    """Judge the measurements. `exit_code` is that of the first failure in the order of CHECKS."""
    verdict = {check: _verdict(check, measured) for check in CHECKS}
    required = _required(measured)
    failed = [
        check
        for check in CHECKS
        if verdict[check] == MISSED or (verdict[check] != MET and check in required)
    ]
    flops = _counts(measured.flops)
    if flops is not None:
        flops["uncounted"] = dict(measured.uncounted_ops)
    accuracy, latency = measured.accuracy, measured.latency
    return Report(
        target=_target_section(measured),
        flops=flops,
        params=_counts(measured.params),
        size_bytes=dataclasses.asdict(measured.size_bytes) if measured.size_bytes else None,
        accuracy=dataclasses.asdict(accuracy) if accuracy else None,
        fidelity=dataclasses.asdict(measured.fidelity) if measured.fidelity else None,
        data_free=dict(measured.data_free) if measured.data_free is not None else None,
        surgery=dataclasses.asdict(measured.surgery) if measured.surgery else None,
        parity=dataclasses.asdict(measured.parity) if measured.parity else None,
        latency=_latency_section(measured) if latency else None,
        precision=dict(measured.precision),
        groups=[dict(group) for group in measured.groups],
        layers=[dict(layer) for layer in measured.layers],
        history=dict(measured.history) if measured.history is not None else None,
        sensitivity=dict(measured.sensitivity) if measured.sensitivity is not None else None,
        stages=[dict(stage) for stage in measured.stages],
        environment=dict(measured.environment),
        verdict=verdict,
        exit_code=EXIT_CODES[failed[0]] if failed else 0,
    )


def _required(measured: Measurements) -> set[str]:
    asked = {
        "flops": measured.target_flops,
        "params": measured.target_params,
        "accuracy": measured.max_accuracy_drop,
        "latency": measured.target_latency_ms or measured.target_latency_kept,
    }
    # where nothing had to go, there is no surgery to prove
    cut = measured.flops is None or measured.flops.after < measured.flops.before
    proofs = {"surgery", "parity"} if cut else {"parity"}
    return proofs | {check for check, limit in asked.items() if limit is not None}


def _verdict(check: str, measured: Measurements) -> str:
    if check in measured.skipped:
        return f"{SKIPPED}{measured.skipped[check]}"
    holds = _CHECKERS[check](measured)
    if holds is None:
        return NOT_ASKED
    return MET if holds else MISSED


def _flops_hold(measured: Measurements) -> bool | None:
    return _count_holds(measured.flops, measured.target_flops)


def _params_hold(measured: Measurements) -> bool | None:
    return _count_holds(measured.params, measured.target_params)


def _count_holds(counts: BeforeAfter | None, limit: int | None) -> bool | None:
    return None if counts is None or limit is None else counts.after <= limit


def _difference_holds(difference: Difference | None) -> bool | None:
    # Written so that NaN does not hold.
    return None if difference is None else difference.max_abs_diff <= difference.tolerance


def _surgery_holds(measured: Measurements) -> bool | None:
    return _difference_holds(measured.surgery)


def _parity_holds(measured: Measurements) -> bool | None:
    return _difference_holds(measured.parity)


def _accuracy_holds(measured: Measurements) -> bool | None:
    if measured.accuracy is None or measured.max_accuracy_drop is None:
        return None
    return measured.accuracy.drop <= measured.max_accuracy_drop + _ROUNDING


def _latency_holds(measured: Measurements) -> bool | None:
    found = measured.latency
    if found is None:
        return None
    allowed = 1 + measured.latency_tolerance
    limit_ms, kept = measured.target_latency_ms, measured.target_latency_kept
    checks = []
    if limit_ms is not None:
        checks.append(found.after.p50_ms <= limit_ms * allowed)
    if kept is not None:
        checks.append(found.speedup_median * kept * allowed >= 1)
    return all(checks) if checks else None


def _provider_holds(measured: Measurements) -> bool | None:
    provider = measured.provider
    return None if provider is None else provider.ran == (provider.requested,)


_CHECKERS = {
    "flops": _flops_hold,
    "params": _params_hold,
    "surgery": _surgery_holds,
    "parity": _parity_holds,
    "accuracy": _accuracy_holds,
    "latency": _latency_holds,
    "provider": _provider_holds,
}


def _counts(counts: BeforeAfter | None) -> dict[str, Any] | None:
    return None if counts is None else dataclasses.asdict(counts) | {"kept": counts.kept}


def _kept_limit(counts: BeforeAfter | None, limit: int | None) -> float | None:
    return None if counts is None or limit is None else limit / counts.before


def _target_section(measured: Measurements) -> dict[str, Any]:
    in_points = measured.accuracy is None or measured.accuracy.in_points
    return {
        "flops_kept": _kept_limit(measured.flops, measured.target_flops),
        "flops": measured.target_flops,
        "params_kept": _kept_limit(measured.params, measured.target_params),
        "params": measured.target_params,
        "max_accuracy_drop_points": measured.max_accuracy_drop if in_points else None,
        "max_metric_drop": None if in_points else measured.max_accuracy_drop,
        "latency_ms": measured.target_latency_ms,
        "latency_kept": measured.target_latency_kept,
        "latency_tolerance": measured.latency_tolerance,
    }


def _latency_section(measured: Measurements) -> dict[str, Any]:
    assert measured.latency is not None
    section = dataclasses.asdict(measured.latency)
    median, interval = section.pop("speedup_median"), section.pop("speedup_ci95")
    return section | {
        "speedup": {"median": median, "ci95": list(interval)},
        "layers": dict(measured.latency_layers),
        "plan": None if measured.latency_plan is None else dict(measured.latency_plan),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
