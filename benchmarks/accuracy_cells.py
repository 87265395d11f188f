"""The cells of `benchmarks.accuracy`: what each is, what decides it, and what was measured.

No command. What enters: a method, a share of the MACs, passes and a seed. What leaves: its outcome,
read from and added to docs/accuracy.jsonl, one line a measurement, which is committed: a table that
takes hours goes on on another machine. The last line of a cell counts; it is of *earlier code*
where the hash beside it is not that of the code at hand. Comments and docstrings decide nothing and
are not hashed.
"""

import ast
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.ablated import VARIANTS, recipe_of
from benchmarks.accuracy_data import BATCH, FILE, MEAN, STD
from benchmarks.resnet20_main_job import WEIGHTS
from benchmarks.tables import ROOT, measured_with

MEASURED = ROOT / "docs" / "accuracy.jsonl"
OURS = ("default", "gbn-2019")
PEER_METHODS = ("tp-group-magnitude", "tp-group-taylor", "tp-bn-scale", "tp-group-norm")
PEER_VERSION = "torch-pruning 1.6.1"
KEEPS, EPOCHS, SEEDS = (0.6, 0.4, 0.3), (0, 1, 5), (0, 1, 2)

Outcomes = Mapping[str, dict[str, Any]]

# Paths below the root; a folder stands for all of its files.
MEASURING = (
    *("benchmarks/accuracy_data.py", "benchmarks/cifar_models.py", "exporters/accuracy.py"),
    *("exporters/capture.py", "exporters/cleanup.py", "exporters/lean.py", "exporters/macs.py"),
    *("exporters/session.py", "exporters/to_onnx.py"),
)
LEARNING = (
    *("recipes", "training", "training_settings", "learning", "tasks", "objectives", "augment"),
    *("data", "stored_data", "arrays", "batches", "renewal"),
)
MAIN_JOB = ("compress", "baseline", "run", "recovery", "goal", "config_file", "stream_distance")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run; `keep` is the share of the MACs that may stay."""

    method: str
    keep: float
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        """Names the cell, whatever the code."""
        return f"{self.method}-{self.keep:g}-{self.epochs}-{self.seed}"

    def code(self) -> str:
        """Hash of what is run, of the code and weights that decide the outcome, and of torch."""
        ours = is_ours(self.method)
        names = LEARNING + MAIN_JOB if ours else LEARNING
        paths = [*MEASURING, *(f"pipeline/{name}.py" for name in names)]
        if ours:
            paths.append("gbn")
        else:
            paths += ["gbn/ticktock.py", "benchmarks/accuracy_peers.py"]
        if self.method in VARIANTS:
            paths.append("benchmarks/ablated.py")
        said = [version("torch"), PEER_VERSION, *command(self, Path("out"))[1:]]
        # wherever the project lies, and the material beside it
        beside = str(ROOT.parent).rstrip("/")
        return code_hash(paths, [w.replace(str(ROOT), "").replace(beside, "") for w in said])


def is_ours(method: str) -> bool:
    """Whether it is a run of `compress`, with a recipe as it is or changed."""
    return method in OURS or method in VARIANTS


def code_hash(paths: Iterable[str], said: Iterable[str]) -> str:
    """Twelve hex digits of code below the root, of the trained weights and of words."""
    digest = hashlib.sha256(json.dumps([*said]).encode())
    digest.update(WEIGHTS.read_bytes() if WEIGHTS.is_file() else b"")
    for path in paths:
        for file in _files(ROOT / path):
            digest.update(_tree(file, file.stat().st_mtime_ns).encode())
    return digest.hexdigest()[:12]


@functools.cache
def _tree(file: Path, _changed: int) -> str:
    return ast.dump(_without_prose(ast.parse(file.read_text())))


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(path.rglob("*.py"))
    else:
        yield path


def _without_prose(tree: ast.Module) -> ast.Module:
    """Comments are gone already; docstrings and other bare strings go too."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return tree


def _is_text(line: ast.stmt) -> bool:
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


def command(cell: Cell, out: Path) -> list[str]:
    """What runs a cell."""
    if not is_ours(cell.method):
        where = [cell.method, str(cell.keep), str(cell.epochs), str(cell.seed), str(out)]
        return [sys.executable, "-m", "benchmarks.accuracy_peers", *where]
    augment = recipe_of(cell.method).augment(cell.epochs)
    changed = cell.method in VARIANTS
    run = ("benchmarks.ablated", cell.method) if changed else ("pipeline.cli",)
    recipe = "default" if changed else cell.method
    return [
        *(sys.executable, "-m", *run, "--target-flops", str(cell.keep)),
        *("--epochs", str(cell.epochs), "--seed", str(cell.seed), "--recipe", recipe),
        *("--channel-multiple", "1", "--augment", augment, "--batch-size", str(BATCH)),
        *("--data", str(FILE), "--mean", _numbers(MEAN), "--std", _numbers(STD)),
        *("--arch", f"{ROOT / 'benchmarks/cifar_models.py'}:resnet20", "--input-size", "3,32,32"),
        *("--device", "cpu", "--out", str(out), "-q", str(WEIGHTS)),
    ]


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(str(value) for value in values)


def cells(
    methods: Iterable[str], keeps: Iterable[float], epochs: Iterable[int], seeds: Iterable[int]
) -> list[Cell]:
    """Cheap ones first."""
    return [
        Cell(method=method, keep=keep, epochs=passes, seed=seed)
        for seed in seeds
        for passes in epochs
        for keep in keeps
        for method in methods
    ]


def measured() -> dict[str, dict[str, Any]]:
    """The last outcome of each cell by its name, whatever code it is of."""
    lines = MEASURED.read_text().splitlines() if MEASURED.is_file() else []
    return {outcome["cell"]: outcome for outcome in map(json.loads, lines)}


def is_current(cell: Cell, outcomes: Outcomes) -> bool:
    """Whether the cell was measured with the code at hand; a failure is tried again."""
    found = outcomes.get(cell.name, {"error": "not measured"})
    return "error" not in found and found["code"] == cell.code()


def add(cell: Cell, code: str, outcome: dict[str, Any]) -> None:
    """One line more, in one write: several processes may measure at a time."""
    told = {"cell": cell.name, "code": code, "measured_with": measured_with()}
    line = json.dumps(told | outcome) + "\n"
    descriptor = os.open(MEASURED, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "ab") as sink:
        sink.write(line.encode())
