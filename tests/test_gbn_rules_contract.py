"""Convolutions, linear layers and matrix products; shared weights; ops without a rule."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn
from gbn.rules import RULES

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def conv_bn(inner: int, outer: int, kernel: int = 3, **options) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outer),
        nn.ReLU(),
    )


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def test_a_convolution_ties_its_inputs_and_issues_new_outputs(prune_and_prove):
    model = chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))
    result = prune_and_prove(model, X, flops=0.3)
    assert [(g.layers, g.size, len(g.atoms)) for g in result.groups.groups] == [
        (("0",), 8, 8),
        (("2",), 6, 6),
        (("4",), 4, 0),
    ]
    assert result.groups.groups[2].reason == "is a model output"
    kept = result.plan.kept
    assert kept["0.weight"] == {0: kept["0.bias"][0]}
    assert kept["2.weight"][1] == kept["0.weight"][0]
    assert kept["4.weight"] == {1: kept["2.weight"][0]}
    assert result.small[2].in_channels == len(kept["0.weight"][0])
    assert result.small[2].out_channels == len(kept["2.bias"][0])


def test_a_depthwise_convolution_goes_with_its_input(prune_and_prove, group_of):
    model = chain(conv_bn(3, 8), conv_bn(8, 8, groups=8), nn.Conv2d(8, 4, 1))
    result = prune_and_prove(model, X)
    assert group_of(result.groups, "0.0").layers == ("0.0", "1.0")
    small = result.small[1][0]
    assert small.groups == small.in_channels == small.out_channels == small.weight.shape[0] < 8
    assert result.model[1][0].groups == 8


def test_a_fixed_depthwise_filter_follows_its_input(prune_and_prove, group_of):
    class Blur(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("filter", torch.ones(8, 1, 2, 2) / 4)

        def forward(self, x):
            return F.conv2d(x, self.filter, stride=2, groups=x.shape[1])

    result = prune_and_prove(chain(conv_bn(3, 8), Blur(), nn.Conv2d(8, 4, 1)), X)
    assert len(group_of(result.groups, "0.0").atoms) == 8
    assert result.small[1].filter.shape[0] == result.small[0][0].out_channels
    assert [site.name for site in result.groups.gates] == ["0.1"]


def test_a_depthwise_convolution_with_a_multiplier_loses_whole_runs(prune_and_prove):
    model = chain(conv_bn(3, 6), conv_bn(6, 12, groups=6), nn.Conv2d(12, 4, 1))
    kept = prune_and_prove(model, X).plan.kept
    groups = kept["0.0.weight"][0]
    assert {p // 2 for p in kept["1.0.weight"][0]} == set(groups)


def test_a_grouped_convolution_loses_whole_groups_and_member_offsets(group_of, randomised):
    model = randomised(chain(conv_bn(3, 16), conv_bn(16, 12, groups=4), nn.Conv2d(12, 4, 1)))
    groups = gbn.trace(model, X)
    # 4 groups, 4 inputs in each and 3 outputs in each
    assert len(group_of(groups, "0.0").atoms) == 4 + 4 + 3
    assert set(group_of(groups, "0.0").layers) == {"0.0", "1.0"}
    scores = gbn.magnitude_scores(model, groups).values
    widths = set()
    for seed in range(12):
        values = torch.rand(len(scores), generator=torch.Generator().manual_seed(seed)).numpy()
        plan = gbn.plan(groups, gbn.Scores(values.astype(float), "random"), flops=0.4)
        small = gbn.prune(model, plan)
        proof = gbn.prove(model, plan, small, X)
        assert proof.ok, proof
        conv = small[1][0]
        assert conv.out_channels % conv.groups == 0 and conv.in_channels % conv.groups == 0
        widths.add((conv.groups, conv.in_channels // conv.groups, conv.out_channels // conv.groups))
    assert {g for g, _, _ in widths} - {4}, "some plan removes a whole group"
    assert {i for _, i, _ in widths} - {4}, "some plan removes an input offset"
    assert {o for _, _, o in widths} - {3}, "some plan removes an output offset"


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_swaps_its_weight_dims(groups, prune_and_prove):
    model = chain(
        conv_bn(3, 8), nn.ConvTranspose2d(8, 6, 2, stride=2, groups=groups), nn.BatchNorm2d(6),
        nn.ReLU(), nn.Conv2d(6, 4, 1),
    )  # fmt: skip
    result = prune_and_prove(model, X)
    small = result.small[1]
    assert small.in_channels == result.small[0][0].out_channels == small.weight.shape[0]
    assert small.out_channels == result.small[2].num_features


def test_a_transposed_depthwise_convolution_follows(prune_and_prove):
    model = chain(
        conv_bn(3, 8), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8), nn.Conv2d(8, 4, 1)
    )
    small = prune_and_prove(model, X).small[1]
    assert small.groups == small.in_channels == small.out_channels < 8


def test_convolutions_of_one_and_three_dimensions(prune_and_prove):
    one = chain(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 1))
    prune_and_prove(one, torch.randn(2, 3, 9))
    three = chain(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 4, 1))
    prune_and_prove(three, torch.randn(2, 3, 5, 5, 5))


def test_an_input_without_a_batch_dimension(prune_and_prove):
    model = chain(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    assert prune_and_prove(model, X[0]).small[0].out_channels < 8


def test_linear_layers_of_any_rank(prune_and_prove):
    model = chain(nn.Linear(5, 16), nn.GELU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    for shape in ((4, 5), (2, 3, 5), (2, 2, 3, 5)):
        result = prune_and_prove(model, torch.randn(shape), flops=0.3)
        assert result.small[2].in_features == result.small[0].out_features < 16


def test_a_batch_norm_after_a_linear_layer_is_its_gate(prune_and_prove):
    model = chain(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    result = prune_and_prove(model, torch.randn(4, 5))
    assert [(s.name, s.is_norm) for s in result.groups.gates] == [("1", True)]


class Attention(nn.Module):
    """Two heads, on tokens that a convolution writes and no norm runs over."""

    def __init__(self, dim=8, heads=2):
        super().__init__()
        self.num_heads = heads
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.last = nn.Linear(dim, 4)

    def forward(self, x):
        x = F.relu(self.patch(x).flatten(2).transpose(1, 2))
        n, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(n, tokens, -1))
        return self.last(F.relu(x).mean(1))


def test_attention_over_tokens_leaves_its_output_width_free(prune_and_prove, group_of):
    result = prune_and_prove(Attention(), X, flops=0.8)
    assert set(group_of(result.groups, "patch").layers) >= {"patch", "proj"}


def test_the_library_attention_module_is_right_or_frozen(randomised):
    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(5, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.up = nn.Linear(8, 12)
            self.last = nn.Linear(12, 4)

        def forward(self, x):
            x = F.relu(self.embed(x))
            return self.last(F.relu(self.up(self.attention(x, x, x, need_weights=False)[0])))

    torch.manual_seed(0)
    model, x = randomised(Uses()), torch.randn(8, 3, 5)
    groups = gbn.trace(model, x)
    plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=0.8)
    proof = gbn.prove(model, plan, gbn.prune(model, plan), x)
    assert proof.ok and not proof.vacuous, proof


def test_a_module_called_twice_is_one_group(prune_and_prove, group_of):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = conv_bn(3, 8), conv_bn(8, 8)
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.last(self.body(self.body(self.stem(x))))

    result = prune_and_prove(Twice(), X)
    assert set(group_of(result.groups, "stem.0").layers) == {"stem.0", "body.0"}
    assert len(result.plan.kept["body.0.weight"]) == 2


def test_a_module_under_two_names_stays_one_module(prune_and_prove):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = conv_bn(3, 8)
            self.one = conv_bn(8, 8)
            self.two = self.one
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            return self.last(self.two(self.one(self.stem(x))))

    small = prune_and_prove(Shared(), X).small
    assert small.one is small.two


def test_tied_weights_stay_tied(prune_and_prove):
    class Tied(nn.Module):
        """The decoder reads the encoder's weight transposed, and a twin shares its weight."""

        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(5, 8)
            self.one = nn.Linear(8, 8, bias=False)
            self.two = nn.Linear(8, 8)
            self.two.weight = self.one.weight
            self.last = nn.Linear(8, 4)

        def forward(self, x):
            x = F.relu(self.embed(x))
            x = F.relu(x + self.one(x))
            return self.last(F.relu(x + self.two(x)))

    small = prune_and_prove(Tied(), torch.randn(3, 5)).small
    assert small.one.weight is small.two.weight
    assert small.one.out_features == small.two.in_features == small.embed.out_features < 8


