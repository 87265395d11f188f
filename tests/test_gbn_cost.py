"""MACs and parameters, against hand counts and torch's own counter."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import gbn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def counted_macs(model: nn.Module, inputs) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(inputs)
    return counter.get_total_flops() // 2


def everything(groups):
    return np.ones(groups.num_atoms, dtype=np.bool_)


class Mixed(nn.Module):
    """Every kind of counted op."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=2)
        self.up = nn.ConvTranspose2d(12, 10, 2, 2)
        self.qkv = nn.Linear(10, 24)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.up(F.relu(self.grouped(F.relu(self.depthwise(x))))))
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        weights = (q @ k.transpose(1, 2)).softmax(-1)
        return self.last((weights @ v).mean(1))


def test_a_convolution_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    groups = gbn.trace(model, X)
    # 2 images, 6 x 6 positions: 27 products for each of 8 outputs, then 8 for each of 4
    assert gbn.CostModel.macs(groups).total(everything(groups)) == 2 * 36 * (8 * 27 + 4 * 8)
    assert gbn.CostModel.params(groups).total(everything(groups)) == 8 * 28 + 4 * 9
    alive = everything(groups)
    alive[:3] = False
    assert gbn.CostModel.macs(groups).total(alive) == 2 * 36 * (5 * 27 + 4 * 5)
    assert gbn.CostModel.params(groups).total(alive) == 5 * 28 + 4 * 6


def test_the_saving_of_a_channel_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    groups = gbn.trace(model, X)
    saving = gbn.CostModel.macs(groups).saving(everything(groups))
    assert saving.tolist() == [2 * 36 * (27 + 4)] * 8


@pytest.mark.parametrize("batch", [1, 3])
def test_macs_are_those_of_torchs_counter_before_and_after(batch, randomised):
    model, inputs = randomised(Mixed()), torch.randn(batch, 3, 8, 8)
    groups = gbn.trace(model, inputs)
    cost = gbn.CostModel.macs(groups)
    assert cost.total(everything(groups)) == counted_macs(model, inputs)
    for flops in (0.9, 0.7, 0.5):
        plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=flops)
        small = gbn.prune(model, plan)
        assert counted_macs(small, inputs) <= flops * counted_macs(model, inputs)
        again = gbn.trace(small, inputs)
        assert gbn.CostModel.macs(again).total(everything(again)) == counted_macs(small, inputs)


def test_the_cost_of_a_cut_is_that_of_the_network_that_was_cut(randomised):
    model = randomised(Mixed())
    groups = gbn.trace(model, X)
    macs, params = gbn.CostModel.macs(groups), gbn.CostModel.params(groups)
    for seed in range(6):
        alive = np.random.default_rng(seed).random(groups.num_atoms) < 0.7
        if not (groups.counts(alive) > 0).all():
            continue
        small = gbn.prune(model, gbn.PrunePlan.of(groups, alive))
        assert macs.total(alive) == counted_macs(small, X)
        assert params.total(alive) == sum(p.numel() for p in small.parameters())


def test_shared_parameters_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(F.relu(self.one(x)))

    groups = gbn.trace(Tied(), torch.randn(3, 6))
    assert gbn.CostModel.params(groups).total(everything(groups)) == 36
    assert gbn.CostModel.macs(groups).total(everything(groups)) == 2 * 3 * 36


def test_a_module_called_twice_costs_twice():
    conv = nn.Conv2d(3, 3, 1)
    groups = gbn.trace(nn.Sequential(conv, nn.ReLU(), conv), X)
    assert gbn.CostModel.macs(groups).total(everything(groups)) == 2 * (2 * 64 * 9)


def test_time_by_hand_rounds_widths_up_to_steps():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    groups = gbn.trace(model, X)
    width = groups.tensors["0.weight"][0]
    terms = [
        gbn.TimeTerm(nanoseconds=100.0),
        gbn.TimeTerm(nanoseconds=5.0, dims=(width,), steps=(4,)),
    ]
    time = gbn.CostModel.time(groups, terms)
    assert time.total(everything(groups)) == 100 + 5 * 8
    alive = everything(groups)
    alive[:3] = False
    assert time.total(alive) == 100 + 5 * 8  # 5 channels are computed as 8
    alive[:4] = False
    assert time.total(alive) == 100 + 5 * 4


def test_a_term_needs_a_step_for_each_width():
    with pytest.raises(ValueError, match="a term of 1 widths has 0 steps"):
        gbn.TimeTerm(nanoseconds=1.0, dims=(0,))
