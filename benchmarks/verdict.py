"""`python -m benchmarks.verdict` (`make bench-verdict`): how often the latency gate errs.

Runs `compress verify CANDIDATE --baseline MODEL --max-latency-regression 3%`, each time as a new
process, while another process keeps one core busy:
- the same file against itself, 200 times: a failure is a false alarm, at most one is allowed;
- a file with one more layer, about a tenth slower, 100 times: 99 must fail.
Results go to bench-runs/verdict/, so that it can be interrupted and goes on; --minutes ends it
early. Writes docs/verdict.md with the counts that were run. Exits with 1 where a bound is broken.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import exporters
from benchmarks.tables import ROOT, RUNS, markdown_table, measured_with

FOLDER = RUNS / "verdict"
DOCUMENT = ROOT / "docs" / "verdict.md"
LIMIT = "3%"
NUM_LAYERS = 10
WIDTH = 48
SIZE = 32
SAME, SLOWER = "the same file", "one more layer"
WANTED = {SAME: 200, SLOWER: 100}
MAX_FALSE_ALARMS = 1
MIN_CAUGHT_SHARE = 0.99
MAX_RUN_SECONDS = 30.0
COMMAND = "import sys; from pipeline.cli import main; main(sys.argv[1:])"


def network(num_layers: int) -> nn.Module:
    """Equal convolutions in a row, so that one more is a known share of the work."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1), nn.ReLU()]
    for _ in range(num_layers):
        layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10)
    ).eval()


def models() -> dict[str, Path]:
    """The baseline's file and the slower one's, exported once."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = {"baseline": FOLDER / "baseline.onnx", SLOWER: FOLDER / "slower.onnx"}
    for name, path in found.items():
        if not path.is_file():
            more = 1 if name == SLOWER else 0
            request = exporters.ExportRequest(
                example_inputs=(torch.zeros(2, 3, SIZE, SIZE),), path=path, metadata={}
            )
            exporters.export_onnx(network(NUM_LAYERS + more), request)
    return found | {SAME: found["baseline"]}


@contextmanager
def one_core_busy() -> Iterator[None]:
    """A process that computes all the time, kept on one core where the system can do that.

    It ends with this one, also where this one is killed.
    """
    code = "import os\nif hasattr(os, 'sched_setaffinity'):\n"
    code += "    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += f"while os.getppid() == {os.getpid()}: sum(range(10**6))"
    load = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        load.kill()
        load.wait()


def run_once(case: str, files: dict[str, Path]) -> dict[str, Any]:
    """One gate, from a cold start: its exit code, verdict, interval and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "gate.json"
        began = time.perf_counter()
        done = subprocess.run(
            [
                *(sys.executable, "-c", COMMAND, "verify", str(files[case])),
                *("--baseline", str(files["baseline"]), "--max-latency-regression", LIMIT),
                *("--json", str(report)),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        seconds = time.perf_counter() - began
        if not report.is_file():
            raise SystemExit(f"compress verify did not finish: {done.stderr}")
        content = json.loads(report.read_text(encoding="utf-8"))
    section = content["latency"][0]
    return {
        "case": case,
        "exit_code": done.returncode,
        "state": content["verdict"]["regression"],
        "seconds": seconds,
        "ratio": 1 / section["speedup"]["median"],
        "n": section["after"]["n"],
        "p50_ms": section["after"]["p50_ms"],
        "cv": section["after"]["cv"],
        "load": os.getloadavg()[0],
    }


def done_so_far(store: Path) -> list[dict[str, Any]]:
    """What earlier calls have run."""
    if not store.is_file():
        return []
    return [json.loads(line) for line in store.read_text(encoding="utf-8").splitlines()]


def run_missing(store: Path, minutes: float) -> None:
    """Run what is still missing, the two cases in turns, until the time is over."""
    files = models()
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        counts = Counter(run["case"] for run in done_so_far(store))
        left = {case: wanted - counts[case] for case, wanted in WANTED.items()}
        case = max(left, key=lambda name: left[name] / WANTED[name])
        if left[case] <= 0:
            return
        found = run_once(case, files)
        with store.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(f"{case}: {found['state']}, {found['ratio']:.4f}, {found['seconds']:.1f} s")


def document(runs: list[dict[str, Any]]) -> tuple[str, bool]:
    """The page, and whether all bounds hold for the runs there are."""
    rows, good = [], True
    loads = [run["load"] for run in runs]
    for case in WANTED:
        own = [run for run in runs if run["case"] == case]
        if not own:
            continue
        states = Counter(run["state"] for run in own)
        failed = sum(run["exit_code"] == 13 for run in own)
        if case == SAME:
            good &= failed <= MAX_FALSE_ALARMS
        else:
            good &= failed >= MIN_CAUGHT_SHARE * len(own)
        good &= max(run["seconds"] for run in own) <= MAX_RUN_SECONDS
        ratios = np.array([run["ratio"] for run in own])
        seconds = np.array([run["seconds"] for run in own])
        rows.append(
            (
                case,
                f"{len(own)} of {WANTED[case]}",
                str(states["met"]),
                str(states["missed"]),
                str(states["undecided"]),
                f"{np.median(ratios):.4f} ({ratios.min():.4f} to {ratios.max():.4f})",
                f"{np.median([run['p50_ms'] for run in own]):.2f} ms",
                f"{np.median(seconds):.1f} s, at most {seconds.max():.1f} s",
                f"{100 * np.median([run['cv'] for run in own]):.0f} %",
            )
        )
    header = (
        *("candidate", "runs", "passed", "failed", "undecided", "slower by, median (range)"),
        *("p50", "a whole run", "std / mean"),
    )
    text = (
        "# How often the latency gate errs\n\n"
        f"`compress verify CANDIDATE --baseline MODEL --max-latency-regression {LIMIT}`, each run "
        "a new process with its defaults, while another process keeps one core busy. By "
        "`make bench-verdict`. Undecided counts as failed, as is the default.\n\n"
        f"{markdown_table(header, rows)}\n"
        f"Allowed: {MAX_FALSE_ALARMS} false failure in {WANTED[SAME]}; of the slower file at "
        f"least {100 * MIN_CAUGHT_SHARE:.0f} % must fail; a run takes at most "
        f"{MAX_RUN_SECONDS:.0f} s. {'Held' if good else 'Not held'} in the runs above.\n\n"
        f"The model: {NUM_LAYERS} convolutions of {WIDTH} channels at {SIZE} x {SIZE}; one more "
        f"makes it slower by about a tenth. The machine had other work besides: load averages of "
        f"{min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores. {measured_with()}.\n"
    )
    return text, good


def main() -> int:
    """Run, then write the page; 1 where a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="ends it after so long")
    minutes = parser.parse_args().minutes
    store = FOLDER / "results.jsonl"
    with one_core_busy():
        run_missing(store, minutes)
    text, good = document(done_so_far(store))
    DOCUMENT.write_text(text, encoding="utf-8")
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
