"""`python -m benchmarks.precision` (`make bench-precision`): a trained ResNet-20 as fp16 and int8.

The main job with nothing to remove (`--target-flops 100%`), so that precision alone is seen, on the
JPEG copy of CIFAR-10: accuracies of its 10,000 test images, sizes of the files. Needs the weights
and images of ../shared. Finished runs in bench-runs/precision are not done again. Writes
docs/precision.md; exit code 1 where a promise is broken.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from click.testing import CliRunner

from benchmarks.resnet20_main_job import WEIGHTS, image_folder
from benchmarks.tables import ROOT, RUNS, SHARED, markdown_table, measured_with
from pipeline.cli import main as compress

DOCUMENT = ROOT / "docs" / "precision.md"
FOLDER = RUNS / "precision"
COMMAND = "make bench-precision"
MAX_DROP = {"fp16": 0.1, "int8": 0.5}
MIN_SMALLER = {"fp16": 1.0, "int8": 3.5}
HEADER = (
    *("precision", "top-1 before, %", "after, %", "points", "at most", "fp32 file, kB", "file, kB"),
    *("times smaller", "at least", "layers in float", "verdict"),
)


def arguments(kind: str, images: Path) -> list[str]:
    """Of `compress`, without the directory."""
    return [
        "--target-flops", "100%", str(WEIGHTS), "--arch", "benchmarks/cifar_models.py:resnet20",
        "--input-size", "3,32,32", "--mean", ".485,.456,.406", "--std", ".229,.224,.225",
        "--data", str(images), "--epochs", "0", "--precision", kind,
        "--max-accuracy-drop", str(MAX_DROP[kind]),
    ]  # fmt: skip


def run(kind: str, images: Path) -> dict[str, Any]:
    """The report of one run."""
    out = FOLDER / kind
    if not (out / "report.json").is_file():
        result = CliRunner().invoke(compress, [*arguments(kind, images), "--out", str(out)])
        print(result.output, flush=True)
        if result.exit_code not in (0, 12):  # a missed accuracy is a result
            raise RuntimeError(f"{kind}: compress ended with {result.exit_code}")
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def bytes_of(path: Path) -> dict[str, int]:
    """Where the bytes of a file are: its weights by element type, the rest its graph."""
    model = onnx.load(path)
    found: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        found[onnx.TensorProto.DataType.Name(tensor.data_type)] += len(tensor.raw_data)
    found["graph"] = path.stat().st_size - sum(found.values())
    return dict(found.most_common())


def row(kind: str, report: dict[str, Any]) -> tuple[list[str], bool]:
    """Cells of `HEADER`, and whether both promises are kept."""
    accuracy, size = report["accuracy"], report["size_bytes"]
    drop = 100 * (accuracy["before"] - accuracy["after"])
    smaller = size["before"] / size["after"]
    kept = drop <= MAX_DROP[kind] + 1e-9 and smaller >= MIN_SMALLER[kind]
    in_float = len(report["precision"].get("float_layers", []))
    cells = [
        *(kind, f"{100 * accuracy['before']:.2f}", f"{100 * accuracy['after']:.2f}"),
        *(f"{-drop:+.2f}", f"-{MAX_DROP[kind]}"),
        *(f"{size['before'] / 1e3:.1f}", f"{size['after'] / 1e3:.1f}"),
        *(f"{smaller:.2f}", f"{MIN_SMALLER[kind]}", str(in_float), "met" if kept else "missed"),
    ]
    return cells, kept


def main() -> int:
    """Run both precisions, write the document."""
    images = image_folder()
    if images is None or not WEIGHTS.is_file():
        print(f"needs {WEIGHTS.name} and the images of {SHARED.name}/")
        return 1
    rows, kept, parts = [], [], []
    for kind in MAX_DROP:
        report = run(kind, images)
        assert report["accuracy"]["samples"] == 10_000, "all test images"
        cells, holds = row(kind, report)
        rows.append(cells)
        kept.append(holds)
        found = bytes_of(FOLDER / kind / "model.onnx")
        parts.append(f"- {kind}: " + ", ".join(f"{k} {v / 1e3:.1f} kB" for k, v in found.items()))
    DOCUMENT.write_text(
        f"# Precision\n\nMeasured by `{COMMAND}` with {measured_with()}. A trained ResNet-20, "
        "nothing removed; top-1 of the 10,000 test images of the JPEG copy of CIFAR-10; int8 "
        "calibrated on training images.\n\n"
        f"{markdown_table(HEADER, rows)}\nWhere the bytes are:\n\n" + "\n".join(parts) + "\n"
    )
    print(DOCUMENT.read_text())
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
