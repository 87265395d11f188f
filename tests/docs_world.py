"""The files that the documentation's examples name, small enough to run them all in tests."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from pipeline.cli import main

MODELS = """\
from torch import nn


def network():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 2),
    )


resnet20 = network


def camera():
    def layer(a, b):
        return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    body = [*layer(3, 64), *layer(64, 96), *layer(96, 64)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
"""
ROOT = Path(__file__).resolve().parent.parent
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SIZE = 16
_FILES = re.compile(r"(?s)<!-- file: (\S+) -->\n```python\n(.*?)```")


def build_world(folder: Path) -> None:
    """A trained model in several forms, image folders, arrays, and a finished run."""
    (folder / "models.py").write_text(MODELS)
    images, labels = _images(256, 0)
    model = _trained("network", images, labels)
    slow = _trained("camera", images, labels)  # its layers take most of its time
    for trained, name in ((slow, "camera"), (model, "model")):
        trained.default_cfg = {"input_size": (3, SIZE, SIZE), "mean": MEAN, "std": STD}
        torch.save(trained, folder / f"{name}.pt")
    torch.save(model.state_dict(), folder / "weights.pt")
    for split, seed, count in (("train", 0, 128), ("val", 1, 64)):
        pixels, classes = _images(count, seed)
        for number, (image, label) in enumerate(zip(pixels, classes, strict=True)):
            place = folder / "photos" / split / ("blue", "red")[label] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place)
    pixels, classes = _images(64, 1)
    np.savez(folder / "validation.npz", x_test=pixels, y_test=classes)
    (folder / "demo-run").mkdir()  # as `make demo` leaves it
    shutil.copy(folder / "model.pt", folder / "demo-run/model.pt")
    arrays = {"x_train": images, "y_train": labels, "x_test": pixels, "y_test": classes}
    np.savez(folder / "demo-run/digits.npz", **arrays)
    for name, keep in (("run-a", 0.3), ("run-b", 0.6)):
        _compress(folder, f"--target-flops {keep} --data photos --epochs 1 --out {name} model.pt")
    for source, name in (("stages/baseline.onnx", "old.onnx"), ("model.onnx", "new.onnx")):
        (folder / name).write_bytes((folder / "run-a" / source).read_bytes())
    for name, source in (("big.onnx", "old.onnx"), ("small.onnx", "new.onnx")):
        (folder / name).write_bytes((folder / source).read_bytes())
    shutil.copytree(folder / "photos", folder / "cifar10")
    save_file(model.state_dict(), folder / "resnet20.safetensors")
    (folder / "model.onnx").write_bytes((folder / "old.onnx").read_bytes())


def _images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 16, 16, 3): noise with more red or more blue."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    pixels = rng.integers(0, 150, (count, SIZE, SIZE, 3))
    pixels[labels == 1, :, :, 0] += 60
    pixels[labels == 0, :, :, 2] += 60
    return pixels.astype(np.uint8), labels.astype(np.int64)


def _trained(name: str, pixels: np.ndarray, labels: np.ndarray) -> torch.nn.Module:
    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    torch.manual_seed(0)
    model: torch.nn.Module = scope[name]()
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    x, y = (x - 0.5) / 0.25, torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(16):
        part = slice(64 * (step % 4), 64 * (step % 4) + 64)
        loss = F.cross_entropy(model(x[part]), y[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def _compress(folder: Path, arguments: str) -> None:
    with contextlib.chdir(folder):
        result = CliRunner().invoke(main, shlex.split(arguments))
    assert result.exit_code == 0, result.output


def sybil() -> Sybil:
    """Python blocks run in the page's namespace, shell blocks in its folder; see CONTRIBUTING."""
    return Sybil(
        [
            PythonCodeBlockParser(),
            CodeBlockParser(language="sh", evaluator=run_shell),
            CodeBlockParser(language="toml", evaluator=_write_named),
            SkipParser(),
        ]
    )


def _write_named(example: Example) -> None:
    """A block whose first line is `# FILE` is that file."""
    first, _, _ = str(example.parsed).partition("\n")
    name = first.removeprefix("# ").strip()
    assert first.startswith("# ") and " " not in name, f"a file block begins with its name: {first}"
    Path(name).write_text(str(example.parsed))


def run_shell(example: Example) -> None:
    """`compress` runs here and now, which saves its imports; anything else is the shell's.

    A comment `# exit code N`, or `N or M`, after a command is what it must return, else 0. What
    `make` would run is looked up and not run: it installs 6 GB, or is this very test run.
    """
    for command, wanted in _commands(str(example.parsed)):
        if command[0] == "make":
            done = subprocess.run(
                ["make", "--dry-run", "--directory", str(ROOT), *command[1:]],
                check=False, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode in wanted, f"{command}: {done.stdout}{done.stderr}"
        elif command == [".", ".venv/bin/activate"]:
            assert Path(sys.executable).with_name("activate").is_file()
        elif command[0] == "compress":
            result = CliRunner().invoke(main, command[1:])
            assert result.exit_code in wanted, f"{command}: {result.output}\n{result.exception!r}"
        else:
            program = sys.executable if command[0] == "python" else command[0]
            beside = str(Path(sys.executable).parent)  # where torchrun is
            environment = os.environ | {"PATH": f"{beside}{os.pathsep}{os.environ['PATH']}"}
            done = subprocess.run(
                [program, *command[1:]],
                check=False, capture_output=True, text=True, env=environment,
            )  # fmt: skip
            assert done.returncode in wanted, f"{command}: {done.stdout}{done.stderr}"


def _commands(text: str) -> list[tuple[list[str], list[int]]]:
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        words, _, comment = line.partition("  #")
        if words.strip() and not words.startswith("#"):
            told = comment.strip().partition(":")[0]
            codes = re.findall(r"\d+", told) if told.startswith("exit code") else []
            commands.append((shlex.split(words), [*map(int, codes)] or [0]))
    return commands


def run_page(page: Path, folder: Path) -> tuple[int, list[str]]:
    """Blocks that ran, and the reasons of those that did not."""
    ran, skipped = 0, []
    for name, text in _FILES.findall(page.read_text()):
        (folder / name).write_text(text)
    document = sybil().parse(page)
    sys.path.insert(0, str(folder))
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
            for example in document.examples():
                is_block = example.region.parsed is not None and example.region.evaluator
                try:
                    example.evaluate()
                except unittest.SkipTest as reason:
                    skipped.append(f"{page.name}:{example.line}: {reason}")
                    continue
                ran += bool(is_block)
    finally:
        sys.path.remove(str(folder))
        for name in ("models", *(p.stem for p in folder.glob("*.py"))):
            sys.modules.pop(name, None)
    return ran, skipped
