"""Layers are refitted behind a cut where little training follows, and not where there is much."""

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gbn
from gbn.ticktock import Phase
from pipeline import compress, training
from pipeline.mixed_data import made_images
from pipeline.recipes import RECIPES
from pipeline.renewal import refit_inputs, renew_statistics

sys.path.insert(0, str(Path(__file__).parent))

from cli_calls import refused, run
from tiny_job import ARCH_SOURCE, arguments, write_job

SHORT = ("--epochs", "1", "--batch-size", "64")  # 8 batches
LONG = ("--epochs", "4", "--batch-size", "16")  # 128, of which 18 are scored
BARE_SOURCE = re.sub(r"nn\.BatchNorm2d\(\d+\)", "nn.Identity()", ARCH_SOURCE)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """A network with batch norms, and the same without."""
    sources = {"normed": ARCH_SOURCE, "bare": BARE_SOURCE}
    return {name: write_job(tmp_path_factory.mktemp(name), text) for name, text in sources.items()}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often layers were refitted and statistics renewed."""
    counts: Counter[str] = Counter()

    def count(where: Any, name: str) -> None:
        done = getattr(where, name)

        def counted(*args: Any) -> Any:
            counts[name] += 1
            return done(*args)

        monkeypatch.setattr(where, name, counted)

    count(gbn, "refit")
    count(training, "renew_statistics")
    return counts


def test_batches_that_are_trained_on_decide_and_norms() -> None:
    ticks = (Phase(kind="tick", batches=1000), Phase(kind="tick", batches=1000))
    normed = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    forgetful = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    bare = (nn.Sequential(nn.Conv2d(1, 2, 1), nn.GroupNorm(1, 2)), forgetful)

    def train(batches: int, kind: Any = "finetune") -> Phase:
        return Phase(kind=kind, batches=batches)

    own, published = RECIPES["default"], RECIPES["gbn-2019"]
    assert own.refits(ticks, normed)
    assert own.refits((*ticks, train(99)), normed)
    assert not own.refits((*ticks, train(100)), normed)
    assert not own.refits((ticks[0], train(60, "tock"), ticks[1], train(40)), normed)
    for model in bare:
        assert own.refits((*ticks, train(399)), model)
        assert not own.refits((*ticks, train(400)), model)
    for count in (0, 1, 1000):
        assert not any(published.refits((*ticks, train(count)), m) for m in (normed, *bare))


@pytest.mark.parametrize(
    ("network", "length", "refits"),
    [("normed", SHORT, True), ("normed", LONG, False), ("bare", LONG, True)],
)
def test_a_run_refits_as_its_dry_run_says(
    jobs: dict[str, dict[str, Path]],
    tmp_path: Path,
    calls: Counter[str],
    network: str,
    length: tuple[str, ...],
    refits: bool,
) -> None:
    args = arguments(jobs[network], tmp_path / "out", *length)
    told = run(*args, "--dry-run", "--json")
    phases = json.loads(told.stdout)["dry_run"]["phases"]
    assert [p["refits"] for p in phases] == [refits and p["kind"] == "tick" for p in phases]
    assert (", refits and training" in run(*args, "--dry-run").stdout) == refits
    calls.clear()  # a dry run times one
    done = run(*args)
    assert done.exit_code == 0, done.output
    cuts = done.output.count("gated = removed")
    assert cuts
    assert calls == {"refit" if refits else "renew_statistics": cuts}


@pytest.mark.parametrize("other", [{"refit_below": 1000}, {"stream_weight": 30.0}])
def test_a_run_that_began_with_another_recipe_does_not_go_on(
    jobs: dict[str, dict[str, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: dict[str, Any],
) -> None:
    args = arguments(jobs["normed"], tmp_path / "out", *LONG)
    with monkeypatch.context() as before:
        before.setitem(RECIPES, "default", replace(RECIPES["default"], **other))
        before.setattr(compress.Compressor, "_recover", _stopped)
        assert run(*args).exit_code != 0
    message = refused(*args, "--resume")
    assert "made by another version" in message


def _stopped(*_: Any) -> None:
    raise KeyboardInterrupt


def test_where_no_training_follows_four_times_the_images_are_refitted_on() -> None:
    images = torch.randn(2000, 1, 4, 4)
    data = made_images(images, images[:1], 100, seed=0)
    amounts = [refit_inputs(data, last=last) for last in (False, True)]
    assert [(len(batch), settings.rows) for batch, settings in amounts] == [
        (256, 16384),
        (1024, 65536),
    ]


def test_one_process_renews_norms_that_are_synchronised_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def waits(*_: Any) -> Any:
        raise AssertionError("another process is waited for")

    monkeypatch.setattr(nn.SyncBatchNorm, "forward", waits)
    images = 3 + torch.randn(64, 2, 4, 4)
    model = nn.Sequential(nn.SyncBatchNorm(2)).eval()
    renew_statistics(model, [images])
    assert torch.allclose(model[0].running_mean, images.mean((0, 2, 3)))
    assert "forward" not in vars(model[0])


def test_a_norm_keeps_a_forward_of_its_own() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2)).eval()
    model[0].forward = own = model[0].forward
    renew_statistics(model, [torch.randn(64, 2, 4, 4)])
    assert vars(model[0])["forward"] is own
