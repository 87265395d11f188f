"""The ONNX importer on what torch's exporters write, on the onnx package's tests, and on damage.

    python -m benchmarks.onnx_in                 (hours on two cores)
    python -m benchmarks.onnx_in --minutes 8     (as far as it gets; run again to go on)
    python -m benchmarks.onnx_in --only import-time

What leaves: docs/onnx-in.md, once all pieces are there; the section of `benchmarks.onnx_resnet20`
stays. Each piece is kept under a hash of the code that it measures: other code measures anew.
"""

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

import onnx
import torch

from benchmarks.onnx_fuzz import fuzz
from benchmarks.onnx_node_tests import node_cases, run_case
from benchmarks.onnx_resnet20 import DOCUMENT
from benchmarks.onnx_resnet20 import HEADING as RESNET_HEADING
from benchmarks.onnx_torchvision import check, import_time, row, ways
from benchmarks.tables import ROOT, RUNS, SHARED, markdown_table, measured_with
from exporters.errors import ExportError
from pipeline.errors import UsageError, one_line

NOT_DONE = 3
"""Exit code where pieces are left to measure."""
MUTATIONS_A_PIECE, NUM_FUZZ_PIECES = 1000, 20
_MEASURED = (
    "pipeline/importers/onnx_in", "pipeline/errors.py", "exporters/capture.py",
    "exporters/cleanup.py", "exporters/file_parity.py", "exporters/parity.py", "exporters/ports.py",
    "exporters/session.py", "exporters/to_onnx.py",
)  # fmt: skip
_MEASURING = ("onnx_fuzz.py", "onnx_node_tests.py", "onnx_torchvision.py")
_PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu")
_COLUMNS = ("import", "round trip", "file", "within")

Pieces = dict[str, Callable[[], Any]]