def test_a_weight_used_transposed_is_one_tensor(prune_and_prove):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = nn.Linear(5, 8)
            self.shift = nn.Parameter(torch.zeros(5))

        def forward(self, x):
            return F.relu(self.encode(x)) @ self.encode.weight + self.shift

    small = prune_and_prove(Decoder(), torch.randn(3, 5)).small
    assert small.encode.weight.shape == (small.encode.out_features, 5)


def test_a_standardised_weight_keeps_what_its_statistics_run_over(prune_and_prove, group_of):
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias)

    model = chain(conv_bn(3, 8), Standardised(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    result = prune_and_prove(model, X, flops=0.8)
    assert group_of(result.groups, "0.0").frozen
    assert (
        "statistics are taken over channels (aten.mean.dim in 1)"
        in group_of(result.groups, "0.0").reason
    )
    assert result.small[1].out_channels < 8


@torch.library.custom_op("gbntest::scaled_relu", mutates_args=())
def scaled_relu(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0) * 2


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Module()
        self.stem = conv_bn(3, 8)
        self.mid = conv_bn(8, 6)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.last(self.mid(scaled_relu(self.stem(x))))


def test_an_op_without_a_rule_freezes_what_enters_and_is_reported(group_of):
    groups = gbn.trace(Custom(), X)
    stem = group_of(groups, "stem.0")
    assert stem.frozen
    assert stem.reason == "no rule for gbntest.scaled_relu.default in the model itself"
    assert groups.unknown_ops == {"gbntest.scaled_relu.default": ("",)}
    assert len(group_of(groups, "mid.0").atoms) == 6


def test_the_report_names_the_module_of_an_op_without_a_rule(group_of):
    class Unit(nn.Module):
        def forward(self, x):
            return scaled_relu(x)

    model = chain(conv_bn(3, 8), chain(Unit()), nn.Conv2d(8, 4, 1))
    groups = gbn.trace(model, X)
    assert groups.unknown_ops == {"gbntest.scaled_relu.default": ("1.0",)}
    assert group_of(groups, "0.0").reason.endswith("gbntest.scaled_relu.default in 1.0")


def test_a_registered_rule_makes_the_op_prunable(prune_and_prove, group_of, monkeypatch):
    monkeypatch.setattr("gbn.rules.base.RULES", RULES)
    op = torch.ops.gbntest.scaled_relu
    try:

        @gbn.register_rule(op)
        def _(call):
            call.set(call.info(call.args[0]))

        result = prune_and_prove(Custom(), X)
        assert len(group_of(result.groups, "stem.0").atoms) == 8
        assert not result.groups.unknown_ops
    finally:
        RULES.pop(op, None)


def test_a_wrong_rule_cannot_make_a_wrong_network(group_of):
    """The random cut that ends every trace compares outputs."""
    op = torch.ops.gbntest.scaled_relu
    try:

        @gbn.register_rule(op)
        def _(call):
            info = call.info(call.args[0])
            call.set(type(info)({1: info.ids[1][:, ::-1]}, info.dead))

        groups = gbn.trace(Custom(), X)
        assert group_of(groups, "stem.0").frozen or groups.hard_coded
    finally:
        RULES.pop(op, None)


def test_a_recurrent_layer_is_cut_with_the_list_of_its_weights(prune_and_prove):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(5, 8)
            self.lstm = nn.LSTM(8, 16, batch_first=True)
            self.last = nn.Linear(16, 4)

        def forward(self, x):
            return self.last(self.lstm(F.relu(self.embed(x)))[0])

    result = prune_and_prove(Recurrent(), torch.randn(2, 3, 5))
    assert result.model.lstm._flat_weights[0] is result.model.lstm.weight_ih_l0  # after the trace
    assert result.small.lstm._flat_weights[0] is result.small.lstm.weight_ih_l0
    assert result.small.embed.out_features == result.small.lstm.input_size


def test_a_recurrent_layer_whose_two_sizes_are_one_number_still_runs_when_cut(prune_and_prove):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.lstm = nn.Linear(5, 8), nn.LSTM(8, 8, batch_first=True)
            self.mid, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.last(F.relu(self.mid(self.lstm(F.relu(self.embed(x)))[0])))

    prune_and_prove(Recurrent(), torch.randn(2, 3, 5), flops=0.8)
