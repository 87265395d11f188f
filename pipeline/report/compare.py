"""Several runs side by side: quality against latency, and which of them no other one beats.

Enters: reports with names. Leaves: a `Comparison`, an HTML page, a table for the terminal. Runs
that `comparable` leaves out stay in the table, and out of the front, with the reason.
Runs of one original are compared by how many times as fast they made it, which each measured in
turns with the original: milliseconds of two days differ by what else the machine did.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from pipeline.report import format as fmt
from pipeline.report.build import Report
from pipeline.report.comparable import (
    SAME_FILE_SPREAD,
    Quality,
    left_out,
    measured_first,
    original,
    timed_on,
)
from pipeline.report.words import outcome


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run. left_out: why it cannot be on the front; None where it can. on_front: no other run
    is at least as good and as fast, and better in one of both; times whose intervals overlap count
    as equal. charted_ms: the time that the front compares; p50_ms: the run's own."""

    name: str
    report: Report
    quality: Quality | None
    p50_ms: float | None
    charted_ms: float | None
    left_out: str | None
    on_front: bool

    @property
    def cells(self) -> tuple[str, ...]:
        """As under `HEAD`."""
        report = self.report
        latency = report.latency
        return (
            self.name,
            outcome(report)[0],
            fmt.percent(report.flops["kept"]) if report.flops else fmt.NOT_MEASURED,
            fmt.size(report.size_bytes["after"]) if report.size_bytes else fmt.NOT_MEASURED,
            self.quality.text if self.quality else fmt.NOT_MEASURED,
            fmt.digits(self.p50_ms) if self.p50_ms else fmt.NOT_MEASURED,
            fmt.speedup(latency) if latency else fmt.NOT_MEASURED,
            "yes" if self.on_front else (self.left_out or "no"),
        )


HEAD = ("Run", "Outcome", "FLOPs kept", "Size", "Quality", "p50, ms", "Times as fast", "On front")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """entries: in the order given. metric, timed_on: what the front's runs have in common; scaled:
    they made one original faster, and the front's times are its time over the speed-up."""

    entries: tuple[Entry, ...]
    metric: str | None
    timed_on: str | None
    scaled: bool = False

    @property
    def front(self) -> list[Entry]:
        """The fastest first."""
        return sorted((e for e in self.entries if e.on_front), key=lambda e: e.charted_ms or 0.0)

    @property
    def comparable(self) -> list[Entry]:
        """Those that the chart shows."""
        return [entry for entry in self.entries if entry.left_out is None]


def compare(runs: Sequence[tuple[str, Report]]) -> Comparison:
    """What is comparable is what was measured as the first run that has both figures."""
    first = measured_first([report for _, report in runs])
    whole = [(name, report, left_out(report, first)) for name, report in runs]
    good = [report for _, report, why in whole if why is None]
    originals = {original(report) for report in good}
    scaled = len(originals) == 1 and None not in originals
    clock = first.latency["before"]["p50_ms"] if scaled and first and first.latency else None
    entries = tuple(
        Entry(
            name=name,
            report=report,
            quality=Quality.of(report),
            p50_ms=report.latency["after"]["p50_ms"] if report.latency else None,
            charted_ms=_times(report, clock)[1] if report.latency else None,
            left_out=why,
            on_front=why is None
            and len(good) > 1
            and not any(_beats(other, report, clock) for other in good),
        )
        for name, report, why in whole
    )
    quality = Quality.of(first) if first is not None else None
    return Comparison(
        entries=entries,
        metric=quality.label if quality else None,
        timed_on=timed_on(first) if first is not None else None,
        scaled=clock is not None,
    )


def _goodness(report: Report) -> float:
    quality = Quality.of(report)
    assert quality is not None
    return quality.value if quality.higher_is_better else -quality.value


def _times(report: Report, clock: float | None) -> tuple[float, float, float]:
    """Milliseconds: the least they may be, as measured, the most; by the speed-up, where `clock`
    is the original's time."""
    latency = report.latency
    assert latency is not None
    if clock is None:
        own = latency["after"]["p50_ms"]
        return own * (1 - SAME_FILE_SPREAD), own, own * (1 + SAME_FILE_SPREAD)
    low, high = latency["speedup"]["ci95"]
    fastest, slowest = high * (1 + SAME_FILE_SPREAD), low * (1 - SAME_FILE_SPREAD)
    return clock / fastest, clock / latency["speedup"]["median"], clock / slowest


def _beats(one: Report, other: Report, clock: float | None) -> bool:
    better = _goodness(one) - _goodness(other)
    ours, theirs = _times(one, clock), _times(other, clock)
    faster, slower = ours[2] < theirs[0], ours[0] > theirs[2]
    return better >= 0 and not slower and (better > 0 or faster)


def comparison_html(comparison: Comparison) -> str:
    """The page."""
    from pipeline.report.front import front_chart  # matplotlib takes a second to import
    from pipeline.report.html import render

    return render(
        "compare.html.j2",
        head=HEAD,
        comparison=comparison,
        chart=front_chart(comparison),
    )


def comparison_table(comparison: Comparison) -> Table:
    """For the terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(HEAD):
        table.add_column(name, justify="right" if 2 <= number <= 5 else "left")
    for entry in comparison.entries:
        table.add_row(*(Text(cell) for cell in entry.cells))
    return table
