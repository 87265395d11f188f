"""`make bench-accuracy` (`python -m benchmarks.accuracy`): accuracy after pruning, beside peers.

A trained CIFAR-10 network of 20 layers is cut to 60, 40 and 30 % of its MACs and recovered for 0, 1
and 5 passes over the same 10,000 training images; top-1 is of all 10,000 test images, by
onnxruntime on the exported file, and MACs are counted on that file, for every method alike. Each
cell runs in a process of its own and is kept under bench-runs/accuracy by a hash of its settings
and of the code that decides it, so that the command goes on where it stopped; docs/accuracy.md is
written after each. `--only METHOD --keep K --epochs E --seed S` (each repeatable) choose cells,
`--list` shows what is measured.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy_data import BATCH, CACHE, FILE, MEAN, STD, prepare
from benchmarks.resnet20_main_job import WEIGHTS
from benchmarks.tables import ROOT, RUNS, markdown_table, measured_with
from pipeline.recipes import RECIPES

DOCUMENT = ROOT / "docs" / "accuracy.md"
PEERS = RUNS / "peers"
OURS = {"default": "default", "gbn-2019": "gbn-2019"}
PEER_METHODS = ("tp-group-magnitude", "tp-group-taylor", "tp-bn-scale", "tp-group-norm")
KEEPS, EPOCHS, SEEDS = (0.6, 0.4, 0.3), (0, 1, 5), (0,)
TRAINING = (
    "recipes",
    "training",
    "learning",
    "tasks",
    "augment",
    "stored_data",
    "arrays",
    "batches",
)
MAIN_JOB = ("compress", "baseline", "run", "stream_distance")
HEADER = (
    *("MACs, at most", "passes", "method", "seed", "top-1", "MACs kept", "parameters kept"),
    *("images seen", "seconds", "peak MiB"),
)
METHOD = """\
A CIFAR-10 network of 20 layers, trained on the JPEG copy, is cut to a share of its MACs and
recovered for so many passes over the same 10,000 training images. Top-1 is of all 10,000 test
images, by onnxruntime on the exported file; MACs are counted on that file, for every method alike.

Alike for all: images and their order, mirrored and moved as `default` has it (in 1 pass as they
are, in 5 mirrored; `gbn-2019` always mirrors and shifts them), SGD with momentum 0.9, batches of
128, batch norm statistics renewed after a cut, no rounding of widths, one thread. `default` and the
peers (`tp-...`) learn from the original's outputs at a peak rate of 0.05. `default` is this
project's own way: it learns from the original's residual streams too, keeps their statistics and
refits layers after a cut, scores on images that are not augmented, and takes smaller steps where
there are few. `gbn-2019` is
the published recipe, which learns from labels alone at its own rates. Images seen are those of
scoring and training. Peers prune
globally in steps of half a per cent of the channels, as in their CIFAR reproduction; GroupTaylor
scores on as many batches as `default`, in one place at the start; BNScale and GroupNorm train
sparsely for the first half of the budget. Seconds include import, export and measurement, and for
this project's runs proofs and latency; the machine is shared with others, so they are rough.
"""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run; `keep` is the share of the MACs that may stay."""

    method: str
    keep: float
    epochs: int
    seed: int

    def path(self) -> Path:
        """Where its outcome is kept: another code or setting, another file."""
        names = TRAINING + MAIN_JOB if self.method in OURS else TRAINING
        code = [ROOT / "pipeline" / f"{name}.py" for name in names]
        code.append(ROOT / "benchmarks" / "accuracy_data.py")
        if self.method in OURS:
            code += sorted((ROOT / "gbn").rglob("*.py"))
        else:
            code += [ROOT / "gbn" / "ticktock.py", ROOT / "benchmarks" / "accuracy_peers.py"]
        digest = hashlib.sha256(json.dumps(asdict(self)).encode())
        for file in code:
            digest.update(file.read_bytes())
        return CACHE / f"{self.name}-{digest.hexdigest()[:12]}.json"

    @property
    def name(self) -> str:
        """Names the cell, whatever the code."""
        return f"{self.method}-{self.keep:g}-{self.epochs}-{self.seed}"

    def outcome(self) -> dict[str, Any] | None:
        """What was measured, or was measured last with other code; None if nothing was."""
        path = self.path()
        if path.is_file():
            return json.loads(path.read_text())
        earlier = sorted(CACHE.glob(f"{self.name}-*.json"), key=lambda file: file.stat().st_mtime)
        return json.loads(earlier[-1].read_text()) | {"earlier": True} if earlier else None


def command(cell: Cell, out: Path) -> list[str]:
    """What runs a cell."""
    if cell.method not in OURS:
        where = [cell.method, str(cell.keep), str(cell.epochs), str(cell.seed), str(out)]
        return [sys.executable, "-m", "benchmarks.accuracy_peers", *where]
    augment = RECIPES[OURS[cell.method]].augment(cell.epochs)
    return [
        *(sys.executable, "-m", "pipeline.cli", "--target-flops", str(cell.keep)),
        *("--epochs", str(cell.epochs), "--seed", str(cell.seed), "--recipe", OURS[cell.method]),
        *("--channel-multiple", "1", "--augment", augment, "--batch-size", str(BATCH)),
        *("--data", str(FILE), "--mean", _numbers(MEAN), "--std", _numbers(STD)),
        *("--arch", f"{ROOT / 'benchmarks/cifar_models.py'}:resnet20", "--input-size", "3,32,32"),
        *("--device", "cpu", "--out", str(out), "-q", str(WEIGHTS)),
    ]


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(str(value) for value in values)


