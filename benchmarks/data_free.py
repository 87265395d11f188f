"""`python -m benchmarks.data_free` (`make bench-data-free`): a trained ResNet-20 without its data.

Runs `compress --target-flops 0.8` and `0.6` without `--data` on the trained CIFAR ResNet-20 with
three seeds, then measures what no such run can know: the top-1 of the files on the 10,000 real test
images. Beside it Torch-Pruning's global magnitude pruning to the same cost, recovered on the very
images that each run made, by as many training steps, and onnxsim's structured pruning of the file.
Writes docs/data-free.md; exits with 1 where in any run the top-1 falls by more than is allowed or
the run takes more than 30 minutes of CPU. Images and weights are read from ../shared; where they
are absent it says so and exits with 0.

`--seed S` (repeatable) runs one seed alone; the page has all that are finished. `--check-only`
measures what earlier runs left and runs only what is missing. CIFAR_JPEG=FOLDER names images that
are unpacked already.
"""

import argparse
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.data_free_onnxsim import WAYS, is_installed, pruned
from benchmarks.data_free_peer import PEERS, peer_top1
from benchmarks.main_job_checks import Array, Labels, load_images
from benchmarks.resnet20_main_job import ARCHIVE, WEIGHTS, image_folder
from benchmarks.tables import ROOT, RUNS, markdown_table, measured_with

