"""Norms over channels that lose some: the reference takes their statistics over what is left."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Tokens(nn.Module):
    """(N, 3, 8, 8) -> (N, 5): a stream of 12 channels, normed, with one inner width of 16."""

    def __init__(self, norm):
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, stride=4)
        self.norms = nn.ModuleList(norm() for _ in range(2))
        self.up, self.down = nn.Linear(12, 16), nn.Linear(16, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(self.norms[0](x))))
        return self.head(self.norms[1](x).mean(1))


class OfChannels(nn.Module):
    """A norm over dimension 1 of its own making."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(12))

    def forward(self, x):
        if self.kind == "rms":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        scale = x.norm(dim=1, keepdim=True)
        return x + self.weight * x * (scale / (scale.mean(-1, keepdim=True) + 1e-6))


def pruned(model, inputs, randomised, flops=0.5):
    randomised(model)
    groups = gbn.trace(model, inputs, prune_norms=True)
    plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=flops)
    small = gbn.prune(model, plan)
    return groups, plan, small, gbn.prove(model, plan, small, inputs)


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.LayerNorm(12),
        lambda: nn.LayerNorm(12, elementwise_affine=False),
        lambda: nn.RMSNorm(12),
        lambda: OfChannels("rms"),
        lambda: OfChannels("response"),
    ],
    ids=["layer", "plain", "rms", "own rms", "response"],
)
def test_a_normed_stream_stays_by_default_and_goes_when_asked(norm, randomised, group_of):
    model = randomised(Tokens(norm))
    kept = group_of(gbn.trace(model, X), "embed")
    assert kept.frozen and "statistics are taken over channels" in kept.reason

    groups, plan, small, proof = pruned(model, X, randomised)
    assert len(group_of(groups, "embed").atoms) == 12
    assert small.embed.out_channels < 12
    assert proof.ok and proof.effect > 0.01, proof
    assert not groups.hard_coded and plan.statistics


def test_the_reference_is_what_a_network_built_narrow_computes(randomised):
    """By hand: the survivors' mean and variance, their γ and β."""
    model = randomised(nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    _, plan, small, proof = pruned(model, x, randomised, flops=0.7)
    kept = plan.kept_array("0.weight", 0)
    hidden = (x @ model[0].weight.T + model[0].bias)[:, kept]
    normed = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, keepdim=True, unbiased=False)
                                                        + 1e-5).sqrt()  # fmt: skip
    normed = normed * model[1].weight[kept] + model[1].bias[kept]
    by_hand = normed @ model[2].weight[:, kept].T + model[2].bias
    torch.testing.assert_close(small(x), by_hand)
    assert proof.ok


def test_all_groups_of_a_group_norm_lose_the_same_channels(randomised, group_of):
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), nn.ReLU(), nn.Conv2d(12, 5, 3), nn.Flatten()
    )
    groups, plan, small, proof = pruned(model, X, randomised)
    assert len(group_of(groups, "0").atoms) == 4
    assert small[1].num_groups == 3 and small[1].num_channels == small[0].out_channels < 12
    kept = plan.kept_array("0.weight", 0).reshape(3, -1)
    assert (kept == kept[0] + [[0], [4], [8]]).all()
    assert proof.ok


class Standardised(nn.Conv2d):
    def __init__(self, *sizes, has_gain):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(self.out_channels)) if has_gain else None

    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, self.gain, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


@pytest.mark.parametrize("has_gain", [True, False])
def test_a_standardised_weight_may_lose_input_channels(has_gain, randomised):
    middle = Standardised(8, 6, 3, has_gain=has_gain)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), middle, nn.ReLU(), nn.Conv2d(6, 4, 3))
    _, _, small, proof = pruned(model, X, randomised, flops=0.7)
    assert small[2].in_channels < 8
    assert proof.ok and proof.effect > 0.001


def test_statistics_are_kept_through_json_and_a_second_cut(randomised, tmp_path):
    model = randomised(Tokens(lambda: nn.LayerNorm(12)))
    groups = gbn.trace(model, X, prune_norms=True)
    scores = gbn.magnitude_scores(model, groups)
    alive = gbn.choose(groups, scores, flops=0.8)
    first = gbn.PrunePlan.of(groups, alive)
    second = gbn.PrunePlan.of(groups, gbn.choose(groups, scores, flops=0.5, alive=alive))
    second.save(tmp_path / "plan.json")
    assert gbn.PrunePlan.load(tmp_path / "plan.json") == second

    small = gbn.prune(model, first)
    step = second.after(first)
    smaller = gbn.prune(small, step)
    assert gbn.prove(small, step, smaller, X).ok
    torch.testing.assert_close(smaller(X), gbn.prune(model, second)(X))


def test_another_network_than_the_plan_was_made_for_is_refused(randomised):
    model = randomised(Tokens(lambda: nn.LayerNorm(12)))
    _, plan, small, _ = pruned(model, X, randomised)
    model.norms[1].forward = lambda x: x
    with pytest.raises(gbn.GbnError, match="native_layer_norm"):
        gbn.prove(model, plan, small, X)


def test_a_normed_width_of_one_is_right(randomised):
    model = randomised(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    groups = gbn.trace(model, x, prune_norms=True)
    alive = np.array([True, False, False, False])
    plan = gbn.PrunePlan.of(groups, alive)
    proof = gbn.prove(model, plan, gbn.prune(model, plan), x)
    assert proof.ok, proof


def test_channels_that_only_a_mean_reads_are_gated_where_they_are_made(randomised):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.h = nn.Conv2d(3, 16, 3), nn.Conv2d(1, 2, 1)

        def forward(self, x):
            return self.h(self.a(x).relu().mean(1, keepdim=True))

    groups = gbn.trace(randomised(Attention()), X, prune_norms=True)
    assert [site.key for site in groups.gates] == ["a.weight"]
