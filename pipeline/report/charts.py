"""The charts of a report, each with its figures as a table for those who do not see it.

Enters: sections of `report.json`. Leaves: `Chart`s; None where a section was not measured.
matplotlib is slow to import: this file is imported where a page is made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from pipeline.report import format as fmt
from pipeline.report import svg
from pipeline.report.build import Report
from pipeline.report.comparable import SAME_FILE_SPREAD

_KINDS = {
    "given": ("D", "as given"),
    "tick": ("v", "after a tick: channels removed"),
    "tock": ("o", "after a tock: recovered"),
    "finetune": ("s", "after fine-tuning"),
}
_BESIDE = (
    "How many times as fast is the median of rounds in which both took their turn, undisturbed, "
    "not the ratio of the medians of all runs. The interval is of this process: in another, the "
    "same two files may differ by "
    f"{100 * SAME_FILE_SPREAD:g} %."
)
_QUANTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_BAR_INCHES = 0.32
_LABEL = 32
# More bars than a person looks through, and than a page of 2 MB holds.
_MOST_BARS = 150


@dataclass(frozen=True, kw_only=True)
class Chart:
    """name: [a-z]+, unique in a page. svg: the element. head, rows: the figures in it as text.

    texts: columns that hold words, beside the first.
    """

    name: str
    title: str
    caption: str
    svg: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: tuple[int, ...] = ()


def charts(report: Report) -> list[Chart]:
    """All that this report's sections allow, in the order of the page."""
    makers = (history_chart, sensitivity_chart, widths_chart, layer_times_chart, times_chart)
    made = [make(report) for make in makers]
    return [chart for chart in made if chart is not None]


def history_chart(report: Report) -> Chart | None:
    """The check-ups' metric against the share of the FLOPs that is kept, phase by phase."""
    history = report.history
    points = [p for p in history["points"] if p["value"] is not None] if history else []
    if history is None or len(points) < 2:
        return None
    first, last = points[0], points[-1]
    caption = (
        f"Checked in PyTorch on {history['samples']} held-out samples after each phase; the "
        "accuracy that counts is measured on the ONNX files, above."
    )
    if report.fidelity is not None:
        caption = f"Checked in PyTorch on {history['samples']} made-up images after each phase."
    title = f"{history['metric']} on the way to fewer FLOPs"
    told = (
        f"{title}: from {_value(first, history)} at {fmt.percent(first['flops_kept'])} of the "
        f"FLOPs to {_value(last, history)} at {fmt.percent(last['flops_kept'])}."
    )
    return Chart(
        name="history",
        title=title,
        caption=caption,
        svg=svg.drawn(
            "history", title, told, _draw_history(history, points), height=3.4, rows=(1,)
        ),
        head=("Phase", "FLOPs kept", f"{history['metric']}{_direction(history)}"),
        rows=tuple((p["name"], fmt.percent(p["flops_kept"]), _value(p, history)) for p in points),
    )


def _draw_history(history: dict[str, Any], points: list[dict[str, Any]]) -> svg.Draw:
    scale = 100 if history["in_points"] else 1
    unit = ", %" if history["in_points"] else ""

    def draw(axes: list[Axes]) -> None:
        (ax,) = axes
        kept = [100 * p["flops_kept"] for p in points]
        ax.plot(kept, [scale * p["value"] for p in points], color=svg.LINE, zorder=1)
        for kind, (marker, label) in _KINDS.items():
            own = [p for p in points if p["kind"] == kind]
            recovered = kind in ("tock", "finetune")
            if own:
                ax.scatter(
                    [100 * p["flops_kept"] for p in own],
                    [scale * p["value"] for p in own],
                    marker=marker,
                    # Hollow and wide: where recovery gains nothing, its point lies within.
                    s=30 if recovered else 90,
                    facecolors=svg.AFTER if recovered else "none",
                    edgecolors=svg.AFTER if recovered else svg.BEFORE,
                    linewidths=1.5,
                    label=label,
                    zorder=2,
                )
        ax.invert_xaxis()
        if history["in_points"]:
            ax.set_ylim(top=min(ax.get_ylim()[1], 101))
        ax.set_xlabel("FLOPs kept, %")
        ax.set_ylabel(f"{history['metric']}{unit}{_direction(history)}")
        ax.legend(loc="best")

    return draw


