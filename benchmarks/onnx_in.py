"""The ONNX importer on what torch's exporters write, on the onnx package's tests, and on damage.

    python -m benchmarks.onnx_in                 (hours on two cores)
    python -m benchmarks.onnx_in --minutes 8     (as far as it gets; run again to go on)
    python -m benchmarks.onnx_in --only import-time
    python -m benchmarks.onnx_in --minutes 0 --page

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

import torch

from benchmarks.onnx_files import file_rows
from benchmarks.onnx_fuzz import fuzz
from benchmarks.onnx_half import half_rows
from benchmarks.onnx_node_tests import node_cases, run_case
from benchmarks.onnx_page import page
from benchmarks.onnx_resnet20 import DOCUMENT
from benchmarks.onnx_resnet20 import HEADING as RESNET_HEADING
from benchmarks.onnx_torchvision import import_time, row, ways
from benchmarks.tables import ROOT, RUNS

NOT_DONE = 3
"""Exit code where pieces are left to measure."""
MUTATIONS_A_PIECE, NUM_FUZZ_PIECES = 1000, 20
_MEASURED = (
    "pipeline/importers/onnx_in", "pipeline/errors.py", "exporters/capture.py",
    "exporters/cleanup.py", "exporters/file_parity.py", "exporters/parity.py", "exporters/ports.py",
    "exporters/precision.py", "exporters/session.py", "exporters/to_onnx.py",
)  # fmt: skip
_MEASURING = ("files", "fuzz", "half", "node_tests", "torchvision")
_PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu")

Pieces = dict[str, Callable[[], Any]]


def code_hash() -> str:
    """Of all that decides a figure: the code measured, the code that measures, the packages."""
    files = [path for name in _MEASURED for path in _python(ROOT / name)]
    files += [ROOT / "benchmarks" / f"onnx_{name}.py" for name in _MEASURING]
    digest = hashlib.sha256("".join(f"{p}={version(p)} " for p in _PACKAGES).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _python(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def pieces() -> Pieces:
    """All that is measured, by name, the shortest first."""
    small: Pieces = {
        "node-tests": _node_tests,
        "import-time": import_time,
        "files": partial(_in_scratch, file_rows),
        "half": partial(_in_scratch, half_rows),
    }
    damaged: Pieces = {f"fuzz-{n}": partial(_fuzz, n) for n in range(NUM_FUZZ_PIECES)}
    # All networks by one exporter and opset before the next, so that a part of it tells much.
    by_exporter = sorted(ways(), key=lambda way: (way.dynamo, -way.opset))
    networks: Pieces = {way.key: partial(_in_scratch, partial(row, way)) for way in by_exporter}
    return small | damaged | networks


def _fuzz(number: int) -> dict[str, Any]:
    return fuzz(MUTATIONS_A_PIECE, first_seed=number)


def _in_scratch(measured: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return measured(Path(folder))


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


def main(arguments: list[str]) -> int:
    """See the module's text; 3 where pieces are left to measure."""
    parser = argparse.ArgumentParser(prog="benchmarks.onnx_in")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--page", action="store_true", help="write it of what is there already")
    parser.add_argument("--only", action="append", metavar="PIECE", help="repeatable")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    code, everything = code_hash(), pieces()
    folder = RUNS / "onnx-in" / code
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: everything[name] for name in given.only or everything}
    left = list(measure(wanted, folder, 60 * given.minutes))
    missing = [name for name in everything if not (folder / f"{name}.json").is_file()]
    there = {name: folder / f"{name}.json" for name in everything if name not in missing}
    print(f"code {code}: {len(there)} of {len(everything)} pieces measured")
    if given.page or not missing:
        found = {name: json.loads(path.read_text()) for name, path in there.items()}
        _, heading, rest = DOCUMENT.read_text(encoding="utf-8").partition(RESNET_HEADING)
        text = f"{page(found, code, 'make bench-onnx-in')}\n{heading}{rest}"
        DOCUMENT.write_text(text.rstrip() + "\n", encoding="utf-8")
    return NOT_DONE if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
