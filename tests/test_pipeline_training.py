"""What learns in a tick and in a tock, by how much, and that a stop in between changes nothing."""

import copy
import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from lightning_fabric import Fabric
from torch import Tensor, nn

import gbn
from gbn.ticktock import Phase
from pipeline.batches import BatchStream
from pipeline.cli import main
from pipeline.config import RECIPES as NAMES
from pipeline.console import RunConsole
from pipeline.data_types import DataRequest
from pipeline.errors import CompressError, UsageError
from pipeline.learning import last_linear, lr_share, parts_of
from pipeline.recipes import RECIPES
from pipeline.stored_data import StoredData, TensorSplit
from pipeline.tasks import CLASSIFICATION, Task, TaskObjective
from pipeline.training import Trainer
from pipeline.training_settings import Progress, TrainingSettings

sys.path.insert(0, str(Path(__file__).parent))

from tiny_job import arguments, write_job


@dataclass(frozen=True)
class Batches:
    """Data of one fixed pass of two batches."""

    def train_loader(self, _epoch: int, *, augmented: bool = True) -> "Batches":  # noqa: ARG002
        return self

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            yield torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.bare = nn.Conv2d(6, 5, 1)
        self.hidden, self.head = nn.Linear(5, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bare(torch.relu(self.norm(self.conv(x)))))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


@pytest.fixture
def net(randomised: Any) -> tuple[nn.Module, gbn.ChannelGroups]:
    torch.manual_seed(0)
    model = randomised(Net()).eval()
    return model, gbn.trace(model, torch.randn(1, 3, 8, 8))


def trainer(model: nn.Module, task: Task = CLASSIFICATION, decay_all: bool = False) -> Trainer:
    fabric = Fabric(accelerator="cpu", devices=1)
    objective = TaskObjective(task=task, distill=False)
    settings = TrainingSettings(peak_lr=0.01, objective=objective, decay_all=decay_all)
    return Trainer(fabric, Batches(), model, settings, RunConsole(verbosity=-1))  # type: ignore[arg-type]


def score(model: nn.Module, groups: gbn.ChannelGroups, lr_from: float) -> gbn.Scores:
    alive = np.ones(groups.num_atoms, dtype=np.bool_)
    phase = Phase(kind="tick", batches=2, lr_from=lr_from)
    return trainer(model).score(model, groups, alive, phase, 0)


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}


def test_a_default_tick_changes_nothing(net: tuple[nn.Module, gbn.ChannelGroups]) -> None:
    model, groups = net
    before = copy.deepcopy(model.state_dict())
    scores = score(model, groups, 0.0)
    assert scores.values.max() > 0
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_in_a_learning_tick_gates_and_the_last_linear_layer_alone_learn(
    net: tuple[nn.Module, gbn.ChannelGroups],
) -> None:
    model, groups = net
    before = copy.deepcopy(model.state_dict())
    conv_shape = before["bare.weight"]
    score(model, groups, 0.1)
    assert "conv.weight" not in changed(model, before)
    gated = {"norm.weight", "norm.bias", "bare.weight", "bare.bias", "hidden.weight", "hidden.bias"}
    assert changed(model, before) == gated | {"head.weight", "head.bias"}
    # a gate scales a channel of a convolution as a whole: one factor each, bias included
    factors = (model.get_parameter("bare.weight") / conv_shape).flatten(1)
    assert torch.allclose(factors, factors[:, :1].expand_as(factors), rtol=1e-5)
    assert torch.allclose(model.get_parameter("bare.bias") / before["bare.bias"], factors[:, 0])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_scores_of_a_learning_tick_begin_as_those_of_a_default_one(
    net: tuple[nn.Module, gbn.ChannelGroups],
) -> None:
    """Statistics of the batch instead of the running ones, and gates that move: near, not equal."""
    model, groups = net
    model.get_submodule("norm").momentum = 1.0
    fixed, moving = (score(copy.deepcopy(model), groups, lr).values for lr in (0.0, 1e-6))
    assert np.corrcoef(fixed, moving)[0, 1] > 0.5
    assert not np.allclose(fixed, moving, rtol=1e-9)


def test_the_penalty_moves_each_gate_by_the_rate_times_its_sign(
    net: tuple[nn.Module, gbn.ChannelGroups],
) -> None:
    model, groups = net
    before = copy.deepcopy(model.state_dict())
    still = Task(loss=lambda outputs, _: 0 * outputs.sum(), distillation=CLASSIFICATION.loss)
    phase = Phase(kind="tock", batches=1, lr_from=1.0, lr_top=1.0, lr_to=1.0, penalty=0.5)
    progress = Progress(save=lambda *_: None)
    trainer(model, still).train(model, groups, phase, 0, "tock 1", progress)
    gamma, beta = before["norm.weight"], before["norm.bias"]
    moved = gamma - 0.01 * 1.9 * 0.5 * gamma.sign()  # Nesterov's first step is 1 + 0.9 gradients
    assert torch.allclose(model.get_parameter("norm.weight"), moved, atol=1e-6)
    assert torch.allclose(model.get_parameter("norm.bias"), beta * moved / gamma, atol=1e-6)
    # a gate without norm starts at 1: its channel shrinks by that share; weights decay besides
    scale = (1 - 0.01 * 1.9 * 5e-4) * (1 - 0.01 * 1.9 * 0.5)
    found = model.get_parameter("bare.weight")
    assert torch.allclose(found, before["bare.weight"] * scale, rtol=1e-5)