DOCUMENT = ROOT / "docs" / "data-free.md"
ALLOWED_POINTS = {"0.8": 2.0, "0.6": 5.0}
CPU_MINUTES = 30.0
SEEDS = (0, 1, 2)
BATCH_SIZE = 500
HEADER = (
    "FLOPs kept",
    "how",
    "top-1",
    "change",
    "fidelity",
    "on real images",
    "minutes of CPU",
    "verdict",
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one run: top-1 and agreement of both files on real images, its report and its time.

    peer: {kept, top1, cpu_minutes}; None where it is not installed.
    """

    share: str
    before: float
    after: float
    agreeing: float
    report: dict[str, Any]
    cpu_minutes: float
    peer: dict[str, float] | None

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.report["environment"]["seed"])

    @property
    def lost_points(self) -> float:
        """Top-1 lost."""
        return 100 * (self.before - self.after)

    @property
    def holds(self) -> bool:
        """Whether it lost no more than is allowed, in the time allowed."""
        return self.lost_points <= ALLOWED_POINTS[self.share] and self.cpu_minutes <= CPU_MINUTES


def folder_of(share: str, seed: int) -> Path:
    """Where a run leaves its files."""
    return RUNS / f"data-free-{share.replace('.', '')}-{seed}"


def is_finished(share: str, seed: int) -> bool:
    """Whether a run is there to be measured."""
    return (folder_of(share, seed) / "timing.json").is_file()


def command(share: str, seed: int) -> list[str]:
    """What is run, as a user would type it in the checkout."""
    return [
        *("compress", "--target-flops", share, "--seed", str(seed), os.path.relpath(WEIGHTS, ROOT)),
        *("--arch", "benchmarks/cifar_models.py:resnet20", "--input-size", "3,32,32"),
        *("--out", os.path.relpath(folder_of(share, seed), ROOT)),
    ]


def run(share: str, seed: int) -> None:
    """A fresh run; its times go into timing.json beside its report."""
    out, words = folder_of(share, seed), command(share, seed)
    shutil.rmtree(out, ignore_errors=True)
    print(f"$ {shlex.join(words)}", flush=True)
    start, used = time.monotonic(), _children_s()
    program = Path(sysconfig.get_path("scripts")) / words[0]
    code = subprocess.run([program, *words[1:]], cwd=ROOT, check=False).returncode
    minutes = {
        "wall_minutes": (time.monotonic() - start) / 60,
        "cpu_minutes": (_children_s() - used) / 60,
    }
    if code:
        raise SystemExit(f"compress ended with exit code {code}")
    (out / "timing.json").write_text(json.dumps(minutes))


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(share: str, seed: int, images: Array, labels: Labels) -> Outcome:
    """Top-1 of both files of a finished run on real images, and the peer's on what it made."""
    out = folder_of(share, seed)
    report = json.loads((out / "report.json").read_text())
    before = top_classes(out / "stages" / "baseline.onnx", images)
    after = top_classes(out / "model.onnx", images)
    return Outcome(
        share=share,
        before=float((before == labels).mean()),
        after=float((after == labels).mean()),
        agreeing=float((before == after).mean()),
        report=report,
        cpu_minutes=json.loads((out / "timing.json").read_text())["cpu_minutes"],
        peer=peer_of(share, seed, images, labels),
    )


def peer_of(share: str, seed: int, images: Array, labels: Labels) -> dict[str, float] | None:
    """The peer on what a run made; None where it is neither measured nor installed."""
    out = folder_of(share, seed)
    kept_file = out / "peer.json"
    if not kept_file.is_file():
        if not (PEERS / "torch_pruning").is_dir():
            return None
        found = peer_top1(float(share), out, WEIGHTS, (images, labels), seed)
        kept_file.write_text(json.dumps(found))
    peer: dict[str, float] = json.loads(kept_file.read_text())
    return peer


def top_classes(path: Path, images: Array) -> Labels:
    """What an ONNX file puts first, by onnxruntime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [
        session.run(None, {name: images[i : i + BATCH_SIZE]})[0].argmax(1)
        for i in range(0, len(images), BATCH_SIZE)
    ]
    return np.concatenate(found)


def own_row(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """The cells of the row of one target's runs."""
    allowed = ALLOWED_POINTS[outcomes[0].share]
    return (
        f"{_mean([o.report['flops']['kept'] for o in outcomes]):.1%}",
        "compress",
        _spread([o.after for o in outcomes]),
        f"{-_mean([o.lost_points for o in outcomes]):+.2f} points (allowed -{allowed:g})",
        f"{_mean([o.report['fidelity']['value'] for o in outcomes]):.1%}",
        f"{_mean([o.agreeing for o in outcomes]):.1%}",
        f"{_mean([o.cpu_minutes for o in outcomes]):.1f}",
        "met" if all(o.holds for o in outcomes) else "MISSED",
    )


def peer_row(outcomes: Sequence[Outcome]) -> tuple[str, ...] | None:
    """The cells of the peer's row; None where it is not installed."""
    peers = [outcome.peer for outcome in outcomes if outcome.peer is not None]
    if len(peers) < len(outcomes):
        return None
    top1s = [peer["top1"] for peer in peers]
    return (
        f"{_mean([peer['kept'] for peer in peers]):.1%}",
        "Torch-Pruning, then the same recovery",
        _spread(top1s),
        f"{100 * (_mean(top1s) - outcomes[0].before):+.2f} points",
        "",
        "",
        f"{_mean([peer['cpu_minutes'] for peer in peers]):.1f} without the images",
        "",
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float]) -> str:
    """The mean of shares and, of several, the lowest and the highest."""
    ends = f" [{min(values):.2%}, {max(values):.2%}]" if len(values) > 1 else ""
    return f"{_mean(values):.2%}{ends}"


def onnxsim_rows(outcome: Outcome, images: Array, labels: Labels) -> list[tuple[str, ...]]:
    """The cells of onnxsim's rows, one for each way it decides, on the original of this run.

    One run's will do: nothing is drawn.
    """
    share, out = outcome.share, folder_of(outcome.share, outcome.seed)
    rows = []
    for number, way in enumerate(WAYS):
        path = out / f"onnxsim-{number}.onnx"
        kept = pruned(float(share), out / "stages" / "baseline.onnx", path, way)
        top1 = float((top_classes(path, images) == labels).mean())
        lost = f"{100 * (top1 - outcome.before):+.2f} points"
        rows.append((f"{kept:.1%}", f"onnxsim, {way}", f"{top1:.2%}", lost, "", "", "", ""))
    return rows


