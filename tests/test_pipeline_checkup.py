"""Check-ups between phases measure what they say, on images spread over all classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.checkup import against_original, num_images, on_data
from pipeline.data import DataRequest, load_data
from pipeline.tasks import CLASSIFICATION, Judge, Metric, Task


class Says(nn.Module):
    """Puts class `first` first, whatever the image."""

    def __init__(self, first: int, classes: int = 4) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.eye(classes)[first])

    def forward(self, images: Tensor) -> Tensor:
        return self.scores.repeat(len(images), 1)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """100 validation images, 25 of each class, one class after another."""
    images = np.zeros((100, 1, 8, 8), np.float32)
    labels = np.repeat(np.arange(4), 25)
    path = tmp_path / "data.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return str(path)


def test_a_sample_of_ordered_classes_holds_all_of_them(source: str) -> None:
    data = load_data(DataRequest(source=source, input_size=(1, 8, 8), batch_size=32))
    labels = torch.cat([targets for _, targets in data.val_sample(20)])
    assert torch.bincount(labels).tolist() == [5, 5, 5, 5]
    assert sum(len(images) for images, _ in data.val_sample(1000)) == 100


def test_top1_is_the_share_that_is_right(source: str) -> None:
    data = load_data(DataRequest(source=source, input_size=(1, 8, 8), batch_size=32))
    checkup = on_data(data, Judge(task=CLASSIFICATION), 20)
    assert (checkup.metric, checkup.samples, checkup.in_points) == ("top1", 20, True)
    with torch.no_grad():
        assert checkup.measure(Says(2)) == 0.25


def test_a_tasks_own_metric_is_averaged_over_samples(source: str) -> None:
    data = load_data(DataRequest(source=source, input_size=(1, 8, 8), batch_size=15))
    metric = Metric(
        name="label", function=lambda _out, targets: targets.double(), higher_is_better=False
    )
    loss = CLASSIFICATION.loss
    task = Task(loss=loss, distillation=loss, metric=metric)
    judge = Judge.make(task, Says(0), data.train_loader(0))
    checkup = on_data(data, judge, 1000)
    assert (checkup.metric, checkup.higher_is_better, checkup.in_points) == ("label", False, False)
    with torch.no_grad():
        assert checkup.measure(Says(0)) == 1.5  # (0 + 1 + 2 + 3) / 4


def test_agreement_counts_equal_first_classes_and_relative_error_compares_outputs() -> None:
    images = torch.zeros(70, 1, 8, 8)
    with torch.no_grad():
        agreement = against_original(images, Says(1), classes=True)
        assert agreement.measure(Says(1)) == 1.0
        assert agreement.measure(Says(0)) == 0.0
        error = against_original(images, Says(1), classes=False)
        assert error.measure(Says(1)) == 0.0
        # e0 - e1 has the norm sqrt(2), e1 the norm 1
        assert error.measure(Says(0)) == pytest.approx(2**0.5)
    assert (agreement.samples, error.higher_is_better) == (70, False)


@pytest.mark.parametrize(("training_images", "images"), [(0, 128), (300_000, 225), (10**9, 512)])
def test_checkups_cost_a_hundredth_of_training_within_bounds(
    training_images: int, images: int
) -> None:
    assert num_images(training_images, phases=40) == images
