"""How a report's numbers are written for people.

Enters: numbers. Leaves: short text with a unit.
"""

import re
from typing import Any

from pipeline.report.build import MET, MISSED, Report

NOT_MEASURED = "-"
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold at all, not even escaped."""

_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def digits(value: float) -> str:
    """Three significant digits: 4 -> "4.00", 270 -> "270"; more for 1000 and above: "1234"."""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def direction(higher_is_better: bool) -> str:
    """Which way is better, where that is not the usual one."""
    return "" if higher_is_better else " (lower is better)"


def showable(text: str) -> str:
    """What a page can hold of a text: file names, and files, may be anything."""
    return NOT_XML.sub("\ufffd", text)


def count(value: float, unit: str) -> str:
    """1234567 -> "1.23 MB" for the unit "B"; below 1000 the whole number."""
    for step, prefix in _STEPS:
        # 999 600 is 1.00 M and not 1000 k: compare after rounding to three digits.
        if float(f"{value:.3g}") >= step:
            return f"{digits(value / step)} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def size(size_bytes: int) -> str:
    """Decimal megabytes, as file managers and networks count."""
    return count(size_bytes, "B")


def percent(share: float) -> str:
    """0.6 -> "60.0 %"; smaller than a thousandth, 0.00012 -> "0.012 %"."""
    return f"{100 * share:.1f} %" if share >= 1e-3 or share <= 0 else f"{100 * share:.2g} %"


def rows(report: Report) -> list[tuple[str, str, str, str]]:
    """(what, before, after, kept or change) for each measured quantity."""
    table: list[tuple[str, str, str, str]] = []
    for what, section, unit in (
        ("FLOPs (MACs)", report.flops, ""),
        ("Parameters", report.params, ""),
        ("File size", report.size_bytes, "B"),
    ):
        if section is not None:
            before, after = section["before"], section["after"]
            table.append((what, count(before, unit), count(after, unit), percent(after / before)))
    if report.accuracy is not None:
        table.append(_accuracy_row(report.accuracy))
    if report.fidelity is not None:
        table.append(_fidelity_row(report.fidelity))
    if {report.precision["kind"], report.precision.get("before", "fp32")} != {"fp32"}:
        table.append(_precision_row(report.precision))
    if report.latency is not None:
        table.extend(_latency_rows(report.latency))
    return table


def _precision_row(precision: dict[str, Any]) -> tuple[str, str, str, str]:
    notes = []
    if "num_layers" in precision:
        kept = len(precision.get("float_layers", ()))
        notes.append(f"{kept} of {precision['num_layers']} layers in float")
    if precision.get("max_abs_diff_from_fp32") is not None:
        notes.append(f"outputs off fp32 by {percent(precision['max_abs_diff_from_fp32'])} at most")
    if precision.get("relative_error_from_fp32") is not None:
        notes.append(f"outputs off fp32 by {percent(precision['relative_error_from_fp32'])}")
    if precision.get("note"):
        notes.append(precision["note"])
    return ("Precision", precision.get("before", "fp32"), precision["kind"], "; ".join(notes))


def _accuracy_row(accuracy: dict[str, Any]) -> tuple[str, str, str, str]:
    before, after = accuracy["before"], accuracy["after"]
    what = f"{accuracy['metric']} (n={accuracy['samples']})"
    if not accuracy.get("in_points", True):
        better = "higher" if accuracy.get("higher_is_better", True) else "lower"
        change = f"{after - before:+.3g} ({better} is better)"
        return what, f"{before:.4g}", f"{after:.4g}", change
    return (
        what,
        f"{100 * before:.2f} %",
        f"{100 * after:.2f} %",
        f"{100 * (after - before):+.2f} points",
    )


def _fidelity_row(fidelity: dict[str, Any]) -> tuple[str, str, str, str]:
    what = f"Fidelity (n={fidelity['samples']})"
    value = "not finite" if fidelity["value"] is None else percent(fidelity["value"])
    return (what, NOT_MEASURED, value, f"{fidelity['metric']}, made-up images")


def fidelity(section: dict[str, Any]) -> str:
    """ "94.0 % top1 agreement", of a finite one."""
    return f"{percent(section['value'])} {section['metric']}"


def without_data(report: Report) -> str | None:
    """What a run without data did instead, in plain words; None for a run with data."""
    done = report.data_free
    if done is None:
        return None
    if done["reason"] is not None:
        return (
            f"No data was given, and no images could be made ({done['reason']}): channels went by "
            "the size of their weights and nothing was recovered. With --data, scores and recovery "
            "follow real images, and accuracy is measured."
        )
    return (
        f"No data was given: scores and recovery used {done['images']} images made from "
        f"{done['made_from']}. Fidelity compares the two files on mixtures of {done['held_out']} "
        "more of them; it is no accuracy. With --data more is recovered, and accuracy is measured."
    )


def _latency_rows(latency: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    before, after = latency["before"], latency["after"]
    what = f"{latency['provider']}, batch {latency['batch']}"
    rounds = f"n={before['n']}" if before["n"] == after["n"] else f"n={before['n']}, {after['n']}"
    return [
        (
            f"Latency {name}",
            f"{digits(before[key])} ms",
            f"{digits(after[key])} ms",
            speedup(latency) if key == "p50_ms" else (what if key == "p90_ms" else rounds),
        )
        for name, key in (("p50", "p50_ms"), ("p90", "p90_ms"), ("p99", "p99_ms"))
    ]


def timed_on(latency: dict[str, Any]) -> str:
    """ "cpu, batch 1, 1 thread"."""
    threads = latency.get("threads", 1)
    plural = "" if threads == 1 else "s"
    return f"{latency['provider']}, batch {latency['batch']}, {threads} thread{plural}"


def speedup(latency: dict[str, Any]) -> str:
    """ "1.35x [1.30, 1.41]", and in words where that is no speed-up."""
    low, high = latency["speedup"]["ci95"]
    text = f"{latency['speedup']['median']:.2f}x [{low:.2f}, {high:.2f}]"
    if high < 1:
        return f"{text} slower"
    return text if low > 1 else f"{text} no clear change"


def proofs(report: Report) -> list[tuple[str, str]]:
    """(what, difference and tolerance) of surgery and parity, where they were measured."""
    return [
        (what, f"max |diff| {_small(section['max_abs_diff'])}, allowed {section['tolerance']:.0e}")
        for what, section in (
            ("Surgery: gated = smaller network", report.surgery),
            ("Parity: PyTorch = onnxruntime", report.parity),
        )
        if section is not None
    ]


def _small(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2e}"


def headline(report: Report) -> str:
    """The outcome in one line."""
    missed = [check for check, verdict in report.verdict.items() if verdict == MISSED]
    if missed:
        return f"missed: {', '.join(missed)} (exit code {report.exit_code})"
    if report.exit_code:
        return f"not proven: a check that is needed was skipped (exit code {report.exit_code})"
    met = [check for check, verdict in report.verdict.items() if verdict == MET]
    return f"all met: {', '.join(met)}" if met else "nothing was checked"
