"""`python -m benchmarks.resnet20_main_job` (`make bench-main-job`): 60 % off a trained ResNet-20.

Runs `compress --target-flops 0.4 --epochs 6` on the trained CIFAR ResNet-20, then checks what it
left from outside: the report's keys and figures, the accuracy measured anew, `model.pt2` with torch
alone, and `plan.json` with `weights.safetensors` on a fresh network, against the ONNX file. Prints
a line a check and writes docs/main-job.md; exits with 1 where a check fails. Images and weights
are read from ../shared; where they are absent it says so and exits with 0.

`--check-only` checks what an earlier run left and does not run `compress`.
CIFAR_JPEG=FOLDER names images that are unpacked already.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from pathlib import Path

from benchmarks.main_job_checks import Check, Figures, check_run, read_report
from benchmarks.tables import ROOT, RUNS, SHARED, markdown_table, measured_with

WEIGHTS = SHARED / "models" / "resnet20-cifar10-jpeg.safetensors"
ARCHIVE = SHARED / "data" / "cifar10-jpeg.tar.gz"
OUT = RUNS / "resnet20-main-job"
DOCUMENT = ROOT / "docs" / "main-job.md"


def image_folder() -> Path | None:
    """The unpacked images, train/ and test/; None where there is no archive to unpack."""
    named = os.environ.get("CIFAR_JPEG")
    folder = Path(named) if named else RUNS / "cifar10-jpeg"
    if folder.is_dir() or not ARCHIVE.is_file():
        return folder if folder.is_dir() else None
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    print(f"unpacking {ARCHIVE.name} into {folder}", flush=True)
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(partial, filter="data")
    partial.rename(folder)
    return folder


def command(images: Path) -> list[str]:
    """What is run, as a user would type it in the checkout."""
    return [
        *("compress", "--target-flops", "0.4", "--epochs", "6", _short(WEIGHTS)),
        *("--arch", "benchmarks/cifar_models.py:resnet20", "--input-size", "3,32,32"),
        *("--mean", ".485,.456,.406", "--std", ".229,.224,.225"),
        *("--data", _short(images), "--out", _short(OUT)),
    ]


def _short(path: Path) -> str:
    return os.path.relpath(path, ROOT)


def run_command(words: list[str]) -> tuple[int, float]:
    """Exit code and minutes of a fresh run of `compress`."""
    shutil.rmtree(OUT, ignore_errors=True)
    print(f"$ {shlex.join(words)}", flush=True)
    start = time.monotonic()
    program = Path(sysconfig.get_path("scripts")) / words[0]
    code = subprocess.run([program, *words[1:]], cwd=ROOT, check=False).returncode
    return code, (time.monotonic() - start) / 60


def document(words: list[str], checks: list[Check], figures: Figures, minutes: float | None) -> str:
    """The content of docs/main-job.md."""
    took = "" if minutes is None else f" It took {minutes:.1f} minutes."
    rows = [(check.name, check.found, "met" if check.holds else "MISSED") for check in checks]
    return (
        "# The main job on a trained ResNet-20\n\n"
        f"    {shlex.join(words)}\n\n"
        f"Run and checked by `make bench-main-job` with {measured_with()}; trained on "
        f"{figures.device}, seed {figures.seed}.{took} Accuracies are of the 10,000 test images of "
        "the JPEG copy of CIFAR-10.\n\n"
        f"{markdown_table(('', 'before', 'after', 'change'), figures.rows)}\n"
        "Checked from outside, with code of its own:\n\n"
        f"{markdown_table(('check', 'found', 'verdict'), rows)}"
    )


def main(arguments: list[str]) -> int:
    """Run and check; 1 where a check fails, 0 where the material is absent."""
    parser = argparse.ArgumentParser(prog="benchmarks.resnet20_main_job")
    parser.add_argument("--check-only", action="store_true")
    options = parser.parse_args(arguments)
    images = image_folder()
    if images is None or not WEIGHTS.is_file():
        print(f"skipped: {ARCHIVE} or {WEIGHTS} is absent")
        return 0
    words = command(images)
    minutes = None
    if not options.check_only:
        code, minutes = run_command(words)
        print(f"exit code {code} after {minutes:.1f} minutes", flush=True)
    if not (OUT / "report.json").is_file():
        print(f"FAILED: {OUT} holds no report.json", file=sys.stderr)
        return 1
    checks = check_run(OUT, images / "test", WEIGHTS)
    for check in checks:
        print(f"{'met   ' if check.holds else 'MISSED'}  {check.name}: {check.found}")
    DOCUMENT.write_text(document(words, checks, read_report(OUT), minutes))
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")
    return 0 if all(check.holds for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