def _direction(section: dict[str, Any]) -> str:
    return fmt.direction(section.get("higher_is_better", True))


def _value(point: dict[str, Any], history: dict[str, Any]) -> str:
    value = point["value"]
    return f"{100 * value:.2f} %" if history["in_points"] else f"{value:.4g}"


def sensitivity_chart(report: Report) -> Chart | None:
    """The check-ups' metric with each group's cut alone."""
    found = report.sensitivity
    rows = [] if found is None else [row for row in found["groups"] if row["value"] is not None]
    if found is None or not rows:
        return None
    scale = 100 if found["in_points"] else 1
    given = None if report.history is None else report.history["points"][0]["value"]
    better = found.get("higher_is_better", True)
    shown, only = _telling(rows, lambda row: (-1 if better else 1) * row["value"], "cost most")

    def draw(axes: list[Axes]) -> None:
        (ax,) = axes
        places = range(len(shown))
        ax.barh(places, [scale * r["value"] for r in shown], height=0.6, color=svg.AFTER)
        if given is not None:
            ax.axvline(scale * given, color=svg.TEXT, linestyle="--", linewidth=1)
        ax.set_yticks(places, [short(row["name"]) for row in shown])
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        unit = ", %" if found["in_points"] else ""
        dashed = "" if given is None else " (dashed: as given)"
        measured = f"{found['metric']}{unit}{_direction(found)}"
        ax.set_xlabel(f"{measured} with this group's cut alone{dashed}")

    worst = (min if better else max)(rows, key=lambda row: float(row["value"]))
    told = f"Cutting {worst['name']} alone costs most: {_value(worst, found)} is left."
    title = "What each group's cut costs alone"
    return Chart(
        name="sensitivity",
        title=title,
        caption=(
            f"The network as given with one group cut and nothing recovered, on {found['samples']} "
            f"held-out samples. {told}{only}"
        ),
        svg=svg.drawn("sensitivity", title, told, draw, height=0.8 + 0.25 * len(shown), rows=(1,)),
        head=("Group", "Channels kept", f"{found['metric']}{_direction(found)}"),
        rows=tuple((r["name"], fmt.percent(r["kept"]), _value(r, found)) for r in rows),
    )


def widths_chart(report: Report) -> Chart | None:
    """Output channels of each layer, before and after."""
    layers = report.layers
    if not layers:
        return None
    title = "Width of each layer"
    cut = [row for row in layers if row["after"] < row["before"]]
    told = f"{len(cut)} of {len(layers)} layers are narrower than before."
    shown, only = _telling(layers, lambda row: row["before"] - row["after"], "lost most")
    rows = tuple(
        (
            row["name"],
            str(row["before"]),
            str(row["after"]),
            fmt.percent(row["after"] / row["before"]),
        )
        for row in layers
    )
    return Chart(
        name="widths",
        title=title,
        caption=f"Output channels or features, in the network's order. {told}{only}",
        svg=_bars("widths", title, told, shown, ("before", "after"), "channels"),
        head=("Layer", "Before", "After", "Kept"),
        rows=rows,
    )


def layer_times_chart(report: Report) -> Chart | None:
    """Milliseconds of each layer, before and after, where they were measured."""
    layers = _layer_times((report.latency or {}).get("layers") or {})
    if not layers:
        return None
    title = "Milliseconds of each layer"
    before, after = (sum(row[key] for row in layers) for key in ("before_ms", "after_ms"))
    told = f"In all {fmt.digits(before)} ms before and {fmt.digits(after)} ms after."
    shown, only = _telling(layers, lambda row: max(row["before_ms"], row["after_ms"]), "take most")
    rows = tuple(
        (row["name"], f"{row['before_ms']:.4g}", f"{row['after_ms']:.4g}", "; ".join(row["notes"]))
        for row in layers
    )
    return Chart(
        name="layertimes",
        title=title,
        caption=(
            f"Each layer's share of a run, in the network's order. {told} Timing single layers "
            f"takes time itself: compare rows, not their sum with the latency.{only}"
        ),
        svg=_bars("layertimes", title, told, shown, ("before_ms", "after_ms"), "ms"),
        head=("Layer", "Before, ms", "After, ms", "Why so little"),
        rows=rows,
        texts=(3,),
    )


