"""Networks that share layers with functions, keep numbers, or meet ops of one device only."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Lambda(nn.Module):
    """The middle layer is called by a function that holds it."""

    def __init__(self, hold):
        super().__init__()
        self.one, self.mid, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 6, 1)
        self.last = nn.Conv2d(6, 4, 1)
        self.call = hold(self.mid)

    def forward(self, x):
        call = self.call if callable(self.call) else self.call[0]
        return self.last(F.relu(self.two(F.relu(call(F.relu(self.one(x)))))))


def by_default(conv):
    def call(x, layer=conv):
        return layer(x)

    return call


@pytest.mark.parametrize(
    "hold",
    [
        lambda conv: lambda x: conv(x),
        lambda conv: functools.partial(lambda layer, x: layer(x), conv),
        lambda conv: [lambda x: F.conv2d(x, conv.weight, conv.bias)],
        by_default,
    ],
    ids=["closure", "partial", "list", "default"],
)
def test_a_layer_that_a_function_holds_stays_whole(hold, prune_and_prove, group_of):
    result = prune_and_prove(Lambda(hold), X, flops=0.9)
    for name in ("one", "mid"):
        assert group_of(result.groups, name).frozen
        assert "held by a function (call)" in group_of(result.groups, name).reason
    assert result.small.two.out_channels < 6


def test_a_layer_of_another_module_that_a_class_closes_over_stays_whole(prune_and_prove, group_of):
    conv = nn.Conv2d(3, 8, 1)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.two, self.last = conv, nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x):
            return self.last(F.relu(self.two(F.relu(conv(x)))))

    result = prune_and_prove(Outer(), X, flops=0.9)
    assert "held by a function (forward)" in group_of(result.groups, "conv").reason


class Number(nn.Module):
    """`self.width` tells a view its size, and an op of another kind an offset."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.width = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), 8

    def forward(self, x):
        y = F.relu(self.one(x)).reshape(len(x), self.width, 8, 8)
        mask = torch.triu(torch.ones(8, 8, device=x.device), self.width - 7)
        return self.two(y) * mask


def test_a_number_that_an_op_is_told_beside_a_size_is_found(randomised, group_of):
    model = randomised(Number())
    groups = gbn.trace(model, X)
    assert group_of(groups, "one").frozen
    assert "aten.triu" in group_of(groups, "one").reason


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Linear(3, 8), nn.RMSNorm(8)
        self.two = nn.Linear(8, 5)

    def forward(self, x):
        return self.two(self.norm(self.one(x)))


@pytest.fixture
def one_op(monkeypatch):
    """What devices with an op of their own do."""

    def fused(x, shape, weight=None, eps=None):
        return torch.ops.aten._fused_rms_norm(x, shape, weight, eps)[0]

    monkeypatch.setattr(torch, "rms_norm", fused)


@pytest.mark.parametrize("fused_at", ["trace", "proof", "both", "never"])
def test_a_norm_that_some_devices_run_as_one_op_may_shrink(fused_at, randomised, request):
    model, x = randomised(Normed()), torch.randn(4, 3)
    if fused_at in ("trace", "both"):
        request.getfixturevalue("one_op")
    groups = gbn.trace(model, x, prune_norms=True)
    if fused_at == "trace":
        request.getfixturevalue("monkeypatch").undo()
    if fused_at == "proof":
        request.getfixturevalue("one_op")
    plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=0.5)
    small = gbn.prune(model, plan)
    assert small.norm.weight.shape == (4,)
    assert gbn.prove(model, plan, small, x).ok


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("eps", [None, 1e-3])
def test_the_plain_norm_is_the_library_s(dtype, eps):
    from gbn.running import _rms_norm

    x, weight = torch.randn(3, 4, 6).to(dtype), torch.rand(4, 6).to(dtype)
    mine, theirs = _rms_norm(x, (4, 6), weight, eps), F.rms_norm(x, (4, 6), weight, eps)
    assert torch.allclose(
        mine.double(), theirs.double(), rtol=2e-2 if dtype.itemsize == 2 else 1e-5
    )
