"""`python -m benchmarks.onnx_resnet20` (`make bench-onnx-resnet20`): is a folded file as good?

Compresses the trained CIFAR ResNet-20 to 40 % of its MACs three ways, with equal data, epochs and
seed: from its weights, from an ONNX file into whose convolutions the exporter has folded all norms,
and from that file with norms put back for training (`--insert-bn`). Prints a table and writes
bench-runs/onnx-resnet20/table.md; with --document it also replaces the section of docs/onnx-in.md.
Images and weights are read from ../shared; where they are absent it says so and exits with 0.

A finished run is kept in bench-runs/ under a hash of the product's code and not repeated; one that
was cut off goes on from its finished stages. `--runs N` ends after N runs, with exit code 3 where
some are left.

`--train-images N` takes the first N / 10 images of each class, `--epochs E` the budget, and
`--lr X` the peak learning rate: for a short look. CIFAR_JPEG=FOLDER names unpacked images.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from safetensors.torch import load_file

from benchmarks.cifar_models import resnet20
from benchmarks.resnet20_main_job import ARCHIVE, WEIGHTS, image_folder
from benchmarks.tables import ROOT, RUNS, markdown_table, measured_with
from exporters.capture import quiet

HERE = RUNS / "onnx-resnet20"
DOCUMENT = ROOT / "docs" / "onnx-in.md"
HEADING = "## ResNet-20 whose norms are folded, on data"
OPSET = 18
NOT_DONE = 3
"""Exit code where runs are left."""
HEADER = ("from", "top-1 before, %", "after, %", "MACs kept", "minutes")


def folded_file() -> Path:
    """The trained network as torch's older exporter writes it: no norm is left."""
    model = resnet20().eval()
    model.load_state_dict(load_file(WEIGHTS))
    path = HERE / "resnet20-folded.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        torch.onnx.export(
            model, (torch.zeros(1, 3, 32, 32),), str(path), dynamo=False, opset_version=OPSET,
            input_names=["pixels"], output_names=["scores"],
            dynamic_axes={"pixels": {0: "batch"}, "scores": {0: "batch"}},
        )  # fmt: skip
    norms = sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)
    if norms:
        raise RuntimeError(f"{path}: {norms} norms are left, so nothing would be compared")
    return path


def part_of(images: Path, num_train: int | None) -> Path:
    """The images, or a folder of links to the first of each class and to all test images."""
    if num_train is None:
        return images
    part = HERE / f"images-{num_train}"
    if part.is_dir():
        return part
    classes = sorted(path for path in (images / "train").iterdir() if path.is_dir())
    for folder in classes:
        chosen = sorted(folder.glob("*.jpg"))[: num_train // len(classes)]
        made = part / "train" / folder.name
        made.mkdir(parents=True)
        for path in chosen:
            (made / path.name).symlink_to(path.resolve())
    (part / "test").symlink_to((images / "test").resolve())
    return part


def ways(folded: Path) -> dict[str, list[str]]:
    """What differs between the runs: their names, and what `compress` is given."""
    arch = ["--arch", "benchmarks/cifar_models.py:resnet20", "--input-size", "3,32,32"]
    return {
        "weights (.safetensors)": [os.path.relpath(WEIGHTS, ROOT), *arch],
        "folded .onnx, --no-insert-bn": [os.path.relpath(folded, ROOT), "--no-insert-bn"],
        "folded .onnx, --insert-bn": [os.path.relpath(folded, ROOT), "--insert-bn"],
    }


def product_hash() -> str:
    """Of the code that decides how a run ends."""
    digest = hashlib.sha256()
    for package in ("gbn", "exporters", "pipeline"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One way with one seed: its name in the table, its command, and where it is kept."""

    name: str
    words: list[str]
    out: Path

    @property
    def is_done(self) -> bool:
        """Whether it need not be run again."""
        return (self.out / "report.json").is_file()

    def go(self) -> int:
        """Run it, or the rest of it; its exit code."""
        print(f"$ {shlex.join(self.words)}", flush=True)
        program = Path(sysconfig.get_path("scripts")) / self.words[0]
        return subprocess.run([program, *self.words[1:]], cwd=ROOT, check=False).returncode

    def row(self) -> list[str]:
        """Its line of the table."""
        if not self.is_done:
            return [self.name, "", "", "not run", ""]
        report = json.loads((self.out / "report.json").read_text())
        accuracy, seconds = report["accuracy"], sum(s["seconds"] for s in report["stages"])
        return [
            *(self.name, f"{100 * accuracy['before']:.2f}", f"{100 * accuracy['after']:.2f}"),
            *(f"{report['flops']['kept']:.1%}", f"{seconds / 60:.1f}"),
        ]


def planned(options: argparse.Namespace, data: Path) -> list[Run]:
    """All runs, seed by seed."""
    common = [
        *("--target-flops", "0.4", "--epochs", str(options.epochs)),
        *("--data", os.path.relpath(data, ROOT)),
        *("--mean", ".485,.456,.406", "--std", ".229,.224,.225"),
        *(("--lr", str(options.lr)) if options.lr else ()),
    ]
    asked = hashlib.sha256(shlex.join(common).encode()).hexdigest()[:6]
    runs = []
    for seed in range(options.seeds):
        for number, (name, given) in enumerate(ways(folded_file()).items()):
            out = HERE / product_hash() / f"run-{asked}-{number}-{seed}"
            words = [
                *("compress", *given, *common, "--seed", str(seed)),
                *("--out", os.path.relpath(out, ROOT), "--resume"),
            ]
            told = name if options.seeds == 1 else f"{name}, seed {seed}"
            runs.append(Run(name=told, words=words, out=out))
    return runs


def document(section: str) -> None:
    """Put the section, which is the last of the page, in place of an earlier one."""
    head = DOCUMENT.read_text(encoding="utf-8").partition(HEADING)[0]
    DOCUMENT.write_text(f"{head.rstrip()}\n\n{section.rstrip()}\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run what is left; 1 where a run fails, 3 where some are left, 0 without the material."""
    parser = argparse.ArgumentParser(prog="benchmarks.onnx_resnet20")
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", type=int, default=sys.maxsize)
    parser.add_argument("--document", action="store_true")
    options = parser.parse_args(arguments)
    images = image_folder()
    if images is None or not WEIGHTS.is_file():
        print(f"skipped: {ARCHIVE} or {WEIGHTS} is absent")
        return 0
    runs = planned(options, part_of(images, options.train_images))
    codes = [run.go() for run in [run for run in runs if not run.is_done][: options.runs]]
    how = " ".join(["python -m benchmarks.onnx_resnet20", *arguments]).replace(" --document", "")
    table = markdown_table(HEADER, [run.row() for run in runs])
    section = f"{HEADING}\n\n`{how}`. {measured_with()}\n\n{table}"
    (HERE / "table.md").write_text(section, encoding="utf-8")
    print(table)
    if any(codes):
        return 1
    if not all(run.is_done for run in runs):
        return NOT_DONE
    if options.document:
        document(section)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
