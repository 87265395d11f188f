"""How many images are scored at a time is the objective's choice."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

import gbn
from gbn.ticktock import Phase
from pipeline.batches import in_small_batches
from pipeline.console import RunConsole
from pipeline.mixed_data import made_images
from pipeline.objectives import OriginalClasses
from pipeline.training import Trainer
from pipeline.training_settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class Recorded(OriginalClasses):
    """Notes how many images each score is of."""

    score_batch: int | None = None
    sizes: list[int] = field(default_factory=list)

    def score(self, outputs: Any, labels: Tensor, original: Any) -> Tensor:
        assert len(outputs) == len(labels) == len(original())
        self.sizes.append(len(outputs))
        return super().score(outputs, labels, original)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)
    ).eval()


@pytest.mark.parametrize(
    ("score_batch", "sizes"), [(None, [8, 8]), (3, [3, 3, 2, 3, 3, 2]), (16, [8, 8])]
)
def test_batches_are_cut_as_the_objective_asks(score_batch: int | None, sizes: list[int]) -> None:
    model = network()
    images = torch.randn(16, 1, 8, 8)
    groups = gbn.trace(model, images[:1])
    objective = Recorded(score_batch=score_batch)
    settings = TrainingSettings(peak_lr=0.1, objective=objective)
    data = made_images(images, images, batch_size=8, seed=0)
    trainer = Trainer(
        Fabric(accelerator="cpu", devices=1), data, model, settings, RunConsole(verbosity=-1)
    )
    tick = Phase(kind="tick", batches=2)
    everything = np.ones(groups.num_atoms, dtype=np.bool_)
    first, again = (trainer.score(model, groups, everything, tick, 0).values for _ in range(2))
    assert objective.sizes == sizes * 2
    assert first.any()
    np.testing.assert_array_equal(first, again)  # draws repeat themselves


def test_targets_of_any_structure_are_cut_with_their_images() -> None:
    images = torch.arange(5.0)[:, None]
    targets = {"box": images * 2, "class": (torch.arange(5),)}
    cut = list(in_small_batches(images, targets, 2))
    assert [len(part) for part, _ in cut] == [2, 2, 1]
    for part, target in cut:
        assert torch.equal(target["box"], part * 2)
        assert torch.equal(target["class"][0], part[:, 0].long())


def test_targets_that_do_not_go_by_images_leave_the_batch_whole() -> None:
    images = torch.zeros(5, 1)
    for targets in ([torch.zeros(3)], torch.tensor(1.0), (torch.zeros(5), "name")):
        ((part, target),) = in_small_batches(images, targets, 2)
        assert part is images
        assert target is targets
