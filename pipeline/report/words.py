"""What a run found, in sentences: the first thing that a reader of the page sees.

Enters: a `Report`. Leaves: one `Finding` for each check, and the outcome in a line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.report import format as fmt
from pipeline.report.build import MET, MISSED, NOT_ASKED, SKIPPED, Report

_NAMES = {
    "flops": "FLOPs",
    "params": "Parameters",
    "surgery": "Surgery",
    "parity": "Parity",
    "accuracy": "Accuracy",
    "latency": "Latency",
    "provider": "Provider",
}
_NO_LIMIT, _SKIPPED = "no limit", "skipped"
_ADVICE = {
    "flops": "Ask for less, or unfreeze groups: the table below says what holds them.",
    "params": "Ask for less, or unfreeze groups: the table below says what holds them.",
    "surgery": "Do not deploy this file; the model's code computes what the tracer did not see.",
    "parity": "Do not deploy this file; try another --opset, or --precision fp32.",
    "accuracy": "More --epochs, or a milder target.",
    "latency": "Ask for less speed, cut further by --target-flops, or try --channel-multiple 8.",
    "provider": "Install what the message of the run names, or give another --provider.",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """state: met, missed, "no limit" (measured, nothing asked) or skipped.

    advice: what to do, where it was missed.
    """

    check: str
    state: str
    text: str
    advice: str | None = None


def findings(report: Report) -> list[Finding]:
    """One for each check, missed ones first, skipped ones last."""
    found = [_finding(check, verdict, report) for check, verdict in report.verdict.items()]
    order = (MISSED, MET, _NO_LIMIT, _SKIPPED)
    return sorted(found, key=lambda finding: order.index(finding.state))


def outcome(report: Report) -> tuple[str, str]:
    """("passed" or "failed", one line): what a glance must tell."""
    missed = [_NAMES.get(c, c) for c, verdict in report.verdict.items() if verdict == MISSED]
    if missed:
        return "failed", f"Failed: {', '.join(missed)} missed. Exit code {report.exit_code}."
    if report.exit_code:
        return "failed", f"Not proven: a needed check was skipped. Exit code {report.exit_code}."
    met = sum(verdict == MET for verdict in report.verdict.values())
    line = f"Passed: all {met} checks are met."
    if report.verdict.get("accuracy") != MET:
        line += (
            " How accurate it may be was not asked." if report.accuracy else " Accuracy unknown."
        )
    return "passed", line


def _finding(check: str, verdict: str, report: Report) -> Finding:
    name = _NAMES.get(check, check)
    found = _SENTENCES[check](report) if check in _SENTENCES else ""
    if verdict.startswith(SKIPPED):
        why = f"Not judged: {verdict.removeprefix(SKIPPED)}."
        state = _NO_LIMIT if verdict == NOT_ASKED else _SKIPPED
        return Finding(check=name, state=state, text=f"{found} {why}".strip())
    advice = _ADVICE.get(check) if verdict == MISSED else None
    return Finding(check=name, state=verdict, text=found or verdict, advice=advice)


def _flops(report: Report) -> str:
    return _count(report.flops, report.target.get("flops_kept"), "multiply-accumulates")


def _params(report: Report) -> str:
    return _count(report.params, report.target.get("params_kept"), "parameters")


def _count(section: dict[str, Any] | None, asked: float | None, unit: str) -> str:
    if section is None:
        return ""
    before, after = fmt.count(section["before"], ""), fmt.count(section["after"], "")
    text = f"{fmt.percent(section['kept'])} of the {unit} are left: {after} of {before}."
    return text if asked is None else f"{text} At most {fmt.percent(asked)} were asked for."


def _surgery(report: Report) -> str:
    return _difference(
        report.surgery, "Gated to zero or cut for real, the network gives the same outputs"
    )


def _parity(report: Report) -> str:
    return _difference(report.parity, "onnxruntime and PyTorch give the same outputs")


def _difference(section: dict[str, Any] | None, claim: str) -> str:
    if section is None:
        return ""
    found, allowed = section["max_abs_diff"], section["tolerance"]
    if found is None or found > allowed:
        claim = claim.replace("the same outputs", "different outputs")
        size = "no finite difference" if found is None else f"{found:.1e} of their scale"
        return f"{claim}: {size}, {allowed:.0e} is allowed."
    return f"{claim} within {found:.1e} of their scale; {allowed:.0e} is allowed."


def _accuracy(report: Report) -> str:
    accuracy = report.accuracy
    if accuracy is None:
        return ""
    before, after = accuracy["before"], accuracy["after"]
    on = f"on {accuracy['samples']:,} samples"
    if not accuracy.get("in_points", True):
        text = f"{accuracy['metric']} went from {before:.4g} to {after:.4g} {on}."
        limit = report.target.get("max_metric_drop")
        return text if limit is None else f"{text} A loss of {limit:g} is allowed."
    change = 100 * (after - before)
    direction = "more" if change > 0 else "less"
    text = f"{100 * after:.2f} % {accuracy['metric']} {on}, {abs(change):.2f} points {direction}."
    limit = report.target.get("max_accuracy_drop_points")
    points = "point" if limit == 1 else "points"
    return text if limit is None else f"{text} A loss of {limit:g} {points} is allowed."


def _latency(report: Report) -> str:
    latency = report.latency
    if latency is None:
        return ""
    low, high = latency["speedup"]["ci95"]
    text = (
        f"{latency['speedup']['median']:.2f} times as fast as before (95 % interval {low:.2f} to "
        f"{high:.2f}): {fmt.digits(latency['after']['p50_ms'])} ms on {latency['provider']}, "
        f"batch {latency['batch']}."
    )
    target = report.target
    asked = (
        ("min_speedup", "At least {:g} times as fast"),
        ("latency_ms", "At most {:g} ms (and 3 % more)"),
        ("latency_kept", "At most {:g} of the time (and 3 % more)"),
    )
    for key, limit in asked:
        if target.get(key) is not None:
            text = f"{text} {limit.format(target[key])} was asked for."
    return text


def _provider(report: Report) -> str:
    provider = report.environment.get("provider", "the provider asked for")
    if report.verdict["provider"] == MET:
        return f"onnxruntime ran all convolutions and matrix products on {provider}."
    return f"onnxruntime did not run the graph on {provider}."


_SENTENCES: dict[str, Callable[[Report], str]] = {
    "flops": _flops,
    "params": _params,
    "surgery": _surgery,
    "parity": _parity,
    "accuracy": _accuracy,
    "latency": _latency,
    "provider": _provider,
}
