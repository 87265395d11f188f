"""docs/onnx-in.md, from what `benchmarks.onnx_in` measured.

No command. What enters: pieces by name. What leaves: Markdown. Sections whose pieces are missing
say so.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.onnx_torchvision import ways
from benchmarks.tables import markdown_table, measured_with

_COLUMNS = ("import", "round trip", "file")
_LIGHT = (
    "The light ones make their weights of one number when they start: as they are they are only "
    "imported, and with random weights of the same shapes they go in and out."
)
_HALF = (
    "Made of TorchScript's files by onnxruntime's converter, with inputs and outputs in either "
    "type; allowed is 1e-2 and a file of 1.05x. Wide: weights that came back in float32."
)

Rows = Sequence[Sequence[str]]


def page(found: dict[str, Any], code: str, command: str) -> str:
    """The document without the section of `benchmarks.onnx_resnet20`."""
    networks = [found[way.key] for way in ways() if way.key in found]
    return (
        f"# ONNX in\n\n`{command}`; all figures are of code whose hash, printed by the benchmark, "
        f"is {code}. {measured_with()}\n\n"
        f"## Import time\n\n{found.get('import-time', 'not measured on this code')}\n\n"
        f"## Mutated files\n\n{_damaged(found)}\n\n"
        "## Parity\n\nDifferences are of the output's scale, at a batch of 3 (import), and of 1 "
        "and 3 (round trip), or at the batch that a file fixes; allowed is 1e-5 and a file of "
        "1.05x.\n\n### Light models of the onnx package, and trained ones\n\n"
        + _table(_LIGHT, ("file", *_COLUMNS, "within"), found.get("files", ()), 1)
        + "\n### Half precision\n\n"
        + _table(_HALF, ("network", "ports", *_COLUMNS, "wide", "within"), found.get("half", ()), 2)
        + "\n### torchvision, both of torch's exporters\n\n"
        + _table(
            f"{len(networks)} of the {len(ways())} combinations of 20 networks, two exporters and "
            "five opsets were measured on this code; dynamo writes no opset below 18.",
            ("network", "exporter", "opset", *_COLUMNS, "within"),
            networks,
            3,
        )
        + f"\n## The onnx package's node tests\n\n{_node_tests(found.get('node-tests'))}"
    )


def _damaged(found: dict[str, Any]) -> str:
    parts = [found[name] for name in sorted(found) if name.startswith("fuzz-")]
    if not parts:
        return "not measured on this code"
    ends: Counter[str] = Counter()
    for part in parts:
        ends.update(part["ends"])
    listed = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    slowest = max(part["slowest_s"] for part in parts)
    peak = max(part["peak_bytes"] for part in parts)
    return (
        f"{ends.total()} mutations: {listed}; slowest {slowest:.1f} s, peak memory "
        f"{peak / 1e6:.0f} MB."
    )


def _table(text: str, header: Sequence[str], rows: Rows, first: int) -> str:
    """`first`: where the three figures of `_COLUMNS` begin."""
    if not rows:
        return f"{text} Not measured on this code.\n"
    return f"{text} {verdict(rows, first)}\n\n{markdown_table(header, rows)}"


def verdict(rows: Rows, first: int) -> str:
    """How many are within, the largest of each of the three figures, and why others are not."""
    ends = Counter(row[-1].partition(":")[0] for row in rows)
    measured = [row[first : first + 3] for row in rows]
    worst = [
        max((float(cell) for cell in column if cell), default=0.0)
        for column in zip(*measured, strict=True)
    ]
    others = "".join(
        f"; {count}: {end}" for end, count in ends.items() if end not in ("yes", "**no**")
    )
    return (
        f"{ends['yes']} of {len(rows)} are within (at most {worst[0]:.1e}, {worst[1]:.1e} and "
        f"{worst[2]:.3f}x){others}; {ends['**no**']} are not."
    )


def _node_tests(found: dict[str, Any] | None) -> str:
    if found is None:
        return "Not measured on this code.\n"
    counts = Counter(found["counts"])
    rows = [[str(count), reason] for reason, count in found["reasons"]]
    return (
        f"{counts['passed']} of {counts.total()} passed, {counts['refused']} refused, "
        f"{counts['wrong']} unlike.\n\n{markdown_table(['tests', 'why not passed'], rows)}"
    )
