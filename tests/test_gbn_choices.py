"""Networks that choose by value are compared given the same choices."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn
from gbn.choices import FollowChoices, NoteChoices

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Detector(nn.Module):
    """Boxes (n, 4) and scores (n,) above a threshold, the best first; twins tie in every pair."""

    def __init__(self, ties=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.inner = nn.Conv2d(16, 16, 3, padding=1)
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 1, 1)
        self.ties = ties

    def forward(self, x):
        f = F.relu(self.inner(self.body(x)))
        boxes = self.boxes(f).flatten(2).squeeze(0).t()
        scores = self.scores(f).sigmoid().flatten()
        if self.ties:
            scores = scores * 0 + scores.mean()
        keep = scores > 0.3
        boxes, scores = boxes[keep], scores[keep]
        best = scores.topk(min(5, len(scores)))[1]
        return boxes[best], scores[best]


@pytest.mark.parametrize("ties", [False, True])
def test_a_detector_is_cut_and_proven(ties, prune_and_prove, group_of):
    result = prune_and_prove(Detector(ties), X)
    assert len(group_of(result.groups, "inner").atoms) == 16
    assert not result.groups.hard_coded
    assert result.proof.max_abs_diff < 1e-9


def test_a_wrong_detector_is_not_excused_by_its_choices(randomised):
    model = randomised(Detector())
    groups = gbn.trace(model, X)
    plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=0.5)
    small = gbn.prune(model, plan)
    with torch.no_grad():
        small.inner.weight[0, 0] += 0.5
    assert not gbn.prove(model, plan, small, X).ok


@pytest.mark.parametrize(
    "choose",
    [
        lambda x: x.topk(2)[0],
        lambda x: x.topk(2, 0)[0],
        lambda x: x.sort(descending=True)[0],
        lambda x: torch.sort(x, dim=0, stable=True)[0],
        lambda x: x.max(1)[0],
        lambda x: x.min(0, keepdim=True)[0],
        lambda x: x[x > 0],
        lambda x: x[:, x.argmax(1)],
    ],
    ids=["topk", "topk of rows", "sort", "stable", "max", "min", "mask", "argmax"],
)
def test_values_come_from_the_own_input_at_the_places_chosen_before(choose):
    """The second run has another order; by hand, its values at the first one's places."""
    x = torch.tensor([[1.0, -2.0, 3.0, 0.5], [-1.0, 4.0, 0.25, 2.0]])
    with NoteChoices() as notes:
        first = choose(x)
    with FollowChoices(notes.choices):
        second = choose(-x)
    torch.testing.assert_close(second, -first)
    assert notes.choices.num_overruled == 1


def test_a_run_that_goes_another_way_chooses_for_itself():
    x = torch.tensor([1.0, -2.0, 3.0])
    with NoteChoices() as notes:
        x.topk(1)
    with FollowChoices(notes.choices):
        assert (-x).argmax() == 1 and (-x).topk(1)[1] == 1
    assert notes.choices.num_overruled == 0


class ChoosesAlone(nn.Module):
    """Only numbers of positions leave it: what they are chosen from is seen nowhere else."""

    def __init__(self):
        super().__init__()
        self.inner, self.scores = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 9, 1)

    def forward(self, x):
        return self.scores(F.relu(self.inner(x))).mean((2, 3)).topk(3)[1]


def test_what_is_chosen_from_is_compared_where_only_the_choice_leaves(randomised):
    model = randomised(ChoosesAlone())
    groups = gbn.trace(model, X)
    plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=0.5)
    small = gbn.prune(model, plan)
    assert gbn.prove(model, plan, small, X).ok
    with torch.no_grad():
        small.scores.weight += 0.1 * torch.randn_like(small.scores.weight)
    assert not gbn.prove(model, plan, small, X).ok


def test_a_threshold_computed_from_a_width_is_not_taken_for_rounding(randomised, group_of):
    class Threshold(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.h = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 2, 1)

        def forward(self, x):
            f = self.b(self.a(x).relu()).relu()
            y = self.h(f).flatten(2)[0].t()
            assert int(y.sum()) > -(10**9)  # it reads a value: the trial runs with values
            return y.softmax(1) > 1 / f.shape[1] ** 0.5

    groups = gbn.trace(randomised(Threshold()), X)
    assert group_of(groups, "b").frozen and groups.hard_coded


def test_labels_that_are_counted_up_in_place_are_still_compared(prune_and_prove):
    class Labels(ChoosesAlone):
        def forward(self, x):
            scores = self.scores(F.relu(self.inner(x))).mean((2, 3))
            labels = scores.argmax(1)
            labels += 1
            return scores, labels

    prune_and_prove(Labels(), X)


def test_more_boxes_in_the_original_than_in_the_cut_network_are_no_failure(prune_and_prove):
    class Counts(ChoosesAlone):
        def forward(self, x):
            scores = self.scores(F.relu(self.inner(x))).mean((2, 3))[0]
            return scores[: max(int(scores.abs().sum() * 3) % 9, 1)]

    prune_and_prove(Counts(), X)
