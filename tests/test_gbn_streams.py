"""Layers that read a residual stream, and the distance of streams between two networks."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import gbn
from gbn.streams import StreamReader, stream_readers
from pipeline.stream_distance import StreamDistance

X = torch.randn(2, 3, 8, 8)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 6, 1)
        self.out = nn.Conv2d(6, 4, 1)
        self.wide = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.mixed = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.out(self.inner(self.norm(x)))
        x = x + self.wide(x)
        x = x + self.mixed(x)
        return self.head(x.mean((2, 3)))


def test_a_layer_for_each_tensor_that_is_read_twice_and_the_last_one():
    found = stream_readers(Residual(), X)
    assert found == (
        StreamReader("norm", 1, 0),
        StreamReader("wide", 1, 0),
        # `mixed` reads a stream too, but its weight does not tell the input's channels
        StreamReader("head", -1, 1),
    )


def test_layers_that_run_twice_tell_no_single_tensor():
    class Twice(Residual):
        def forward(self, x):
            return super().forward(x) + super().forward(2 * x)

    assert stream_readers(Twice(), X) == ()


def test_without_branches_the_last_layer_alone_is_left():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    assert stream_readers(model, X) == (StreamReader("2", 1, 1),)


def pruned(model):
    groups = gbn.trace(model, X)
    plan = gbn.plan(groups, gbn.Scores(np.arange(groups.num_atoms) + 1.0, "test"), flops=0.5)
    return gbn.prune(model, plan), plan


def test_the_distance_is_the_mean_of_what_the_left_channels_differ_by():
    torch.manual_seed(0)
    model = Residual().eval()
    small, plan = pruned(model)
    streams = StreamDistance(model, small, plan, stream_readers(model, X))
    seen = {}
    for name, network in (("whole", model), ("small", small)):
        for path in ("norm", "wide", "head"):
            network.get_submodule(path).register_forward_pre_hook(
                lambda _m, given, key=(name, path): seen.__setitem__(key, given[0].detach())
            )
    with streams.watching():
        model(X), small(X)
        found = streams.take()
    expected = []
    for path, parameter, dim in (("norm", 0, 1), ("wide", 0, 1), ("head", 1, 1)):
        kept = list(plan.kept[f"{path}.weight"].get(parameter, range(4)))
        whole = seen["whole", path].index_select(dim, torch.tensor(kept))
        difference = (whole - seen["small", path]).square().mean() / whole.square().mean()
        expected.append(float(difference))
    assert len(plan.kept["norm.weight"][0]) < 4
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


def test_nothing_is_told_before_both_have_run_or_twice():
    model = Residual().eval()
    small, plan = pruned(model)
    streams = StreamDistance(model, small, plan, stream_readers(model, X))
    with streams.watching():
        small(X)
        assert streams.take() is None
        small(X), model(X)
        assert streams.take() is not None
        assert streams.take() is None
    assert not any(m._forward_pre_hooks for m in [*model.modules(), *small.modules()])


def test_training_on_the_distance_brings_the_streams_nearer():
    torch.manual_seed(0)
    model = Residual().eval().requires_grad_(False)
    small, plan = pruned(copy.deepcopy(model).requires_grad_(True))
    streams = StreamDistance(model, small, plan, stream_readers(model, X))
    optimizer = torch.optim.SGD(small.parameters(), lr=0.02)
    with streams.watching():
        values = []
        for _ in range(200):
            small(X), model(X)
            distance = streams.take()
            values.append(float(distance))
            optimizer.zero_grad()
            distance.backward()
            optimizer.step()
    assert values[-1] < 0.7 * values[0]


def test_a_stream_that_is_written_into_after_it_was_read_is_passed_over():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.c, self.d = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            y = self.a(x)
            y += self.c(y)
            return self.d(y)

    assert [reader.path for reader in stream_readers(InPlace(), X)] == ["d"]
