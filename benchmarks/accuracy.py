"""`make bench-accuracy` (`python -m benchmarks.accuracy`): accuracy after pruning, beside peers.

A trained CIFAR-10 network of 20 layers is cut to 60, 40 and 30 % of its MACs and recovered for 0, 1
and 5 passes over the same 10,000 training images; top-1 is of all 10,000 test images, by
onnxruntime on the exported file, and MACs are counted on that file, for every method alike. Each
cell runs in a process of its own and is kept in docs/accuracy.jsonl with a hash of its settings and
of the code that decides it, so that the command goes on where it stopped; docs/accuracy.md is
written after each. `--only METHOD --keep K --epochs E --seed S` (each repeatable) choose cells,
`--list` shows what is measured.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.ablated import recipe_of
from benchmarks.accuracy_cells import (
    EPOCHS,
    KEEPS,
    OURS,
    PEER_METHODS,
    SEEDS,
    Cell,
    add,
    cells,
    command,
    is_current,
    is_ours,
    measured,
)
from benchmarks.accuracy_data import BATCH, CACHE, prepare
from benchmarks.accuracy_page import HEADER, document, rows
from benchmarks.tables import ROOT, markdown_table

DOCUMENT = ROOT / "docs" / "accuracy.md"


def measure(cell: Cell) -> dict[str, Any]:
    """Run a cell in a process of its own; its outcome, or how it failed."""
    here = Path(tempfile.mkdtemp(prefix="running-", dir=CACHE))
    out, log = here / "out", here / "log"
    began = time.monotonic()
    with log.open("w") as sink:
        process = subprocess.Popen(
            command(cell, out),
            cwd=ROOT,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    found: dict[str, Any] = {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
    }
    if process.returncode:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        error = lines[-1] if lines else "no output"
        found["error"] = f"exit code {process.returncode}: {error}"
    elif is_ours(cell.method):
        found |= read_report(out, cell)
    else:
        found |= json.loads(out.read_text())
    shutil.rmtree(here)
    return found


def read_report(out: Path, cell: Cell) -> dict[str, Any]:
    """The figures of a run's report."""
    from gbn.ticktock import Phase

    report = json.loads((out / "report.json").read_text())
    budget = cell.epochs * (10_000 // BATCH)
    phases: tuple[Phase, ...] = recipe_of(cell.method).schedule(budget=budget, target=cell.keep)
    return {
        "accuracy": report["accuracy"]["after"],
        "baseline": report["accuracy"]["before"],
        "samples": report["accuracy"]["samples"],
        "flops_kept": report["flops"]["kept"],
        "params_kept": report["params"]["kept"],
        "images": sum(phase.batches for phase in phases) * BATCH,
        "recipe_seconds": round(_seconds_of_phases(report["stages"]), 1),
        "note": "",
    }


def _seconds_of_phases(stages: Iterable[dict[str, Any]]) -> float:
    """Of scoring, cutting, proving, repairing and training: no imports, exports, measurements."""
    kinds = ("tick", "tock", "finetune")
    found = [stage["seconds"] for stage in stages if stage["name"].startswith(kinds)]
    if not found:
        raise ValueError(f"no phase among the report's stages {[s['name'] for s in stages]}")
    return float(sum(found))


def measure_all(asked: Iterable[Cell], write: Callable[[], object]) -> None:
    """Measure cells that are not there yet; `write` the page after each, and at the end."""
    for cell in asked:
        if is_current(cell, measured()):
            continue
        print(f"{cell.method}, {cell.keep:.0%}, {cell.epochs} passes, seed {cell.seed}", flush=True)
        code = cell.code()
        found = measure(cell)
        add(cell, code, found)
        print(f"  {found}", flush=True)
        write()
    write()


def main(arguments: list[str]) -> int:
    """Measure what is asked and not there yet; 0 also where the material is absent."""
    methods = [*OURS, *PEER_METHODS]
    parser = argparse.ArgumentParser(prog="benchmarks.accuracy")
    parser.add_argument("--only", action="append", choices=methods)
    parser.add_argument("--keep", action="append", type=float)
    parser.add_argument("--epochs", action="append", type=int)
    parser.add_argument("--seed", action="append", type=int)
    parser.add_argument("--list", action="store_true", dest="only_list")
    options = parser.parse_args(arguments)
    everything = cells(methods, KEEPS, EPOCHS, SEEDS)
    if options.only_list:
        print(markdown_table(HEADER[:5], [row[:5] for row in rows(everything, measured())]))
        return 0
    if prepare() is None:
        print("skipped: the JPEG copy of CIFAR-10 or the trained network is absent")
        return 0
    asked = cells(
        options.only or methods,
        options.keep or KEEPS,
        options.epochs or EPOCHS,
        options.seed or SEEDS,
    )
    everything += [cell for cell in asked if cell not in everything]
    measure_all(asked, lambda: DOCUMENT.write_text(document(everything, measured())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
