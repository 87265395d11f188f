"""The accuracy table says what is measured, what is not, and what failed; images are fixed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import accuracy, accuracy_b, accuracy_cells, accuracy_data, accuracy_peers
from benchmarks.accuracy_cells import Cell, add, cells, is_current, measured
from benchmarks.accuracy_page import HEADER, document, rows, standing
from benchmarks.cifar_models import resnet20

GOOD = {
    "accuracy": 0.85,
    "samples": 10_000,
    "flops_kept": 0.399,
    "params_kept": 0.5,
    "images": 9984,
    "seconds": 61.2,
    "cpu_seconds": 50.4,
    "peak_mib": 900,
    "note": "",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy_cells, "MEASURED", tmp_path / "accuracy.jsonl")


def cell(**changed: object) -> Cell:
    given = {"method": "default", "keep": 0.4, "epochs": 1, "seed": 0} | changed
    return Cell(**given)  # type: ignore[arg-type]


def test_each_setting_has_its_own_code_and_peers_do_not_depend_on_the_planner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [{}, {"method": "gbn-2019"}, {"keep": 0.3}, {"epochs": 5}, {"seed": 1}]
    assert len({cell(**change).code() for change in changes}) == 5
    root = tmp_path / "code"
    for folder in ("benchmarks", "exporters", "gbn", "pipeline"):
        shutil.copytree(accuracy_cells.ROOT / folder, root / folder)
    monkeypatch.setattr(accuracy_cells, "ROOT", root)
    ours, peer = cell(), cell(method="tp-group-taylor")

    def changed_by(path: str, line: str) -> tuple[bool, bool]:
        before = ours.code(), peer.code()
        with (root / path).open("a") as file:
            file.write(f"\n{line}\n")
        return ours.code() != before[0], peer.code() != before[1]

    assert changed_by("gbn/plan.py", "x = 1") == (True, False)
    assert changed_by("pipeline/recovery.py", "x = 1") == (True, False)
    assert changed_by("benchmarks/accuracy_peers.py", "x = 1") == (False, True)
    for path in ("pipeline/training.py", "pipeline/objectives.py", "exporters/to_onnx.py"):
        assert changed_by(path, "x = 1") == (True, True)
        assert changed_by(path, "# only words") == (False, False)
        assert changed_by(path, "def f():\n    'words'") == (True, True)
        (root / path).write_text((root / path).read_text().replace("'words'", "'other words'"))
        assert changed_by(path, "'a text'") == (False, False)


def test_the_last_measurement_of_a_cell_counts_and_is_current_with_its_code_alone() -> None:
    add(cell(), "another", GOOD)
    assert not is_current(cell(), measured())
    add(cell(), cell().code(), GOOD | {"accuracy": 0.5})
    assert is_current(cell(), measured())
    assert measured()[cell().name]["accuracy"] == 0.5
    assert not is_current(cell(seed=1), measured())


def test_a_failure_is_tried_again() -> None:
    add(cell(), cell().code(), {"error": "exit code 137: Killed", "seconds": 3, "peak_mib": 5})
    assert not is_current(cell(), measured())


def test_measured_failed_earlier_and_missing_cells_are_told_apart() -> None:
    methods = ["default", "gbn-2019", "tp-bn-scale", "tp-group-norm"]
    every = cells(methods, [0.4], [1], [0, 1])
    add(every[0], every[0].code(), GOOD)
    add(every[4], every[4].code(), GOOD | {"accuracy": 0.80, "peak_mib": 950})
    add(every[1], every[1].code(), {"error": "exit code 1: Boom", "seconds": 3, "peak_mib": 5})
    add(every[2], "another", GOOD | {"note": "crashes at times"})
    found = rows(every, measured())
    assert found[0] == (
        *("40%", "1", "default", "2", "82.50%", "80.00%", "85.00%"),
        *("39.9%", "50.0%", "9,984", "61", "50", "950"),
    )
    assert found[1][3:5] == ("0, 1 failed: exit code 1: Boom", "not measured yet")
    assert found[2][2:5] == ("tp-bn-scale*", "1", "85.00%")
    assert found[3][2:5] == ("tp-group-norm", "0", "not measured yet")
    assert {len(row) for row in found} == {len(HEADER)}
    text = document(every, measured())
    assert "4 of 8 cells are not measured yet" in text
    assert "2 cells are of earlier code, or failed" in text
    assert "- Torch-Pruning 1.6.1 crashes at times.\n" in text


def test_earlier_code_does_not_enter_a_mean_beside_the_present() -> None:
    every = cells(["default"], [0.4], [1], [0, 1])
    add(every[0], "another", GOOD | {"accuracy": 0.1})
    assert rows(every, measured())[0][2:5] == ("default*", "1", "10.00%")
    add(every[1], every[1].code(), GOOD)
    assert rows(every, measured())[0][2:5] == ("default", "1", "85.00%")


def test_default_is_compared_with_the_best_peer_on_the_seeds_that_both_have() -> None:
    methods = ["default", "tp-bn-scale", "tp-group-norm", "gbn-2019"]
    every = cells(methods, [0.4], [1], [0, 1, 2])
    tops = {0: 0.80, 4: 0.90, 8: 0.10, 1: 0.70, 5: 0.74, 2: 0.75, 6: 0.83}
    for number, top in tops.items():
        code = "another" if number in (2, 6) else every[number].code()
        add(every[number], code, GOOD | {"accuracy": top})
    assert standing(every, measured(), 0.4, 1) == (
        *("40%", "1", "85.00% (n = 2)", "79.00%* (n = 2), tp-group-norm"),
        *("+6.00 points [+5.00, +7.00]", "not measured yet", ""),
    )


def test_the_recipes_time_is_set_beside_that_of_fine_tuning_alone() -> None:
    every = cells(["default", "tp-group-magnitude"], [0.4], [1], [0, 1, 2])
    quiet = GOOD | {"seconds": 100.0, "cpu_seconds": 98.0}

    def told(*times: dict[str, float]) -> str:
        for number, changed in enumerate(times):
            add(every[number], every[number].code(), quiet | changed)
        return standing(every, measured(), 0.4, 1)[-1]

    assert told({}, {}) == ""
    assert told({"recipe_seconds": 66.0}) == ""
    assert told({"recipe_seconds": 0.0}, {"training_seconds": 0.0}) == ""
    first = ({"recipe_seconds": 66.0}, {"training_seconds": 60.0})
    assert told(*first) == "1.10x (n = 1)"
    second = ({"recipe_seconds": 65.0}, {"training_seconds": 50.0})
    assert told(*first, *second) == "1.20x [1.10, 1.30] (n = 2)"
    # one that had to wait for its core tells nothing of the recipe
    busy = ({"recipe_seconds": 500.0, "cpu_seconds": 70.0}, {"training_seconds": 50.0})
    assert told(*first, *second, *busy) == "1.20x [1.10, 1.30] (n = 2)"
    add(every[2], "another", quiet | {"recipe_seconds": 65.0})
    assert standing(every, measured(), 0.4, 1)[-1] == "1.10x (n = 1)"


def test_times_of_two_processors_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    every = cells(["default", "tp-group-magnitude"], [0.4], [1], [0])
    quiet = GOOD | {"seconds": 100.0, "cpu_seconds": 98.0}
    add(every[0], every[0].code(), quiet | {"recipe_seconds": 66.0})
    monkeypatch.setattr(accuracy_cells, "measured_with", lambda: "another processor")
    add(every[1], every[1].code(), quiet | {"training_seconds": 60.0})
    assert standing(every, measured(), 0.4, 1)[-1] == ""


def test_the_recipes_seconds_are_those_of_its_phases(tmp_path: Path) -> None:
    names = {"baseline": 10.0, "tick 1": 1.5, "tock 1": 2.0, "finetune 1": 4.0, "verify": 20.0}
    report = {
        "accuracy": {"after": 0.8, "before": 0.9, "samples": 10},
        "flops": {"kept": 0.4},
        "params": {"kept": 0.5},
        "stages": [{"name": name, "seconds": seconds} for name, seconds in names.items()],
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert accuracy.read_report(tmp_path, cell())["recipe_seconds"] == 7.5
    del report["stages"][1:4]  # type: ignore[attr-defined]
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="no phase among"):
        accuracy.read_report(tmp_path, cell())


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


def test_the_twin_with_convolutions_does_what_the_padded_network_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accuracy_b, "_SMALL", 0.0)
    torch.manual_seed(0)
    original = resnet20().eval()
    images = torch.randn(6, 3, 16, 16)
    twin = accuracy_b.with_convolutions(original, [images[:3], images[3:]])
    assert sum(isinstance(m, nn.Conv2d) for m in twin.modules()) == 19 + 2
    assert torch.allclose(twin(images), original(images), atol=1e-5)
