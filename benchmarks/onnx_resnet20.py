"""`python -m benchmarks.onnx_resnet20` (`make bench-onnx-resnet20`): is a folded file as good?

Compresses the trained CIFAR ResNet-20 to 40 % of its MACs three ways, with equal data, epochs and
seed: from its weights, from an ONNX file into whose convolutions the exporter has folded all norms,
and from that file with norms put back for training (`--insert-bn`). Prints a table and writes
bench-runs/onnx-resnet20/table.md; with --document it also replaces the section of docs/onnx-in.md.
Images and weights are read from ../shared; where they are absent it says so and exits with 0.

`--train-images N` takes the first N / 10 images of each class, `--epochs E` the budget, and
`--lr X` the peak learning rate: for a short look. CIFAR_JPEG=FOLDER names unpacked images.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
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


def row(name: str, given: list[str], common: list[str], out: Path) -> list[str]:
    """Run one way; its line of the table."""
    shutil.rmtree(out, ignore_errors=True)
    words = ["compress", *given, *common, "--out", os.path.relpath(out, ROOT)]
    print(f"$ {shlex.join(words)}", flush=True)
    began = time.monotonic()
    program = Path(sysconfig.get_path("scripts")) / words[0]
    code = subprocess.run([program, *words[1:]], cwd=ROOT, check=False).returncode
    minutes = f"{(time.monotonic() - began) / 60:.1f}"
    if code != 0:
        return [name, "", "", f"exit code {code}", minutes]
    report = json.loads((out / "report.json").read_text())
    accuracy = report["accuracy"]
    return [
        *(name, f"{100 * accuracy['before']:.2f}", f"{100 * accuracy['after']:.2f}"),
        *(f"{report['flops']['kept']:.1%}", minutes),
    ]


def document(section: str) -> None:
    """Put the section, which is the last of the page, in place of an earlier one."""
    head = DOCUMENT.read_text(encoding="utf-8").partition(HEADING)[0]
    DOCUMENT.write_text(f"{head.rstrip()}\n\n{section.rstrip()}\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run all three; 1 where one of them fails, 0 where the material is absent."""
    parser = argparse.ArgumentParser(prog="benchmarks.onnx_resnet20")
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--document", action="store_true")
    options = parser.parse_args(arguments)
    images = image_folder()
    if images is None or not WEIGHTS.is_file():
        print(f"skipped: {ARCHIVE} or {WEIGHTS} is absent")
        return 0
    folded = folded_file()
    data = part_of(images, options.train_images)
    common = [
        *("--target-flops", "0.4", "--epochs", str(options.epochs)),
        *("--data", os.path.relpath(data, ROOT)),
        *("--mean", ".485,.456,.406", "--std", ".229,.224,.225"),
        *(("--lr", str(options.lr)) if options.lr else ()),
    ]
    rows = []
    for seed in range(options.seeds):
        for number, (name, given) in enumerate(ways(folded).items()):
            told = name if options.seeds == 1 else f"{name}, seed {seed}"
            seeded = [*common, "--seed", str(seed)]
            rows.append(row(told, given, seeded, HERE / f"run-{number}-{seed}"))
    how = " ".join(["python -m benchmarks.onnx_resnet20", *arguments]).replace(" --document", "")
    table = markdown_table(HEADER, rows)
    section = f"{HEADING}\n\n`{how}`. {measured_with()}\n\n{table}"
    (HERE / "table.md").write_text(section, encoding="utf-8")
    print(table)
    if options.document:
        document(section)
    return 0 if all(line[1] for line in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
