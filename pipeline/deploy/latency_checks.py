"""The latency limits of `compress verify`, at each batch size.

Enters: the gate's settings, and the batch sizes. Leaves: a `Check` for each limit and batch, and
the measurements. Candidate and baseline take turns; what is undecided extends the measuring, up to
the time allowed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import exporters
from exporters.latency import LatencyComparison, LatencyMeasurement
from exporters.latency_limits import FAIL, PASS, LimitVerdict
from exporters.session import Array, Session
from pipeline.deploy.checks import MET, MISSED, UNDECIDED, Check
from pipeline.deploy.config import VerifyConfig
from pipeline.deploy.sessions import Runner

_FIRST_LOOK_S = 1.5
_MAX_ROUNDS = 1_000_000  # of the smallest networks in a minute; more would fill the memory
_STATES = {PASS: MET, FAIL: MISSED}


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"


# Limit -> its name, and how a value and the limit are written.
_WORDS: dict[str, tuple[str, Callable[[float], str], str]] = {
    "max_ms": ("latency", _ms, "at most"),
    "min_speedup": ("speed-up", lambda v: f"{v:.3g}x", "at least"),
    "max_regression": ("regression", lambda v: f"{100 * v:+.1f} %", "at most"),
}


def latency_checks(
    config: VerifyConfig, runner: Runner, batches: tuple[int, ...]
) -> tuple[list[Check], list[dict[str, Any]], list[str]]:
    """Checks, sections of the report and warnings. Raises ExportError."""
    limits = exporters.LatencyLimits(
        max_ms=config.limits.max_latency_ms,
        min_speedup=config.limits.min_speedup,
        max_regression=config.limits.max_regression,
    )
    cores = runner.quiet_cores()
    after = runner.open_timed(config.candidate, cores)
    before = None if config.baseline is None else runner.open_timed(config.baseline, cores)
    checks: list[Check] = []
    sections: list[dict[str, Any]] = []
    warnings: list[str] = []
    for batch in batches:
        seconds = config.runtime.max_seconds / len(batches)
        settings = exporters.LatencySettings(
            batch=batch,
            max_runs=_MAX_ROUNDS,
            min_seconds=min(_FIRST_LOOK_S, seconds),
            max_seconds=seconds,
            seed=config.runtime.seed,
        )
        with exporters.on_core(cores):
            measured, section = _measure((before, after), runner, settings, limits)
        label = f" at batch {batch}" if len(batches) > 1 else ""
        checks += [_check(v, label, measured) for v in measured.verdicts]
        sections.append({**section, "threads": config.runtime.threads, "cores": list(cores)})
        warnings += [f"latency{label}: {warning}" for warning in measured.warnings]
    return checks, sections, warnings


def _measure(
    sessions: tuple[Session | None, Session],
    runner: Runner,
    settings: exporters.LatencySettings,
    limits: exporters.LatencyLimits,
) -> tuple[LatencyMeasurement, dict[str, Any]]:
    before, after = sessions
    inputs = runner.inputs(after, settings.batch)
    candidate = exporters.Timed(name="candidate", session=after, inputs=inputs)
    if before is None:
        measured = exporters.measure_latency([candidate], settings, limits)
        return measured, {
            "provider": measured.provider,
            "batch": measured.batch,
            "before": None,
            "after": dataclasses.asdict(measured.stats[0]),
            "speedup": None,
            "undisturbed_share": measured.undisturbed_share,
        }
    baseline = exporters.Timed(name="baseline", session=before, inputs=_as(before, inputs))
    compared: LatencyComparison = exporters.compare_latency(baseline, candidate, settings, limits)
    return compared.measured, compared.to_dict()


def _as(session: Session, inputs: dict[str, Array]) -> dict[str, Array]:
    """The same values in the float types of another file's inputs."""
    return {name: session.as_input(name, value) for name, value in inputs.items()}


def _check(verdict: LimitVerdict, label: str, measured: LatencyMeasurement) -> Check:
    name, text, bound = _WORDS[verdict.limit_name]
    interval = f"[{text(verdict.low)}, {text(verdict.high)}] at {100 * verdict.level:.1f} %"
    state = _STATES.get(verdict.state, UNDECIDED)
    return Check(
        kind="latency",
        name=f"{name}{label}",
        state=state,
        measured=f"{text(verdict.value)} {interval}",
        limit=f"{bound} {text(verdict.limit).lstrip('+')}",
        reason=_reason(verdict, measured) if state == UNDECIDED else "",
        seconds=measured.seconds,
    )


def _reason(verdict: LimitVerdict, measured: LatencyMeasurement) -> str:
    if len(measured.undisturbed) >= _MAX_ROUNDS:
        return f"the interval of {_MAX_ROUNDS:,} rounds holds the limit"
    if verdict.low <= verdict.limit <= verdict.high:
        return "the interval holds the limit: raise --max-seconds"
    if measured.undisturbed.all():
        return "too few rounds: raise --max-seconds"
    return "too few rounds that no other process broke: raise --max-seconds"