def document(
    outcomes: Mapping[str, Sequence[Outcome]], rows: list[tuple[str, ...]], missing: list[str]
) -> str:
    """The content of docs/data-free.md; outcomes: by target, one a seed."""
    first = next(iter(outcomes.values()))
    made, seeds = first[0].report["data_free"], [str(outcome.seed) for outcome in first]
    words = shlex.join(command(first[0].share, first[0].seed))
    of_seeds = f"seeds {', '.join(seeds)}: means, and of top-1 the lowest and the highest"
    left_out = f"Not measured, so not in the table: {'; '.join(missing)}.\n\n" if missing else ""
    return (
        "# A trained ResNet-20 without its data\n\n"
        f"    {words}\n\n"
        "and the same with other targets and seeds. "
        f"Run and checked by `make bench-data-free` with {measured_with()}, "
        f"{of_seeds if len(seeds) > 1 else f'seed {seeds[0]}'}. The runs "
        f"saw no image: they made {made['images']} from the {made['made_from']}, {made['steps']} "
        f"steps each, and {made['held_out']} more to measure fidelity by. "
        f"Top-1 is that of the ONNX files on the 10,000 real test images of the JPEG "
        f"copy of CIFAR-10; the original has {first[0].before:.2%}.\n\n"
        f"{markdown_table(HEADER, rows)}\n{left_out}"
        "Fidelity is the share of mixtures of held-out made images for which both files put the "
        "same class first; beside it the same share of the real test images, which a run without "
        "data cannot know.\n\n"
        "Torch-Pruning 1.6.1 prunes by weight magnitude with `global_pruning=True`, to at most "
        "the same share of the MACs. Pruned as it comes, the network no longer runs (its padded "
        "shortcuts are not followed), so the layers that write to the residual stream are "
        "ignored; its norms are renewed and it is trained on the images of each run above, with "
        "the same loss, learning rate, seed and number of training steps.\n\n"
        "onnxsim 0.8.1 prunes the exported file itself (`apply_structured_pruning`), by the size "
        "of its weights, the same share of every layer or by one threshold "
        "(`global_sparsity=True`); it recovers nothing.\n"
    )


def write(outcomes: Mapping[str, Sequence[Outcome]], images: Array, labels: Labels) -> None:
    """docs/data-free.md, and its rows to the terminal."""
    rows, missing = [], []
    for share, runs in outcomes.items():
        rows.append(own_row(runs))
        if is_installed():
            rows += onnxsim_rows(runs[0], images, labels)
        else:
            missing.append(f"onnxsim at {share} (not installed in bench-runs/peers)")
        peer = peer_row(runs)
        if peer is None:
            missing.append(f"Torch-Pruning at {share} (not installed in bench-runs/peers)")
        else:
            rows.append(peer)
    for row in rows:
        print(" | ".join(row), flush=True)
    DOCUMENT.write_text(document(outcomes, rows, missing))
    print(f"wrote {DOCUMENT.relative_to(ROOT)}", flush=True)


def main(arguments: list[str]) -> int:
    """Run and measure; 1 where a limit is missed, 0 where the material is absent."""
    parser = argparse.ArgumentParser(prog="benchmarks.data_free")
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--seed", action="append", type=int)
    options = parser.parse_args(arguments)
    folder = image_folder()
    if folder is None or not WEIGHTS.is_file():
        print(f"skipped: {ARCHIVE} or {WEIGHTS} is absent")
        return 0
    images, labels = load_images(folder / "test")
    chosen = sorted({*(options.seed or SEEDS)})
    for seed in chosen:
        for share in ALLOWED_POINTS:
            if not (options.check_only and is_finished(share, seed)):
                run(share, seed)
            peer_of(share, seed, images, labels)
    others = [seed for seed in SEEDS if all(is_finished(share, seed) for share in ALLOWED_POINTS)]
    outcomes = {
        share: [measure(share, seed, images, labels) for seed in sorted({*chosen, *others})]
        for share in ALLOWED_POINTS
    }
    write(outcomes, images, labels)
    held = (outcome.holds for runs in outcomes.values() for outcome in runs)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
