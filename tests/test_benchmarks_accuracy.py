"""The accuracy table says what is measured, what is not, and what failed; images are fixed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import accuracy, accuracy_data, accuracy_peers
from benchmarks.accuracy import Cell, cells, document, rows

GOOD = {
    "accuracy": 0.85,
    "samples": 10_000,
    "flops_kept": 0.399,
    "params_kept": 0.5,
    "images": 9984,
    "seconds": 61.2,
    "peak_mib": 900,
    "note": "",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(accuracy, "CACHE", tmp_path)
    return tmp_path


def cell(**changed: object) -> Cell:
    given = {"method": "default", "keep": 0.4, "epochs": 1, "seed": 0} | changed
    return Cell(**given)  # type: ignore[arg-type]


def test_each_setting_has_a_file_of_its_own_and_peers_do_not_depend_on_the_planner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [{}, {"method": "gbn-2019"}, {"keep": 0.3}, {"epochs": 5}, {"seed": 1}]
    assert len({cell(**change).path() for change in changes}) == 5
    root = tmp_path / "code"
    for file in accuracy.ROOT.glob("*/*.py"):
        copy = root / file.relative_to(accuracy.ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    monkeypatch.setattr(accuracy, "ROOT", root)
    ours, peer = cell(), cell(method="tp-group-taylor")
    before = ours.path(), peer.path()
    (root / "gbn" / "plan.py").write_text("changed")
    assert (ours.path() != before[0], peer.path() != before[1]) == (True, False)
    (root / "pipeline" / "training.py").write_text("changed")
    assert peer.path() != before[1]


def test_measured_failed_earlier_and_missing_cells_are_told_apart(cache: Path) -> None:
    every = cells(["default", "gbn-2019", "tp-bn-scale", "tp-group-norm"], [0.4], [1], [0])
    every[0].path().write_text(json.dumps(GOOD))
    every[1].path().write_text(
        json.dumps({"error": "exit code 1: Boom", "seconds": 3, "peak_mib": 5})
    )
    (cache / f"{every[2].name}-000000000000.json").write_text(json.dumps(GOOD))
    found = rows(every)
    assert found[0] == (
        "40%", "1", "default", "0", "85.00%", "39.9%", "50.0%", "9,984", "61", "900"
    )  # fmt: skip
    assert found[1][4] == "failed: exit code 1: Boom"
    assert found[2][2:5] == ("tp-bn-scale*", "0", "85.00%")
    assert found[3][4] == "not measured yet"
    text = document(every)
    assert "1 of 4 cells are not measured yet" in text
    assert "1 cells marked * were measured with earlier code" in text


def test_the_same_images_of_each_class_are_taken_every_time(tmp_path: Path) -> None:
    for kind, shade in (("b", 200), ("a", 100)):
        (tmp_path / kind).mkdir()
        for number in range(5):
            image = np.full((4, 4, 3), shade + number, np.uint8)
            Image.fromarray(image).save(tmp_path / kind / f"{number}.png")
    images, labels = accuracy_data._read(tmp_path, 3)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (images[:3] < 150).all() and (images[3:] > 150).all()
    again, _ = accuracy_data._read(tmp_path, 3)
    assert np.array_equal(images, again)
    assert len(np.unique(images[:, 0, 0, 0])) == 6


def test_a_peer_that_crashes_is_run_again_without_the_streams_and_it_is_said() -> None:
    def cut(streams: bool) -> nn.Module:
        if streams:
            raise RuntimeError("63 and 60\nand more")
        return nn.Identity()

    model, note = accuracy_peers.cut_with_fallback(cut)
    assert isinstance(model, nn.Identity)
    assert "RuntimeError: 63 and 60)" in note
    assert accuracy_peers.cut_with_fallback(lambda _: model) == (model, "")


def test_macs_of_the_loop_are_counted_as_multiply_accumulates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accuracy_peers, "INPUT", (3, 8, 8))
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 64, 4))
    assert accuracy_peers.num_macs(model) == 64 * 27 * 5 + 5 * 64 * 4


def test_the_peers_regulariser_is_called_before_each_step_and_not_afterwards() -> None:
    class Pruner:
        steps = 0

        def update_regularizer(self) -> None:
            self.steps = 0

        def regularize(self, model: nn.Module) -> None:
            self.steps += 1
            model.weight.grad += 1.0  # type: ignore[operator, union-attr]

    model, pruner = nn.Linear(1, 1, bias=False), Pruner()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.weight.grad = torch.zeros(1, 1)
    before = model.weight.item()
    with accuracy_peers.regularised(pruner, model):
        optimizer.step()
    optimizer.step()
    assert pruner.steps == 1
    assert model.weight.item() == pytest.approx(before - 2.0)  # the gradient of 1 stays for both
