"""Losses against numpy, and that a whole network still tells which channels matter."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gbn
from pipeline.objectives import (
    OriginalClasses,
    OriginalOutputs,
    are_probabilities,
    float_tensors,
    relative_distance,
    softened_distance,
)
from pipeline.tasks import TaskObjective

NO_LABELS = torch.zeros(2, dtype=torch.int64)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values)
    return powers / powers.sum(1, keepdims=True)


def never() -> Tensor:
    raise RuntimeError("the original was asked")


def test_softened_distance_is_the_scaled_divergence_from_the_original() -> None:
    rng = np.random.default_rng(0)
    found, taught = rng.normal(size=(2, 5, 3))
    p, q = softmax(taught / 2), softmax(found / 2)
    expected = 4 * (p * np.log(p / q)).sum(1).mean()
    ours = softened_distance(torch.tensor(found), torch.tensor(taught), 2.0)
    assert ours.item() == pytest.approx(expected, rel=1e-5)


def test_labels_score_and_are_mixed_with_the_original_by_the_share_to_teach() -> None:
    outputs, taught = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    label = torch.tensor([0])
    hard = math.log(1 + math.exp(-2))
    soft = softened_distance(outputs, taught, 3.0).item()
    objective = TaskObjective(share=0.75)
    mixed = objective.learn(outputs, label, lambda: taught).item()
    assert mixed == pytest.approx(0.75 * soft + 0.25 * hard, rel=1e-5)
    assert objective.score(outputs, label, never).item() == pytest.approx(hard)


def test_without_distillation_the_original_is_not_asked() -> None:
    loss = TaskObjective(distill=False).learn(torch.zeros(1, 2), torch.tensor([0]), never)
    assert loss.item() == pytest.approx(math.log(2))


def test_relative_distance_is_a_mean_over_outputs_of_any_scale() -> None:
    taught = [torch.tensor([3.0, 4.0]), torch.tensor([[300.0, 400.0]])]
    outputs = [torch.tensor([3.0, 5.0]), torch.tensor([[300.0, 400.0]])]
    # 1 of 25, and nothing
    assert relative_distance(outputs, taught).item() == pytest.approx(0.5 / 25)


def test_tensors_are_found_in_any_structure_and_whole_numbers_are_left_out() -> None:
    outputs = {"boxes": [torch.zeros(2, 4)], "labels": torch.zeros(2, dtype=torch.int64)}
    assert [t.shape for t in float_tensors((outputs, torch.ones(1)))] == [(2, 4), (1,)]


@pytest.mark.parametrize("objective", [OriginalClasses(), OriginalOutputs()])
def test_learning_has_no_gradient_at_the_original_but_scores_do(
    objective: OriginalClasses | OriginalOutputs,
) -> None:
    torch.manual_seed(0)
    outputs = torch.randn(8, 3).requires_grad_(True)
    same = outputs.detach().clone()
    (gradient,) = torch.autograd.grad(objective.learn(outputs, NO_LABELS, lambda: same), outputs)
    assert gradient.abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(objective.score(outputs, NO_LABELS, lambda: same), outputs)
    assert gradient.abs().max() > 1e-2


def test_drawn_labels_follow_the_odds_of_the_original() -> None:
    torch.manual_seed(0)
    odds = torch.tensor([0.7, 0.2, 0.1]).expand(4000, 3)
    outputs = torch.zeros(4000, 3, requires_grad=True)
    loss = OriginalClasses(temperature=1.0).score(outputs, NO_LABELS, lambda: odds.log())
    # the gradient of cross-entropy is (1/3 - drawn) / N in each column
    (gradient,) = torch.autograd.grad(loss, outputs)
    drawn = (1 / 3 - gradient.sum(0)).numpy()
    np.testing.assert_allclose(drawn, [0.7, 0.2, 0.1], atol=0.03)


@pytest.mark.parametrize("objective", [OriginalClasses(), OriginalOutputs()])
def test_channels_that_the_output_does_not_use_score_lowest(
    objective: OriginalClasses | OriginalOutputs,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)
    ).eval()
    with torch.no_grad():
        model[4].weight.view(3, 6, 36)[:, 2:4] *= 1e-3
    images = torch.randn(16, 1, 8, 8)
    groups = gbn.trace(model, images[:1])
    with gbn.Gates(model, groups) as gates:
        for _ in range(8):
            outputs = model(images)
            objective.score(outputs, NO_LABELS, outputs.detach).backward()
            gates.accumulate()
        scores = gates.site_scores()[groups.gates[0].key]
    assert set(np.argsort(scores)[:2]) == {2, 3}


def test_a_softmax_at_the_end_is_taken_back() -> None:
    torch.manual_seed(0)
    found, taught = torch.randn(8, 5), torch.randn(8, 5)
    assert are_probabilities(taught.softmax(1))
    assert not are_probabilities(taught)
    assert not are_probabilities(taught.sigmoid())
    ended, plain = OriginalClasses(probabilities=True), OriginalClasses()
    expected = plain.learn(found, NO_LABELS, lambda: taught).item()
    ours = ended.learn(found.softmax(1), NO_LABELS, lambda: taught.softmax(1)).item()
    assert ours == pytest.approx(expected, rel=1e-4)
