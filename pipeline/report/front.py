"""The chart of several runs: quality against latency, and those that no other one beats.

Enters: a `Comparison`. Leaves: a `Chart`, None for fewer than two runs that compare.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes

from pipeline.report import svg
from pipeline.report.charts import Chart, short
from pipeline.report.comparable import SAME_FILE_SPREAD
from pipeline.report.compare import Comparison, Entry

_NEAR = 0.04  # of the chart's width and height: labels would lie on each other


def front_chart(comparison: Comparison) -> Chart | None:
    """Quality against latency of several runs, with those that no other one beats joined."""
    entries = comparison.comparable
    if len(entries) < 2:
        return None
    title = "Quality against latency"
    told = f"On the front: {', '.join(entry.name for entry in comparison.front)}."
    if not comparison.scaled:
        told += (
            " The runs are of several originals, so times are each run's own, and in them is what "
            "else the machine did."
        )
    else:
        told += (
            " All runs made one original faster: times are that of the first run's original over "
            "each run's speed-up, and count as equal where the intervals, widened by the "
            f"{100 * SAME_FILE_SPREAD:g} % that two processes differ by, overlap."
        )
    return Chart(
        name="front",
        title=title,
        caption=f"{comparison.metric}, {comparison.timed_on}. {told}",
        svg=svg.drawn("front", title, told, _draw(comparison), height=3.8, rows=(1,)),
        head=("Run", _time_label(comparison), comparison.metric or ""),
        rows=tuple(
            (e.name, f"{e.charted_ms:.4g}", e.quality.text if e.quality else "") for e in entries
        ),
    )


def _draw(comparison: Comparison) -> svg.Draw:
    entries, front = comparison.comparable, comparison.front

    def draw(axes: list[Axes]) -> None:
        (ax,) = axes
        ax.plot(*zip(*map(_place, front), strict=True), color=svg.AFTER, linewidth=1, zorder=1)
        for chosen, marker, colour, label in (
            (front, "o", svg.AFTER, "on the front"),
            ([e for e in entries if not e.on_front], "x", svg.TEXT, "beaten by another run"),
        ):
            if chosen:
                ax.scatter(*zip(*map(_place, chosen), strict=True), marker=marker, color=colour,
                           label=label, zorder=2)  # fmt: skip
        for place, names in _labels(entries).items():
            ax.annotate(names, place, xytext=(5, 5), textcoords="offset points")
        ax.margins(0.15)
        ax.set_xlabel(_time_label(comparison))
        unit = ", %" if all(e.quality and e.quality.in_points for e in entries) else ""
        ax.set_ylabel(f"{comparison.metric}{unit}")
        if unit:
            ax.set_ylim(top=min(ax.get_ylim()[1], 101))
        ax.legend(loc="best")

    return draw


def _time_label(comparison: Comparison) -> str:
    return "p50, ms, by the first run's clock" if comparison.scaled else "p50, ms"


def _place(entry: Entry) -> tuple[float, float]:
    assert entry.quality is not None
    assert entry.charted_ms is not None
    return entry.charted_ms, entry.quality.value * (100 if entry.quality.in_points else 1)


def _labels(entries: Sequence[Entry]) -> dict[tuple[float, float], str]:
    """One label for each point: runs that lie on each other, or nearly, share it."""
    places = [_place(entry) for entry in entries]
    wide, high = (max(found) - min(found) for found in zip(*places, strict=True))
    names: dict[tuple[float, float], list[str]] = {}
    for entry, (x, y) in zip(entries, places, strict=True):
        near = (
            (a, b) for a, b in names if abs(a - x) <= _NEAR * wide and abs(b - y) <= _NEAR * high
        )
        names.setdefault(next(near, (x, y)), []).append(short(entry.name))
    return {place: ", ".join(found) for place, found in names.items()}
