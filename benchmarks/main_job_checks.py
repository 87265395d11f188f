"""Does a run's directory keep its promises? Checked with onnxruntime, torch, numpy and Pillow.

No command: `benchmarks.resnet20_main_job` calls it. What enters: the directory of a finished run,
the test images and the trained weights. What leaves: one `Check` for each promise. Nothing of the
command line's own measuring code is used; of the product only what a user would call to load the
result, `gbn.apply_plan`.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image
from safetensors.torch import load_file

import gbn
from benchmarks.cifar_models import resnet20

TARGET = 0.40
SLACK = 0.02
DROP_POINTS = 2.5
TOLERANCE = 1e-4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_COMPARED = 64
BATCH_SIZE = 500
REPORT_KEYS = (
    *("target", "flops", "params", "size_bytes", "accuracy", "surgery", "parity", "latency"),
    *("groups", "stages", "environment", "verdict", "exit_code"),
)

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

_TORCH_ALONE = """\
import sys, torch
program = torch.export.load(sys.argv[1]).module()
images = torch.load(sys.argv[2])
torch.save(program(images).detach(), sys.argv[3])
ours = {"gbn", "exporters", "pipeline", "benchmarks", "onnxruntime"} & set(sys.modules)
sys.exit(f"loading needed {ours}" if ours else 0)
"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One promise: what was found, and whether it holds."""

    name: str
    found: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the report says, as rows (what, before, after, change)."""

    rows: list[tuple[str, str, str, str]]
    device: str
    seed: int


def check_run(out: Path, test_folder: Path, weights: Path) -> list[Check]:
    """All checks of the run in `out`, which must hold a report.json."""
    report = json.loads((out / "report.json").read_text())
    images, labels = load_images(test_folder)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    scores = np.concatenate(
        [_run(session, images[i : i + BATCH_SIZE]) for i in range(0, len(images), BATCH_SIZE)]
    )
    return [
        *_report_checks(report),
        *_accuracy_checks(report, scores, images, labels, weights),
        _program_check(out / "model.pt2", images[:NUM_COMPARED], scores[:NUM_COMPARED]),
        _plan_check(out, images[:NUM_COMPARED], scores[:NUM_COMPARED]),
    ]


def load_images(folder: Path) -> tuple[Array, Labels]:
    """CLASS/*.jpg as normalised (N, 3, 32, 32) and class numbers in the order of the names."""
    pixels, labels = [], []
    for label, kind in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(kind.glob("*.jpg")):
            with Image.open(path) as image:
                pixels.append(np.asarray(image.convert("RGB")))
            labels.append(label)
    images = (np.stack(pixels).astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32), np.array(labels)


def _run(session: onnxruntime.InferenceSession, images: Array) -> Array:
    result: Array = session.run(None, {session.get_inputs()[0].name: images})[0]
    return result


def _report_checks(report: dict[str, Any]) -> list[Check]:
    missing = [key for key in REPORT_KEYS if key not in report]
    kept = report["flops"]["after"] / report["flops"]["before"]
    least = TARGET - SLACK
    proofs = [
        Check(
            name=f"{name} in the report",
            found=f"{report[name]['max_abs_diff']:.1e}, allowed {report[name]['tolerance']:.0e}",
            holds=report["verdict"][name] == "met"
            and report[name]["max_abs_diff"] <= report[name]["tolerance"],
        )
        for name in ("surgery", "parity")
    ]
    return [
        Check(name="exit code", found=str(report["exit_code"]), holds=report["exit_code"] == 0),
        Check(
            name="report.json has all keys",
            found=f"missing: {', '.join(missing)}" if missing else f"{len(REPORT_KEYS)} keys",
            holds=not missing,
        ),
        Check(
            name=f"MACs kept above {least:.0%}, at most {TARGET:.0%}",
            found=f"{kept:.2%}",
            holds=least < kept <= TARGET,
        ),
        *proofs,
    ]


def _accuracy_checks(
    report: dict[str, Any], scores: Array, images: Array, labels: Labels, weights: Path
) -> list[Check]:
    model = resnet20().eval()
    model.load_state_dict(load_file(weights))
    with torch.inference_mode():
        parts = torch.from_numpy(images).split(BATCH_SIZE)
        before_scores = torch.cat([model(part) for part in parts]).numpy()
    before, after = (float((found.argmax(1) == labels).mean()) for found in (before_scores, scores))
    stated = report["accuracy"]
    # A tie or a rounding may turn a single image.
    one_image = 1.5 / len(labels)
    return [
        Check(
            name=f"accuracy lost, measured anew, at most {DROP_POINTS} points",
            found=f"{before:.2%} to {after:.2%}: {100 * (before - after):.2f} points",
            holds=100 * (before - after) <= DROP_POINTS,
        ),
        Check(
            name="the report states the same accuracies",
            found=f"{stated['before']:.2%} and {stated['after']:.2%} of {stated['samples']}",
            holds=stated["samples"] == len(labels)
            and abs(stated["before"] - before) <= one_image
            and abs(stated["after"] - after) <= one_image,
        ),
    ]


def _program_check(program: Path, images: Array, expected: Array) -> Check:
    """In a process that imports torch and nothing else, from a folder without any code."""
    name = "model.pt2 with torch alone gives the ONNX file's answers"
    with tempfile.TemporaryDirectory() as folder:
        torch.save(torch.from_numpy(images), Path(folder, "images.pt"))
        words = [str(program.resolve()), "images.pt", "scores.pt"]
        done = subprocess.run(
            [sys.executable, "-I", "-c", _TORCH_ALONE, *words],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return Check(name=name, found=lines[-1], holds=False)
        return _compared(name, torch.load(Path(folder, "scores.pt")).numpy(), expected)


def _plan_check(out: Path, images: Array, expected: Array) -> Check:
    name = "plan.json and weights.safetensors on a fresh network give the ONNX file's answers"
    model = gbn.apply_plan(resnet20(), gbn.PrunePlan.load(out / "plan.json"))
    model.load_state_dict(load_file(out / "weights.safetensors"))
    with torch.inference_mode():
        return _compared(name, model.eval()(torch.from_numpy(images)).numpy(), expected)


def _compared(name: str, found: Array, expected: Array) -> Check:
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    return Check(
        name=name,
        found=f"{difference:.1e} of the largest output, allowed {TOLERANCE:.0e}",
        holds=difference <= TOLERANCE,
    )


def read_report(out: Path) -> Figures:
    """The report's figures as rows of text."""
    report = json.loads((out / "report.json").read_text())
    rows = [
        (what, f"{part['before'] / unit:.2f}", f"{part['after'] / unit:.2f}", _kept(part))
        for what, part, unit in (
            ("MACs, M", report["flops"], 1e6),
            ("parameters, k", report["params"], 1e3),
            ("file, kB", report["size_bytes"], 1e3),
        )
    ]
    accuracy, latency = report["accuracy"], report["latency"]
    before, after = 100 * accuracy["before"], 100 * accuracy["after"]
    rows.append(("top-1, %", f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f} points"))
    if latency is not None:
        low, high = latency["speedup"]["ci95"]
        rows.append(
            (
                f"p50 at batch {latency['batch']} on {latency['provider']}, ms "
                f"(n = {latency['after']['n']})",
                f"{latency['before']['p50_ms']:.3f}",
                f"{latency['after']['p50_ms']:.3f}",
                f"{latency['speedup']['median']:.2f}x [{low:.2f}, {high:.2f}]",
            )
        )
    environment = report["environment"]
    return Figures(rows=rows, device=environment["device"], seed=environment["seed"])


def _kept(part: dict[str, int]) -> str:
    return f"{part['after'] / part['before']:.1%} kept"
