"""Recipes with one part changed spend the same budget, and their table says what was measured."""

from pathlib import Path

import pytest

from benchmarks import accuracy_cells
from benchmarks.ablated import VARIANTS, one_cut, recipe_of, with_tocks
from benchmarks.ablation import document, rows, shown, wanted
from benchmarks.accuracy_cells import EPOCHS, Cell, add, command, measured
from benchmarks.cifar_models import resnet20
from gbn.ticktock import schedule
from pipeline.recipes import RECIPES

GOOD = {"accuracy": 0.80, "measured_with": "a machine"}


def test_each_variant_differs_from_the_default_in_what_it_names() -> None:
    changed = {
        name: {
            field
            for field in vars(RECIPES["default"])
            if getattr(recipe_of(name), field) != getattr(RECIPES["default"], field)
        }
        for name in VARIANTS
    }
    assert changed == {
        "no-refit": {"refit_below"},
        "refit": {"refit_below"},
        "plain-threshold": {"rank"},
        "whole-score-batches": {"score_batch"},
        "one-cut": {"schedule"},
        "tocks": {"schedule"},
        "no-streams": {"stream_weight"},
        "weak-streams": {"stream_weight"},
        "no-teacher": {"stream_weight", "distill"},
        "peak-0.02": {"peak_lr"},
        "shifted-images": {"augment"},
    }
    assert recipe_of("default") is RECIPES["default"]


@pytest.mark.parametrize("passes", EPOCHS)
def test_refits_are_taken_out_where_they_are_and_put_in_where_not(passes: int) -> None:
    phases, network = schedule(budget=78 * passes, target=0.3), resnet20()
    for name in ("refit", "no-refit"):
        differs = recipe_of(name).refits(phases, network) != RECIPES["default"].refits(
            phases, network
        )
        assert differs == (passes in VARIANTS[name].plays_in)
        cells = {cell.name for cell in wanted([passes], [0])}
        assert (f"{name}-0.3-{passes}-0" in cells) == differs


@pytest.mark.parametrize("budget", [0, 78, 390])
@pytest.mark.parametrize("target", [0.6, 0.3])
def test_other_orders_see_as_many_batches(budget: int, target: float) -> None:
    own = schedule(budget=budget, target=target)
    cut, tocks = (order(budget=budget, target=target) for order in (one_cut, with_tocks))
    for kinds in (("tick",), ("tock", "finetune")):
        counts = [sum(p.batches for p in way if p.kind in kinds) for way in (own, cut, tocks)]
        assert counts == [counts[0]] * 3
    assert sum(phase.kind == "tick" for phase in cut) == 1
    assert cut[0].keep == 0.0 and own[0].keep > 0.0
    if budget == 390:
        kinds_in_order = [phase.kind for phase in tocks]
        ticks = kinds_in_order.count("tick")
        assert kinds_in_order == ["tick", "tock"] * (ticks - 1) + ["tick", "finetune"]
        assert all(phase.kind != "tock" for phase in own)


def test_a_variant_is_run_as_the_default_with_its_own_images() -> None:
    told = command(Cell(method="shifted-images", keep=0.3, epochs=5, seed=0), Path("out"))
    default = command(Cell(method="default", keep=0.3, epochs=5, seed=0), Path("out"))
    assert told[1:4] == ["-m", "benchmarks.ablated", "shifted-images"]
    where = default.index("--augment") + 1
    assert (default[where], told[where + 1]) == ("flip", "standard")
    assert told[4:where] == default[3 : where - 1]


def test_the_table_has_differences_of_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy_cells, "MEASURED", tmp_path / "cells.jsonl")
    every = wanted([0, 1], [0])
    first = {cell.name: cell for cell in every}
    assert "tocks-0.3-0-0" not in first and "tocks-0.3-1-0" in first
    add(first["default-0.3-0-0"], first["default-0.3-0-0"].code(), GOOD)
    add(first["no-refit-0.3-0-0"], first["no-refit-0.3-0-0"].code(), GOOD | {"accuracy": 0.5})
    add(first["one-cut-0.3-0-0"], "another", GOOD | {"accuracy": 0.81})
    add(first["no-streams-0.3-1-0"], first["no-streams-0.3-1-0"].code(), GOOD)
    found = {row[0]: row[2:] for row in rows(every, measured())}
    assert found["default"] == ("80.00%", "not measured")
    assert found["no-refit"] == ("50.00% (-30.00)", "not measured")
    # of earlier code, which may differ in more than this part
    assert found["one-cut"] == ("81.00%*", "not measured")
    assert found["tocks"] == ("", "not measured")
    # without the default beside it there is nothing to tell
    assert found["no-streams"] == ("", "not measured")
    assert "| 0 passes | 1 pass |" in document(every, measured())


def test_the_page_has_other_seeds_where_something_of_them_was_measured() -> None:
    assert {cell.seed for cell in shown({})} == {0}
    of_default = {"default-0.3-5-2": GOOD}
    assert {cell.seed for cell in shown(of_default)} == {0}
    assert {cell.seed for cell in shown(of_default | {"refit-0.3-5-2": GOOD})} == {0, 2}
