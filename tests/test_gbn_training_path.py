"""Branches that run in training only fit after a cut, or what enters them stays."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Aux(nn.Module):
    """A head beside the network; `read` is what it does with its features."""

    def __init__(self, read):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.last, self.head = nn.Conv2d(6, 4, 1), nn.Linear(8, 5)
        self.mid = nn.Linear(8, 8)
        self.read = read

    def forward(self, x):
        y = F.relu(self.norm(self.one(x)))
        out = self.last(F.relu(self.two(y)))
        if not self.training:
            return out
        features = F.dropout(self.read(y.mean((2, 3))), 0.5, self.training)
        return out, self.head(F.relu(self.mid(features)))


def test_a_head_that_runs_in_training_only_follows_the_cut(prune_and_prove, group_of):
    model = Aux(lambda y: y)
    result = prune_and_prove(model, X, flops=0.3)
    assert not group_of(result.groups, "one").frozen
    assert not group_of(result.groups, "mid").frozen  # its own hidden width
    assert group_of(result.groups, "head").frozen
    width = result.small.one.out_channels
    assert width < 8 and result.small.mid.in_features == width
    out, aux = result.small.train()(X)
    assert out.shape == (2, 4, 8, 8) and aux.shape == (2, 5)


def test_what_enters_a_head_that_tells_a_size_stays(prune_and_prove, group_of):
    result = prune_and_prove(Aux(lambda y: y.view(2, 8)), X, flops=0.8)
    assert group_of(result.groups, "one").frozen
    assert "training mode only" in group_of(result.groups, "one").reason
    assert result.small.train()(X)[1].shape == (2, 5)


def test_costs_are_those_of_eval_mode():
    class Eval(Aux):
        def forward(self, x):
            return self.last(F.relu(self.two(F.relu(self.norm(self.one(x))))))

    costs = [gbn.CostModel.macs(gbn.trace(kind(lambda y: y), X)) for kind in (Aux, Eval)]
    totals = [
        cost.total(np.ones(groups, dtype=np.bool_))
        for cost, groups in zip(costs, (8 + 6 + 8, 8 + 6), strict=True)
    ]
    assert totals == [2 * 64 * (3 * 8 + 8 * 6 + 6 * 4)] * 2


def test_training_that_needs_other_inputs_is_named():
    class Targets(Aux):
        def forward(self, x, targets=None):
            if self.training and targets is None:
                raise ValueError("targets are missing")
            return self.last(F.relu(self.two(F.relu(self.norm(self.one(x))))))

    groups = gbn.trace(Targets(lambda y: y), X)
    ((why, modules),) = groups.unknown_ops.items()
    assert "training mode, which does not run on these inputs (ValueError)" in why
    assert modules == ("head", "mid")


@pytest.mark.parametrize("unread", [True, False])
def test_a_parameter_that_no_mode_reads_changes_nothing(unread):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(), nn.ReLU(), nn.Conv2d(8, 4, 1))
    if unread:
        model.token = nn.Parameter(torch.zeros(1, 8))
    groups = gbn.trace(model, X)
    assert groups.num_atoms == 8 and groups.unknown_ops == {}


def test_modes_are_left_as_they_were():
    model = Aux(lambda y: y).train()
    model.norm.eval()
    gbn.trace(model, X)
    assert [m.training for m in (model, model.norm, model.mid)] == [True, False, True]
