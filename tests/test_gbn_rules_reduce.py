"""Norms, pools and reductions: over channels they freeze, elsewhere channels pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Around(nn.Module):
    """A convolution with a norm, an op, and a convolution that reads `width` channels."""

    def __init__(self, op, width=8):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.op = op
        self.last = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        return self.last(self.op(F.relu(self.norm(self.stem(x)))))


@pytest.mark.parametrize(
    "op",
    [nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2),
     nn.Upsample(scale_factor=2, mode="bilinear"), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1),
     nn.Dropout(0.5), nn.LPPool2d(2, 2),
     lambda x: x.mean((2, 3), keepdim=True), lambda x: x.amax((2, 3), keepdim=True),
     lambda x: x.mean(0, keepdim=True), lambda x: x.softmax(-1) * x,
     lambda x: x.sum(dim=(2, 3))[..., None, None], lambda x: x.max(2)[0].unsqueeze(2)],
    ids=lambda value: "" if "lambda" in str(value) else str(value)[:40],
)  # fmt: skip
def test_over_space_channels_pass(op, prune_and_prove, group_of):
    result = prune_and_prove(Around(op), X)
    assert len(group_of(result.groups, "stem").atoms) == 8


@pytest.mark.parametrize(
    ("op", "width", "text"),
    [
        (lambda x: x.softmax(1), 8, "normalised or ordered over channels (aten._softmax.default"),
        (lambda x: x.sort(1)[0], 8, "normalised or ordered over channels (aten.sort.default"),
        (lambda x: x.cumsum(1), 8, "normalised or ordered over channels (aten.cumsum.default"),
        (lambda x: x.mean(1, keepdim=True), 1, "statistics are taken over channels (aten.mean.dim"),
        (
            lambda x: x.amax(1, keepdim=True),
            1,
            "statistics are taken over channels (aten.amax.default",
        ),
        (
            lambda x: x.std(1, keepdim=True),
            1,
            "statistics are taken over channels (aten.std.correction",
        ),
        (
            lambda x: x / x.norm(),
            8,
            "statistics are taken over channels (aten.linalg_vector_norm.default",
        ),
    ],
    ids=lambda value: "" if callable(value) else str(value)[:30],
)
def test_over_channels_they_stay(op, width, text, group_of):
    stem = group_of(gbn.trace(Around(op, width), X), "stem")
    assert stem.frozen
    assert text in stem.reason
    assert "in the model itself" in stem.reason


def test_a_sum_over_channels_leaves_them_free(prune_and_prove, group_of):
    result = prune_and_prove(Around(lambda x: x.sum(1, keepdim=True), 1), X)
    assert len(group_of(result.groups, "stem").atoms) == 8


def test_a_sum_over_channels_that_are_not_zero_freezes(group_of):
    stem = group_of(gbn.trace(Around(lambda x: x.exp().sum(1, keepdim=True), 1), X), "stem")
    assert "a removed channel would not add zero (aten.sum.dim_IntList" in stem.reason


class Normed(nn.Module):
    def __init__(self, norm, last_dim=False):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), norm
        self.mid, self.last = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)
        self.last_dim = last_dim

    def forward(self, x):
        x = self.stem(x)
        if self.last_dim:
            x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            x = self.norm(x)
        return self.last(F.relu(self.mid(x)))


@pytest.mark.parametrize(
    ("norm", "last_dim"),
    [(nn.LayerNorm(8), True), (nn.RMSNorm(8), True), (nn.GroupNorm(4, 8), False),
     (nn.GroupNorm(1, 8), False)],
    ids=lambda value: "" if "lambda" in str(value) else str(value)[:40],
)  # fmt: skip
def test_norms_with_statistics_over_channels_freeze_them(norm, last_dim, prune_and_prove, group_of):
    result = prune_and_prove(Normed(norm, last_dim), X, flops=0.9)
    stem = group_of(result.groups, "stem")
    assert stem.frozen
    assert " in norm)" in stem.reason
    assert len(group_of(result.groups, "mid").atoms) == 6


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(8),
        nn.GroupNorm(8, 8),
        nn.InstanceNorm2d(8),
        nn.InstanceNorm2d(8, affine=True),
    ],
    ids=lambda value: "" if "lambda" in str(value) else str(value)[:40],
)
def test_norms_of_each_channel_alone_follow_it(norm, prune_and_prove, group_of):
    result = prune_and_prove(Normed(norm), X)
    assert len(group_of(result.groups, "stem").atoms) == 8


def test_what_a_norm_without_scale_and_shift_gives_is_gated_where_it_is_read(prune_and_prove):
    """It maps a zero channel to -mean / std: only its reader's weight can make that zero."""
    result = prune_and_prove(Normed(nn.BatchNorm2d(8, affine=False)), X)
    assert ("mid.weight", 1) in {pair for site in result.groups.gates for pair in site.tensors}


def test_a_preactivation_network_reads_its_stream_through_norms(prune_and_prove, group_of):
    class Preactivation(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (8, 6, 8, 6, 8))
            self.inner = nn.ModuleList(nn.Conv2d(8, 6, 3, padding=1) for _ in range(2))
            self.outer = nn.ModuleList(nn.Conv2d(6, 8, 3, padding=1) for _ in range(2))
            self.last = nn.Linear(8, 4)

        def forward(self, x):
            x = self.stem(x)
            for i in range(2):
                y = self.inner[i](F.relu(self.norms[2 * i](x)))
                x = x + self.outer[i](F.relu(self.norms[2 * i + 1](y)))
            return self.last(F.relu(self.norms[4](x)).mean((2, 3)))

    result = prune_and_prove(Preactivation(), X)
    stream = group_of(result.groups, "stem")
    assert set(stream.layers) == {"stem", "outer.0", "outer.1"}
    assert len(stream.atoms) == 8
    gates = {site.name: site.is_norm for site in result.groups.gates}
    assert gates == {f"norms.{i}": True for i in range(5)}


def test_one_stream_read_with_and_without_a_norm_is_gated_at_its_writers(prune_and_prove):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.a, self.b = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.a(F.relu(self.norm(x))) + self.b(F.relu(x))

    result = prune_and_prove(Mixed(), X)
    assert {(s.name, s.is_norm) for s in result.groups.gates} == {("norm", True), ("stem", False)}


@pytest.mark.parametrize(
    ("op", "gate"),
    [
        (lambda f: f.cumsum(2), "c.weight"),
        (lambda f: f.sort(2)[0], "c.weight"),
        (lambda f: f.flatten(2).topk(3)[0].unsqueeze(-1), "c.weight"),
        (lambda f: torch.logsumexp(f, (2, 3), keepdim=True), "h.weight[1]"),
    ],
    ids=["cumsum", "sort", "topk", "logsumexp"],
)
def test_what_zeros_become_along_other_dimensions_is_known(op, gate):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.h = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

        def forward(self, x):
            return self.h(op(self.c(x)))

    x = torch.randn(2, 3, 8, 8)
    groups = gbn.trace(Net(), x)
    assert groups.num_atoms == 8 and not groups.hard_coded
    assert [site.key for site in groups.gates] == [gate]
