"""What `compress --target-latency 0.5x` reaches, measured later and apart.

No command: `benchmarks.latency` calls it. What enters: a network's name. What leaves: the run's
directory, and the share of the time as `compress bench` finds it afterwards.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import exporters
from benchmarks.main_models import build
from benchmarks.tables import ROOT, markdown_table

ASKED = 0.5
TOLERANCE = 0.03
_IMAGES = 16
_CLASSES = 1000
_HEADER = (
    *("network", "asked", "p50 before, ms", "p50 after, ms", "reached", "95 % interval"),
    *("off by", "MACs kept", "exit code of the run", "verdict"),
)


def run(name: str, folder: Path, image: int) -> None:
    """The main job on random weights, without training; what is there already stays.

    Its data are noise with the network's own answers as labels: they give scores, and an accuracy
    that says nothing.
    """
    out = folder / name / "target"
    if (out / "report.json").is_file():
        return
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    model, _ = build(name)
    images = np.random.default_rng(0).integers(0, 256, (_IMAGES, image, image, 3), np.uint8)
    with torch.no_grad():
        scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        labels = model(scaled).argmax(1).numpy()
    labels[0] = (labels[1] + 1) % _CLASSES  # on noise, all answers may be one class
    weights, data = out.with_name("weights.pt"), out.with_name("data.npz")
    torch.save(model.state_dict(), weights)
    np.savez(data, x_train=images, y_train=labels, x_test=images, y_test=labels)
    _compress(
        "--target-latency", f"{ASKED}x", str(weights), "--arch", f"torchvision:{name}",
        "--input-size", f"3,{image},{image}", "--data", str(data), "--mean", "0,0,0", "--std",
        "1,1,1", "--batch-size", "2", "--epochs", "0", "--out", str(out),
    )  # fmt: skip


def measure(name: str, folder: Path) -> None:
    """`compress bench` of both files of the run."""
    out, store = folder / name / "target", folder / name / "target-bench.json"
    if not store.is_file() and (out / "model.onnx").is_file():
        _compress(
            "bench", str(out / "stages" / "baseline.onnx"), str(out / "model.onnx"),
            "--max-seconds", "15", "--json", str(store),
        )  # fmt: skip


def _compress(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", *arguments], cwd=ROOT, check=False)
    # a missed target is a result; it stands in the report
    if done.returncode not in (0, 13):
        raise RuntimeError(f"compress {' '.join(arguments)} ended with {done.returncode}")


def rows_of(store: Path) -> list[dict[str, Any]]:
    """Of `compress bench`: the file as given and the result."""
    found: list[dict[str, Any]] = json.loads(store.read_text())["rows"]
    return found


def section(folder: Path, names: Sequence[str]) -> tuple[str, list[str]]:
    """For the document, and what is broken."""
    rows, broken = [], []
    for name in names:
        report, store = (
            folder / name / "target" / "report.json",
            folder / name / "target-bench.json",
        )
        if not store.is_file():
            rows.append([name, *["not measured"] * (len(_HEADER) - 1)])
            broken.append(f"{name}: --target-latency not measured")
            continue
        code = json.loads(report.read_text())["exit_code"]
        macs = [exporters.count_macs(Path(row["file"])).num_macs for row in rows_of(store)]
        before, after = rows_of(store)
        reached = 1 / after["speedup"]
        low, high = (1 / bound for bound in reversed(after["speedup_ci95"]))
        off = reached / ASKED - 1
        holds = abs(off) <= TOLERANCE
        if not holds:
            broken.append(f"{name}: {reached:.3f}x where {ASKED}x was asked")
        rows.append(
            [
                name, f"{ASKED}x", f"{before['stats']['p50_ms']:.2f}",
                f"{after['stats']['p50_ms']:.2f}", f"{reached:.3f}x", f"[{low:.3f}, {high:.3f}]",
                f"{off:+.1%}", f"{macs[1] / macs[0]:.1%}", str(code),
                "met" if holds else "missed",
            ]
        )  # fmt: skip
    return (
        "## Targets in time\n\n"
        f"`compress --target-latency {ASKED}x` on random weights without training, then, in a "
        "process of its own, `compress bench` of its two files; asked: within "
        f"{TOLERANCE:.0%} of the target.\n\n{markdown_table(_HEADER, rows)}"
    ), broken