def test_a_gated_phase_that_stops_between_passes_ends_as_one_that_does_not(
    net: tuple[nn.Module, gbn.ChannelGroups],
) -> None:
    model, groups = net
    phase = Phase(kind="tock", batches=5, lr_from=0.1, lr_top=1.0, lr_to=0.1, penalty=1e-3)
    saved: list[tuple[int, Any, Any]] = []
    whole = copy.deepcopy(model)

    def keep(step: int, state: dict[str, Any]) -> None:
        saved.append((step, copy.deepcopy(state), copy.deepcopy(whole.state_dict())))

    trainer(model, decay_all=True).train(whole, groups, phase, 1, "tock", Progress(save=keep))
    assert [step for step, _, _ in saved] == [2, 4]
    for step, state, weights in saved:
        resumed = copy.deepcopy(model)
        resumed.load_state_dict(weights)  # as ordinary names: no gate is left in it
        progress = Progress(step=step, optimizer=state, save=lambda *_: None)
        trainer(model, decay_all=True).train(resumed, groups, phase, 1, "tock", progress)
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_triangle_rises_to_its_top_half_way_and_falls_again() -> None:
    phase = Phase(kind="tock", batches=5, lr_from=0.1, lr_top=1.0, lr_to=0.2)
    shares = [lr_share(phase, step) for step in range(5)]
    assert shares == pytest.approx([0.1, 0.55, 1.0, 0.6, 0.2])


def test_a_network_without_linear_layers_has_no_last_one() -> None:
    assert last_linear(nn.Conv2d(1, 1, 1)) == []


def test_every_recipe_of_the_command_line_is_there() -> None:
    assert tuple(RECIPES) == NAMES
    # few passes: images as they are; the published recipe knows one way
    augment = [RECIPES["default"].augment(epochs) for epochs in (1, 5, 30)]
    assert augment == ["none", "flip", "standard"]
    assert {RECIPES["gbn-2019"].augment(epochs) for epochs in (1, 5, 30)} == {"standard"}


def test_the_published_recipe_goes_the_whole_way(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    args = arguments(job, tmp_path / "out", "--recipe", "gbn-2019", "--json", "-q")
    args[args.index("--epochs") + 1] = "4"
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    # 32 batches: 4 ticks of 1, of the 28 left a sixth for each tock
    names = [s["name"] for s in report["stages"]][1:-2]
    assert names == ["tock 1", *(f"tick {n}" for n in range(1, 5)), "tock 2", "finetune 1"]
    assert report["flops"]["kept"] <= 0.5
    assert report["accuracy"]["after"] > 0.9


def test_the_published_recipe_needs_data(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"weights")
    result = CliRunner().invoke(
        main, ["--target-flops", "0.5", "--recipe", "gbn-2019", str(tmp_path / "m.pt")]
    )
    assert (result.exit_code, "give --data" in result.stderr) == (2, True)


def test_parts_of_a_batch_of_unequal_size_train_as_the_whole_batch_where_no_norm_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    groups = gbn.trace(model.eval(), torch.randn(1, 3, 8, 8))
    phase = Phase(kind="tock", batches=2, lr_from=1.0)
    trained = []
    for accumulate in (1, 3):  # 8 images: 3 + 3 + 2
        taught = trainer(model)
        taught._settings = dataclasses.replace(taught._settings, accumulate=accumulate)
        progress = Progress(save=lambda *_: None)
        trained.append(taught.train(copy.deepcopy(model), groups, phase, 0, "tock 1", progress))
    whole, parts = (net.state_dict() for net in trained)
    assert not torch.allclose(whole["0.weight"], model.state_dict()["0.weight"], atol=1e-4)
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


def test_targets_that_cannot_be_split_are_refused_by_name() -> None:
    with pytest.raises(CompressError, match="--accumulate splits batches"):
        list(parts_of(torch.zeros(4, 3, 8, 8), {"boxes": []}, 2))


def test_a_stream_gives_the_same_images_as_they_are_or_augmented():
    images = torch.arange(16 * 64, dtype=torch.float32).view(16, 1, 8, 8)
    split = TensorSplit(images=images, labels=torch.arange(16), height_width=(8, 8), moves="shift")
    request = DataRequest(source="x", input_size=(1, 8, 8), batch_size=4)
    stored = StoredData(
        request=request, train=split, val=split, num_classes=16, class_names=None, mean=None,
        std=None, augmented=True,
    )  # fmt: skip
    stream = BatchStream(stored)
    plain, augmented = ([*stream.take(3, 3, augmented=augmented)] for augmented in (False, True))
    for (still, labels), (moved, same_labels) in zip(plain, augmented, strict=True):
        assert torch.equal(labels, same_labels)
        assert torch.equal(still, images[labels])
        assert not torch.equal(still, moved)


def test_a_network_that_cannot_be_differentiated_is_refused_in_a_line():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Conv2d(1, 4, 1), nn.Linear(4, 4)

        def forward(self, x):
            x = self.inner(x).relu()
            y = x.sigmoid()
            y += x
            x.mul_(2)
            return self.head((x * y).mean((2, 3)))

    model = InPlace()
    groups = gbn.trace(model, torch.zeros(1, 1, 8, 8))
    alive = np.ones(groups.num_atoms, dtype=np.bool_)
    with pytest.raises(UsageError, match="gradients cannot be taken: Runtime"):
        trainer(model).score(model, groups, alive, Phase(kind="tick", batches=1), 0)
