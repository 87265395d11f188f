"""Networks as people use them, and random ones: half of the MACs go and the proof holds."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import gbn

X32 = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
X8 = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class DenseLayer(nn.Module):
    def __init__(self, inner, growth):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inner), nn.Conv2d(inner, growth, 3, padding=1)

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def dense_net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2, 1)]
    layers += [DenseLayer(16 + 8 * i, 8) for i in range(4)]
    layers += [nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 24, 1), nn.AvgPool2d(2)]
    layers += [DenseLayer(24 + 8 * i, 8) for i in range(4)]
    layers += [nn.BatchNorm2d(56), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(56, 10))


@pytest.mark.parametrize(
    "build",
    [torchvision.models.mobilenet_v3_small, torchvision.models.shufflenet_v2_x0_5,
     torchvision.models.resnet18, dense_net],
)  # fmt: skip
def test_half_of_the_macs_go_and_the_proof_holds(build, prune_and_prove):
    torch.manual_seed(0)
    result = prune_and_prove(build(), X32)
    assert result.proof.dtype == "float64" and result.proof.max_abs_diff < 1e-9
    assert not result.groups.unknown_ops
    assert [g.name for g in result.groups.groups if g.frozen] == [result.groups.groups[-1].name]


def test_dense_connections_leave_each_width_its_own(prune_and_prove):
    groups = prune_and_prove(dense_net(), X32).groups
    free = [g for g in groups.groups if not g.frozen]
    assert len(free) == 10  # the stem, eight layers, the transition
    assert all(len(g.layers) == 1 for g in free)


class Piece(nn.Module):
    """One random piece, from `width` channels to `self.out` channels."""

    def __init__(self, kind, width, size):
        super().__init__()
        self.kind, self.out = kind, width
        if kind == "conv":
            self.out = size
            self.conv, self.norm = nn.Conv2d(width, size, 3, padding=1), nn.BatchNorm2d(size)
        elif kind == "plain":
            self.out = size
            self.conv = nn.Conv2d(width, size, 1)
        elif kind == "add":
            self.inner, self.norm = nn.Conv2d(width, size, 1), nn.BatchNorm2d(size)
            self.outer = nn.Conv2d(size, width, 3, padding=1, bias=False)
        elif kind == "cat":
            self.out = width + size
            self.conv, self.norm = nn.Conv2d(width, size, 1), nn.BatchNorm2d(size)
        elif kind == "preact":
            self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)
        elif kind == "grouped":
            self.conv = nn.Conv2d(width, width, 3, padding=1, groups=2)
            self.norm = nn.BatchNorm2d(width)
        elif kind == "depthwise":
            self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        elif kind == "squeeze":
            self.down, self.up = nn.Conv2d(width, size, 1), nn.Conv2d(size, width, 1)
        elif kind == "split":
            self.conv = nn.Conv2d(width // 2, width // 2, 1)

    def forward(self, x):
        if self.kind == "add":
            return F.relu(x + self.outer(F.silu(self.norm(self.inner(x)))))
        if self.kind == "cat":
            return torch.cat([x, F.relu(self.norm(self.conv(x)))], 1)
        if self.kind == "preact":
            return x + self.conv(F.relu(self.norm(x)))
        if self.kind == "squeeze":
            return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        if self.kind == "split":
            a, b = x.chunk(2, 1)
            return torch.cat([F.relu(self.conv(a)), b], 1)
        if self.kind == "shuffle":
            n, c, h, w = x.shape
            return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)
        x = self.conv(x)
        return F.relu(self.norm(x) if hasattr(self, "norm") else x)


KINDS = (
    "conv", "plain", "add", "cat", "preact", "grouped", "depthwise", "squeeze", "split", "shuffle",
)  # fmt: skip


def build(pieces):
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    width = 8
    for kind, size in pieces:
        layers.append(Piece(kind, width, size))
        width = layers[-1].out
    return nn.Sequential(*layers, nn.Conv2d(width, 4, 1))


@settings(max_examples=25, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    pieces=st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from([4, 6, 8])), min_size=1, max_size=5
    ),
    seed=st.integers(0, 1000),
    share=st.floats(0.3, 0.9),
)
def test_random_networks_and_random_plans_satisfy_the_proof(pieces, seed, share, randomised):
    torch.manual_seed(seed)
    model = randomised(build(pieces), seed)
    groups = gbn.trace(model, X8)
    assert groups.num_atoms > 0, [g.reason for g in groups.groups]
    scores = gbn.Scores(np.random.default_rng(seed).random(groups.num_atoms), "random")
    least = gbn.smallest(groups, gbn.CostModel.macs(groups), gbn.PlanSettings())
    whole = gbn.CostModel.macs(groups).total(np.ones(groups.num_atoms, dtype=np.bool_))
    plan = gbn.plan(groups, scores, flops=max(int(share * whole), least))
    small = gbn.prune(model, plan)
    proof = gbn.prove(model, plan, small, X8)
    assert proof.ok, (proof, groups.hard_coded)
    again = gbn.trace(small, X8)
    after = gbn.CostModel.macs(again).total(np.ones(again.num_atoms, dtype=np.bool_))
    assert after <= max(int(share * whole), least)
