"""Layers are refitted behind a cut where little training follows, and not where there is much."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import gbn
from gbn.ticktock import Phase
from pipeline.recipes import RECIPES

sys.path.insert(0, str(Path(__file__).parent))

from cli_calls import run
from tiny_job import arguments, write_job

SHORT = ("--epochs", "1", "--batch-size", "64")  # 8 batches
LONG = ("--epochs", "4", "--batch-size", "16")  # 128, of which 18 are scored


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_job(tmp_path_factory.mktemp("job"))


def test_batches_that_are_trained_on_decide() -> None:
    ticks = (Phase(kind="tick", batches=1000), Phase(kind="tick", batches=1000))

    def train(batches: int, kind: Any = "finetune") -> Phase:
        return Phase(kind=kind, batches=batches)

    own, published = RECIPES["default"], RECIPES["gbn-2019"]
    assert own.refits(ticks)
    assert own.refits((*ticks, train(99)))
    assert not own.refits((*ticks, train(100)))
    assert not own.refits((ticks[0], train(60, "tock"), ticks[1], train(40)))
    assert not any(published.refits((*ticks, train(count))) for count in (0, 1, 1000))


@pytest.mark.parametrize(("length", "refits"), [(SHORT, True), (LONG, False)])
def test_a_run_refits_as_its_dry_run_says(
    job: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    length: tuple[str, ...],
    refits: bool,
) -> None:
    calls = []
    refit = gbn.refit

    def counted(*args: Any) -> gbn.Refit:
        calls.append(args)
        return refit(*args)

    monkeypatch.setattr(gbn, "refit", counted)
    told = run(*arguments(job, tmp_path / "out", *length, "--dry-run", "--json"))
    phases = json.loads(told.stdout)["dry_run"]["phases"]
    assert [phase["refits"] for phase in phases] == [refits, False], phases
    calls.clear()  # a dry run times one
    done = run(*arguments(job, tmp_path / "out", *length))
    assert done.exit_code == 0, done.output
    cuts = done.output.count("gated = removed")
    assert cuts and len(calls) == (cuts if refits else 0)