def _layer_times(section: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of nodes summed over the layer that they belong to, in the order of first use."""
    layers: dict[str, dict[str, Any]] = {}
    for row in section.get("rows", ()):
        empty: dict[str, Any] = {"before_ms": 0.0, "after_ms": 0.0, "notes": []}
        layer = layers.setdefault(row["layer"], {"name": row["layer"]} | empty)
        layer["before_ms"] += row["ms_before"]
        layer["after_ms"] += row["ms_after"]
        why = row.get("why_little")
        if why and why not in layer["notes"]:
            layer["notes"].append(why)
    return list(layers.values())


def _telling(
    rows: list[dict[str, Any]], weight: Callable[[dict[str, Any]], float], which: str
) -> tuple[list[dict[str, Any]], str]:
    """The heaviest rows, as many as a picture holds, in their order; and a note if any is left."""
    if len(rows) <= _MOST_BARS:
        return rows, ""
    heaviest = sorted(range(len(rows)), key=lambda place: -weight(rows[place]))[:_MOST_BARS]
    note = f" The picture has the {_MOST_BARS} that {which}, the table all {len(rows)}."
    return [rows[place] for place in sorted(heaviest)], note


def _bars(
    name: str,
    title: str,
    told: str,
    layers: Sequence[dict[str, Any]],
    keys: tuple[str, str],
    unit: str,
) -> str:
    def draw(axes: list[Axes]) -> None:
        (ax,) = axes
        places = range(len(layers))
        for key, offset, colour, label in zip(
            keys, (-0.2, 0.2), (svg.BEFORE, svg.AFTER), ("before", "after"), strict=True
        ):
            ax.barh([p + offset for p in places], [row[key] for row in layers], height=0.36,
                    color=colour, label=label)  # fmt: skip
        ax.set_yticks(list(places), [short(row["name"]) for row in layers])
        ax.set_ylim(len(layers) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel(unit)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)

    height = 0.9 + _BAR_INCHES * len(layers)
    return svg.drawn(name, title, told, draw, height=height, rows=(1,))


def short(name: str) -> str:
    """A label that leaves room for its bar: the end of a long name, which the table has in full."""
    return name if len(name) <= _LABEL else f"…{name[1 - _LABEL :]}"


def times_chart(report: Report) -> Chart | None:
    """Both distributions of times, and the interval of the ratio of their medians."""
    latency = report.latency
    if latency is None or not all(latency[w].get("quantiles_ms") for w in ("before", "after")):
        return None
    before, after = (latency[when]["quantiles_ms"] for when in ("before", "after"))
    low, high = latency["speedup"]["ci95"]
    median = latency["speedup"]["median"]

    def draw(axes: list[Axes]) -> None:
        times, ratio = axes
        for values, colour, label in ((before, svg.BEFORE, "before"), (after, svg.AFTER, "after")):
            times.plot(values, range(101), color=colour, label=label)
        # The slowest runs are the system's, not the network's, and would squeeze all others.
        reach = 1.3 * max(before[95], after[95])
        times.set_xlim(0.9 * min(before[0], after[0]), reach)
        times.set_xlabel("ms for a run, both files taking turns")
        times.set_ylabel("% of runs at most that long")
        times.legend(loc="lower right")
        ratio.errorbar([median], [0], xerr=[[max(median - low, 0)], [max(high - median, 0)]],
                       fmt="o", color=svg.AFTER, capsize=4)  # fmt: skip
        ratio.axvline(1, color=svg.TEXT, linestyle="--", linewidth=1)
        ratio.set_yticks([])
        ratio.grid(visible=False, axis="y")
        ratio.set_xlabel("times as fast as before (dashed: no change), with 95 % interval")

    title = "Latency of both files"
    told = (
        f"Medians {fmt.digits(before[50])} ms before and {fmt.digits(after[50])} ms after; "
        f"{median:.2f} times as fast, 95 % interval {low:.2f} to {high:.2f}."
    )
    return Chart(
        name="times",
        title=title,
        caption=f"{fmt.timed_on(latency)}, {latency['before']['n']} rounds. {told} {_BESIDE}",
        svg=svg.drawn("times", title, told, draw, height=4.2, rows=(4, 1)),
        head=("% of runs", "Before, at most ms", "After, at most ms"),
        rows=tuple((str(q), f"{before[q]:.4g}", f"{after[q]:.4g}") for q in _QUANTILES),
    )
