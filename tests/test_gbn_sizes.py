"""Sizes that a module keeps for more than one width, or as a number made of a width."""

import pytest
import torch
from torch import nn

import gbn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
NUM_HEADS, HEAD_DIM = 4, 6
WIDTH = NUM_HEADS * HEAD_DIM


class Attention(nn.Module):
    """Queries, keys and values each by a layer of its own, cut into heads by two attributes."""

    def __init__(self, scale_in_forward: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.num_heads, self.head_dim, self.all_heads = NUM_HEADS, HEAD_DIM, WIDTH
        self.scale = None if scale_in_forward else HEAD_DIM**-0.5

    def heads(self, x):
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        scale = self.head_dim**-0.5 if self.scale is None else self.scale
        mixed = ((q * scale) @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], self.all_heads))


class Tokens(nn.Module):
    def __init__(self, scale_in_forward: bool) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 2, 2)
        self.attend = Attention(scale_in_forward)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head((x + self.attend(x)).mean(1))


def test_queries_and_values_that_one_attribute_tells_the_size_of_shrink_alike(
    prune_and_prove, group_of
):
    model = Tokens(scale_in_forward=False)
    groups = gbn.trace(model, X)
    assert groups.hard_coded == ()
    bound = {s.attribute for s in groups.sizes if s.module == "attend"}
    assert bound == {"num_heads", "head_dim", "all_heads"}
    # heads, and positions inside a head that queries, keys and values share
    own = group_of(groups, "attend.query")
    assert own is group_of(groups, "attend.value")
    assert len(own.atoms) == NUM_HEADS + HEAD_DIM
    small = prune_and_prove(model, X, flops=0.5).small
    heads, dims = small.attend.num_heads, small.attend.head_dim
    assert small.attend.all_heads == heads * dims
    for layer in (small.attend.query, small.attend.key, small.attend.value):
        assert layer.out_features == heads * dims


def test_a_scale_made_of_a_width_in_the_forward_keeps_that_width_and_frees_the_heads(
    prune_and_prove, group_of
):
    model = Tokens(scale_in_forward=True)
    groups = gbn.trace(model, X)
    own = group_of(groups, "attend.query")
    assert len(own.atoms) == NUM_HEADS  # 1 / sqrt(head_dim) would change with the dims
    assert any("aten.mul" in reason for reason in groups.hard_coded)
    small = prune_and_prove(model, X, flops=0.6).small
    assert small.attend.head_dim == HEAD_DIM
    assert small.attend.num_heads < NUM_HEADS


class Halves(nn.Module):
    """Both halves of a width are told by one attribute, as in the blocks of many detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.half = nn.Conv2d(3, 16, 3), 8
        self.mix = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(24, 5, 1)

    def forward(self, x):
        parts = [*self.stem(x).split((self.half, self.half), 1)]
        parts.append(self.mix(parts[-1]).relu())
        return self.last(torch.cat(parts, 1)).mean((2, 3))


def test_halves_that_one_attribute_tells_shrink_alike(prune_and_prove, group_of):
    model = Halves()
    groups = gbn.trace(model, X)
    assert groups.hard_coded == ()
    assert len(group_of(groups, "stem").atoms) == 8  # one atom takes its place in both halves
    small = prune_and_prove(model, X, flops=0.5).small
    assert small.stem.out_channels == 2 * small.half < 16


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.LazyConv2d(4, 1)), "lazy modules"),
        (nn.Sequential(nn.Conv2d(3, 4, 1, device="meta")), "no weights"),
    ],
)
def test_models_without_weights_are_refused(model, words):
    with pytest.raises(gbn.TraceError, match=words):
        gbn.trace(model, X)


def test_scores_are_checked_where_they_are_made():
    with pytest.raises(ValueError, match="negative"):
        gbn.Scores([1.0, -1.0], "own")
    with pytest.raises(ValueError, match="one number an atom"):
        gbn.Scores([[1.0]], "own")
    assert gbn.Scores([1, 2], "own").values.tolist() == [1.0, 2.0]


def test_a_slice_that_takes_nothing_beside_a_scale_made_of_a_width_is_no_obstacle(prune_and_prove):
    """Rotary positions leave the first dims of each head alone: here none of them."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qk, self.v, self.out = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            q, k = self.qk(x).reshape(len(x), 4, 2, 2, 4).permute(2, 0, 3, 1, 4)
            q = torch.cat([q[..., :0], q[..., 0:]], dim=-1)
            scores = (q @ k.mT) * 4**-0.5
            v = self.v(x).reshape(len(x), 4, 2, 4).transpose(1, 2)
            return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Attention(), nn.Linear(8, 5))
    prune_and_prove(model, torch.randn(2, 4, 6))
