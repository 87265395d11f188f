"""The cells of `benchmarks.accuracy`: what each is, what decides it, and what was measured.

No command. What enters: a method, a share of the MACs, passes and a seed. What leaves: its outcome,
read from and added to docs/accuracy.jsonl, one line a measurement, which is committed: a table that
takes hours goes on on another machine. The last line of a cell counts; it is of *earlier code*
where the hash beside it is not that of the code at hand.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.tables import ROOT

MEASURED = ROOT / "docs" / "accuracy.jsonl"
OURS = ("default", "gbn-2019")
PEER_METHODS = ("tp-group-magnitude", "tp-group-taylor", "tp-bn-scale", "tp-group-norm")
KEEPS, EPOCHS, SEEDS = (0.6, 0.4, 0.3), (0, 1, 5), (0, 1, 2)
TRAINING = (
    "recipes",
    "training",
    "learning",
    "tasks",
    "augment",
    "stored_data",
    "arrays",
    "batches",
)
MAIN_JOB = ("compress", "baseline", "run", "stream_distance")


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
        """Hash of the settings and of the code that decides the outcome."""
        names = TRAINING + MAIN_JOB if self.method in OURS else TRAINING
        files = [ROOT / "pipeline" / f"{name}.py" for name in names]
        files.append(ROOT / "benchmarks" / "accuracy_data.py")
        if self.method in OURS:
            files += sorted((ROOT / "gbn").rglob("*.py"))
        else:
            files += [ROOT / "gbn" / "ticktock.py", ROOT / "benchmarks" / "accuracy_peers.py"]
        digest = hashlib.sha256(json.dumps(asdict(self)).encode())
        for file in files:
            digest.update(file.read_bytes())
        return digest.hexdigest()[:12]


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


def is_current(cell: Cell, outcomes: dict[str, dict[str, Any]]) -> bool:
    """Whether the cell was measured with the code at hand."""
    return cell.name in outcomes and outcomes[cell.name]["code"] == cell.code()


def add(cell: Cell, code: str, outcome: dict[str, Any]) -> None:
    """One line more, in one write: several processes may measure at a time."""
    line = json.dumps({"cell": cell.name, "code": code} | outcome) + "\n"
    descriptor = os.open(MEASURED, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "ab") as sink:
        sink.write(line.encode())