def code_hash() -> str:
    """Of all that decides a figure: the code measured, the code that measures, the packages."""
    files = [path for name in _MEASURED for path in _python(ROOT / name)]
    files += [ROOT / "benchmarks" / name for name in _MEASURING]
    digest = hashlib.sha256("".join(f"{p}={version(p)} " for p in _PACKAGES).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _python(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def pieces() -> Pieces:
    """All that is measured, by name, the shortest first."""
    small: Pieces = {"node-tests": _node_tests, "import-time": import_time, "files": _file_rows}
    damaged: Pieces = {f"fuzz-{n}": partial(_fuzz, n) for n in range(NUM_FUZZ_PIECES)}
    # All networks by one exporter and opset before the next, so that a part of it tells much.
    by_exporter = sorted(ways(), key=lambda way: (way.dynamo, -way.opset))
    networks: Pieces = {way.key: partial(_in_scratch, way) for way in by_exporter}
    return small | damaged | networks


def _fuzz(number: int) -> dict[str, Any]:
    return fuzz(MUTATIONS_A_PIECE, first_seed=number)


def _in_scratch(way: Any) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        return row(way, Path(folder))


def _file_rows() -> list[list[str]]:
    """The light models of the onnx package, and the trained ones beside the checkout."""
    light = Path(onnx.__file__).parent / "backend/test/data/light"
    found = [*sorted(light.glob("light_*.onnx")), *sorted((SHARED / "models/onnx").glob("*.onnx"))]
    return [[path.stem, *_file_row(path)] for path in found]


def _file_row(path: Path) -> list[str]:
    proto = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in proto.graph.initializer}
    first = next(value for value in proto.graph.input if value.name not in weights)
    sizes = [dim.dim_value for dim in first.type.tensor_type.shape.dim[1:]]
    batch = torch.randn(3, *sizes, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        try:
            return check(path, batch, Path(folder) / "back.onnx")
        except (UsageError, ExportError) as error:
            return ["", "", "", f"**no**: {one_line(error, 100)}"]


def _node_tests() -> dict[str, Any]:
    """Counts of the onnx package's node tests, and the reasons of those not passed."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for case in node_cases():
        outcome = run_case(case.model, case.data_sets[0], case.rtol)
        counts[outcome.kind] += 1
        if outcome.kind != "passed":
            # Names and numbers out, so that like reasons count together; ops stay.
            text = re.sub(r"'[^']*'|\([^)]*\)|opset \d+|\b\d+\b", "", outcome.detail)
            reasons[f"{outcome.kind}: {' '.join(text.split())[:110]}"] += 1
    return {"counts": counts, "reasons": reasons.most_common()}


def measure(wanted: Pieces, folder: Path, seconds: float) -> Iterator[str]:
    """Measure what `folder` does not hold yet, until the time is up; the names of what is left."""
    began = monotonic()
    for name, run in wanted.items():
        kept = folder / f"{name}.json"
        if kept.is_file():
            continue
        if monotonic() - began > seconds:
            yield name
            continue
        found = json.dumps(run())
        kept.write_text(found, encoding="utf-8")
        print(name, found[:200], flush=True)


def page(found: dict[str, Any], code: str) -> str:
    """The document without the section of `benchmarks.onnx_resnet20`."""
    networks = [found[way.key] for way in ways()]
    counts = Counter(found["node-tests"]["counts"])
    damaged = [found[f"fuzz-{n}"] for n in range(NUM_FUZZ_PIECES)]
    ends: Counter[str] = Counter()
    for part in damaged:
        ends.update(part["ends"])
    listed = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    slowest = max(part["slowest_s"] for part in damaged)
    peak = max(part["peak_bytes"] for part in damaged)
    return (
        "# ONNX in\n\n"
        f"`make bench-onnx-in`; all of it on the code of hash {code}, which the benchmark prints. "
        f"{measured_with()}\n\n## Import time\n\n{found['import-time']}\n\n"
        f"## Mutated files\n\n{MUTATIONS_A_PIECE * NUM_FUZZ_PIECES} mutations: {listed}; slowest "
        f"{slowest:.1f} s, peak memory {peak / 1e6:.0f} MB.\n\n"
        "## Parity\n\nDifferences are of the output's scale, at a batch of 3 (import), and of 1 "
        "and 3 (round trip), or at the batch that a file fixes; allowed is 1e-5 and a file of "
        "1.05x.\n\n### Light models of the onnx package, and trained ones\n\n"
        f"{_verdict(found['files'])}\n\n"
        + markdown_table(["file", *_COLUMNS], found["files"])
        + f"\n### torchvision, both of torch's exporters\n\n{_verdict(networks)}\n\n"
        + markdown_table(["network", "exporter", "opset", *_COLUMNS], networks)
        + f"\n## The onnx package's node tests\n\n{counts['passed']} of {counts.total()} passed, "
        f"{counts['refused']} refused, {counts['wrong']} unlike.\n\n"
        + markdown_table(
            ["tests", "why not passed"],
            [[str(count), reason] for reason, count in found["node-tests"]["reasons"]],
        )
    )


def _verdict(rows: list[list[str]]) -> str:
    ends = Counter(cells[-1].partition(":")[0] for cells in rows)
    figures = [[float(cell) for cell in cells[-4:-1]] for cells in rows if cells[-4]]
    worst = [max(column) for column in zip(*figures, strict=True)]
    beyond = "".join(
        f"; {count} {end}" for end, count in ends.items() if end not in ("yes", "**no**")
    )
    return (
        f"{ends['yes']} of {len(rows)} are within (at most {worst[0]:.1e}, {worst[1]:.1e} and "
        f"{worst[2]:.3f}x){beyond}; {ends['**no**']} are not."
    )


def main(arguments: list[str]) -> int:
    """See the module's text; 3 where pieces are left to measure."""
    parser = argparse.ArgumentParser(prog="benchmarks.onnx_in")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--only", action="append", metavar="PIECE", help="repeatable")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    code, everything = code_hash(), pieces()
    folder = RUNS / "onnx-in" / code
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: everything[name] for name in given.only or everything}
    left = list(measure(wanted, folder, 60 * given.minutes))
    missing = [name for name in everything if not (folder / f"{name}.json").is_file()]
    print(f"code {code}: {len(everything) - len(missing)} of {len(everything)} pieces measured")
    if missing:
        return NOT_DONE if left else 0
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in everything}
    _, heading, rest = DOCUMENT.read_text(encoding="utf-8").partition(RESNET_HEADING)
    DOCUMENT.write_text(f"{page(found, code)}\n{heading}{rest}".rstrip() + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
