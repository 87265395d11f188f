"""What a run found, in sentences: the first thing that a reader of the page sees.

Enters: a `Report`. Leaves: one `Finding` for each check, and the outcome in a line.
"""

import math
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
    """("passed", "unjudged" or "failed", one line): what a glance must tell.

    unjudged: nothing was missed, but how good the file is was not judged, so a person must look.
    """
    missed = [_NAMES.get(c, c) for c, verdict in report.verdict.items() if verdict == MISSED]
    if missed:
        return "failed", f"Failed: {', '.join(missed)} missed. Exit code {report.exit_code}."
    if report.exit_code:
        return "failed", f"Not proven: a needed check was skipped. Exit code {report.exit_code}."
    met = sum(verdict == MET for verdict in report.verdict.values())
    if report.verdict.get("accuracy") == MET:
        return "passed", f"Passed: all {met} checks are met."
    line = f"All {met} checks are met." if met else "Nothing was checked."
    return "unjudged", f"{line} {_unjudged(report)}"


def gist(report: Report) -> str:
    """How much smaller, faster and worse, in a line; what was not measured is left out."""
    parts = []
    if report.size_bytes is not None:
        kept = fmt.percent(report.size_bytes["after"] / report.size_bytes["before"])
        parts.append(f"{kept} of the size")
    if report.flops is not None:
        parts.append(f"{fmt.percent(report.flops['kept'])} of the FLOPs")
    if report.latency is not None:
        median = report.latency["speedup"]["median"]
        parts.append(f"{median:.2f} times as fast{' (slower)' if median < 1 else ''}")
    if report.accuracy is not None:
        parts.append(f"{report.accuracy['metric']} {_change(report.accuracy)}")
    elif report.fidelity is not None and report.fidelity["value"] is not None:
        parts.append(f"{fmt.fidelity(report.fidelity)} on made-up images")
    return ", ".join(parts)


def _unjudged(report: Report) -> str:
    return "No limit was set for accuracy." if report.accuracy else "Accuracy is unknown."


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
    if asked is None:
        return text
    text = f"{text} At most {fmt.percent(asked)} were asked for."
    if section["kept"] <= asked:
        return text
    # what was missed by little looks equal when it is rounded
    return f"{text} That is {section['after']:,} for {math.floor(asked * section['before']):,}."


def _surgery(report: Report) -> str:
    return _difference(
        report.surgery, "Gated to zero or cut for real, the network gives the same outputs"
    )


def _parity(report: Report) -> str:
    text = _difference(report.parity, "onnxruntime and PyTorch give the same outputs")
    if report.precision["kind"] != "int8" or not text:
        return text
    own = report.precision.get("relative_error_from_fp32")
    beside = ""
    if own is not None:
        beside = f" The outputs of the int8 file are off by {fmt.percent(own)} on real images."
    return f"Before quantising: {text}{beside} What that costs, accuracy tells."


def _difference(section: dict[str, Any] | None, claim: str) -> str:
    if section is None:
        return ""
    found, allowed = section["max_abs_diff"], section["tolerance"]
    if found is None or not found <= allowed:  # so that NaN is a difference as well
        claim = claim.replace("the same outputs", "different outputs")
        finite = found is not None and math.isfinite(found)
        size = f"{found:.1e} of their scale" if finite else "no finite difference"
        return f"{claim}: {size}, {allowed:.0e} is allowed."
    return f"{claim} within {found:.1e} of their scale; {allowed:.0e} is allowed."


def _accuracy(report: Report) -> str:
    accuracy = report.accuracy
    if accuracy is None:
        return ""
    after, on = accuracy["after"], f"on {accuracy['samples']:,} samples"
    if not accuracy.get("in_points", True):
        text = f"{accuracy['metric']} {on}: {_change(accuracy)}."
        limit = report.target.get("max_metric_drop")
        return text if limit is None else f"{text} A loss of {limit:g} is allowed."
    sure = _known_to(after, accuracy["samples"])
    text = f"{100 * after:.2f} % {accuracy['metric']} {on} (±{sure} points), {_change(accuracy)}."
    limit = report.target.get("max_accuracy_drop_points")
    points = "point" if limit == 1 else "points"
    return text if limit is None else f"{text} A loss of {limit:g} {points} is allowed."


def _known_to(share: float, samples: int) -> str:
    """Half of the 95 % interval of a share of so many samples, in points (Agresti, Coull 1998)."""
    wide = samples + 4
    near = (share * samples + 2) / wide
    half = 2 * math.sqrt(near * (1 - near) / wide)
    return f"{100 * half:.1f}"


def _change(accuracy: dict[str, Any]) -> str:
    before, after = accuracy["before"], accuracy["after"]
    if not accuracy.get("in_points", True):
        which = fmt.direction(accuracy.get("higher_is_better", True))
        return f"from {before:.4g} to {after:.4g}{which}"
    points = f"{100 * abs(after - before):.2f}"
    if points == "0.00":
        return "as before"
    return f"{points} points {'more' if after > before else 'less'}"


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
    asked = (("latency_ms", "At most {:g} ms"), ("latency_kept", "At most {:g} of the time"))
    for key, limit in asked:
        if target.get(key) is not None:
            text = f"{text} {limit.format(target[key])} was asked for; "
            text += f"{100 * (target.get('latency_tolerance') or 0):g} % more is allowed."
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