def measure(cell: Cell) -> dict[str, Any]:
    """Run a cell in a process of its own; its outcome, or how it failed."""
    out = CACHE / f"running-{os.getpid()}"
    log = out.with_suffix(".log")
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
        "peak_mib": round(usage.ru_maxrss / 1024),
    }
    if process.returncode:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        error = lines[-1] if lines else "no output"
        found["error"] = f"exit code {process.returncode}: {error}"
    elif cell.method in OURS:
        found |= read_report(out, cell)
    else:
        found |= json.loads(out.read_text())
    for leftover in (out, log):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    return found


def read_report(out: Path, cell: Cell) -> dict[str, Any]:
    """The figures of a run's report."""
    from gbn.ticktock import Phase

    report = json.loads((out / "report.json").read_text())
    budget = cell.epochs * (10_000 // BATCH)
    phases: tuple[Phase, ...] = RECIPES[OURS[cell.method]].schedule(budget=budget, target=cell.keep)
    return {
        "accuracy": report["accuracy"]["after"],
        "baseline": report["accuracy"]["before"],
        "samples": report["accuracy"]["samples"],
        "flops_kept": report["flops"]["kept"],
        "params_kept": report["params"]["kept"],
        "images": sum(phase.batches for phase in phases) * BATCH,
        "note": "",
    }


def cells(
    methods: list[str], keeps: list[float], epochs: list[int], seeds: list[int]
) -> list[Cell]:
    """Cheap ones first."""
    return [
        Cell(method=method, keep=keep, epochs=passes, seed=seed)
        for seed in seeds
        for passes in epochs
        for keep in keeps
        for method in methods
    ]


def rows(all_cells: list[Cell]) -> list[tuple[str, ...]]:
    """One row a cell, measured or not."""
    table = []
    for cell in all_cells:
        found = cell.outcome()
        mark = "*" if found and found.get("earlier") else ""
        begin = (f"{cell.keep:.0%}", str(cell.epochs), cell.method + mark, str(cell.seed))
        if found is None:
            table.append((*begin, *["not measured yet"], *[""] * 5))
        elif "error" in found:
            cost = (f"{found['seconds']:.0f}", str(found["peak_mib"]))
            table.append((*begin, f"failed: {found['error']}", "", "", "", *cost))
        else:
            table.append(
                (
                    *begin,
                    f"{found['accuracy']:.2%}",
                    f"{found['flops_kept']:.1%}",
                    f"{found['params_kept']:.1%}",
                    f"{found['images']:,}",
                    f"{found['seconds']:.0f}",
                    str(found["peak_mib"]),
                )
            )
    return table


def document(all_cells: list[Cell]) -> str:
    """The content of docs/accuracy.md."""
    outcomes = [found for cell in all_cells if (found := cell.outcome()) is not None]
    missing = len(all_cells) - len(outcomes)
    notes = sorted({found["note"] for found in outcomes if found.get("note")})
    baselines = {found["baseline"] for found in outcomes if "baseline" in found}
    before = f"Before: {max(baselines):.2%} top-1. " if baselines else ""
    earlier = sum("earlier" in found for found in outcomes)
    marked = f" {earlier} cells marked * were measured with earlier code." if earlier else ""
    state = f"{missing} of {len(all_cells)} cells are not measured yet" if missing else "complete"
    told = "".join(f"- Torch-Pruning 1.6.1 {note}.\n" for note in notes)
    return (
        "# Accuracy after pruning, beside Torch-Pruning\n\n"
        f"`make bench-accuracy`, {measured_with()}. {before}State: {state}.{marked}\n\n"
        f"{METHOD}\n{told}\n{markdown_table(HEADER, rows(all_cells))}"
    )


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
    if prepare() is None:
        print("skipped: the JPEG copy of CIFAR-10 or the trained network is absent")
        return 0
    seeds = options.seed or [*SEEDS]
    everything = cells(methods, [*KEEPS], [*EPOCHS], sorted({*SEEDS, *seeds}))
    asked = cells(
        options.only or methods, options.keep or [*KEEPS], options.epochs or [*EPOCHS], seeds
    )
    everything += [cell for cell in asked if cell not in everything]
    for cell in [] if options.only_list else asked:
        if cell.path().is_file():
            continue
        print(f"{cell.method}, {cell.keep:.0%}, {cell.epochs} passes, seed {cell.seed}", flush=True)
        path = cell.path()
        found = measure(cell)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=1))
        partial.rename(path)
        print(f"  {found}", flush=True)
        DOCUMENT.write_text(document(everything))
    if options.only_list:
        print(
            markdown_table(
                ("keep", "passes", "method", "seed", "top-1"), [r[:5] for r in rows(everything)]
            )
        )
        return 0
    DOCUMENT.write_text(document(everything))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
