"""Elementwise ops: what meets position by position is one channel."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def conv_bn(inner: int, outer: int, kernel: int = 3, **options) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel, padding=kernel // 2, bias=False, **options),
        nn.BatchNorm2d(outer),
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.inner = conv_bn(8, 12)
        self.outer = conv_bn(12, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        return self.head(x.mean((2, 3)))


class OptionA(nn.Module):
    """The shortcut is subsampled and padded with literal numbers of channels."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.inner = conv_bn(8, 10, stride=2)
        self.outer = conv_bn(10, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(shortcut + self.outer(F.relu(self.inner(x))))
        return self.head(x.mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.reduce = nn.Conv2d(8, 4, 1)
        self.expand = nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        gate = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return self.last(x * torch.sigmoid(gate))


class Activated(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.activation = activation
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.last(self.activation(self.stem(x)))


def test_residual_branches_share_one_group(prune_and_prove, group_of):
    result = prune_and_prove(Residual(), X)
    shared = group_of(result.groups, "stem.0")
    assert set(shared.layers) == {"stem.0", "outer.0"}
    assert (shared.size, len(shared.atoms), shared.num_fixed) == (8, 8, 0)
    assert group_of(result.groups, "inner.0").layers == ("inner.0",)
    assert group_of(result.groups, "head").frozen


def test_literal_pads_of_a_shortcut_stay_and_the_rest_is_free(prune_and_prove, group_of):
    result = prune_and_prove(OptionA(), X)
    wide = group_of(result.groups, "outer.0")
    assert wide.size == 16
    assert wide.num_fixed == 8  # four pads on either side of the eight channels of the stem
    assert "test_gbn_rules_elementwise.py:" in wide.reason
    assert "aten.constant_pad_nd" in wide.reason
    assert any("test_gbn_rules_elementwise.py:" in place for place in result.groups.hard_coded)
    assert len(group_of(result.groups, "stem.0").atoms) == 8
    assert len(group_of(result.groups, "inner.0").atoms) == 10


def test_squeeze_and_excite_follows_the_channels_it_scales(prune_and_prove, group_of):
    result = prune_and_prove(SqueezeExcite(), X)
    assert set(group_of(result.groups, "stem.0").layers) == {"stem.0", "expand"}
    assert group_of(result.groups, "reduce").layers == ("reduce",)
    assert len(group_of(result.groups, "reduce").atoms) == 4


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.Mish(), nn.LeakyReLU(0.1),
     nn.ELU(), nn.Tanh(), nn.PReLU(), nn.PReLU(8), nn.Softsign(), nn.Hardtanh(), nn.SiLU(True)],
    ids=lambda value: "" if "lambda" in str(value) else str(value)[:40],
)  # fmt: skip
def test_activations_that_keep_zero_leave_channels_free(activation, prune_and_prove, group_of):
    result = prune_and_prove(Activated(activation), X)
    assert len(group_of(result.groups, "stem.0").atoms) == 8
    assert [site.name for site in result.groups.gates] == ["stem.1"]


class Exponential(nn.Conv2d):
    """No gate on its parameter makes its weight zero: what it reads must arrive as zero."""

    def forward(self, x):
        return F.conv2d(x, self.weight.exp(), self.bias)


def with_ungateable_reader(model):
    model.last = Exponential(8, 5, 1)
    return model


@pytest.mark.parametrize(
    ("activation", "value"),
    [(nn.Sigmoid(), "0.5"), (nn.Softplus(), "0.693147"), (nn.Hardsigmoid(), "0.5")],
    ids=lambda value: "" if "lambda" in str(value) else str(value)[:40],
)
def test_what_activations_make_of_zero_is_gated_by_its_reader_or_stays(
    activation, value, prune_and_prove, group_of
):
    result = prune_and_prove(Activated(activation), X)
    assert len(group_of(result.groups, "stem.0").atoms) == 8
    assert "last.weight[1]" in {site.key for site in result.groups.gates}

    stem = group_of(gbn.trace(with_ungateable_reader(Activated(activation)), X), "stem.0")
    assert stem.frozen
    assert f"would arrive as {value}, not zero" in stem.reason
    assert "aten.convolution.default in last" in stem.reason


def test_adding_a_number_is_gated_by_its_reader_or_stays(prune_and_prove, group_of):
    class Shifted(Activated):
        def forward(self, x):
            return self.last(self.stem(x) + 1.5)

    result = prune_and_prove(Shifted(None), X)
    assert "last.weight[1]" in {site.key for site in result.groups.gates}
    stem = group_of(gbn.trace(with_ungateable_reader(Shifted(None)), X), "stem.0")
    assert "would arrive as 1.5" in stem.reason


def test_scaling_by_a_number_leaves_channels_free(prune_and_prove, group_of):
    class Scaled(Activated):
        def forward(self, x):
            return self.last(self.stem(x) * 1.5 / 3.0)

    assert len(group_of(prune_and_prove(Scaled(None), X).groups, "stem.0").atoms) == 8


def test_a_learned_scale_goes_with_its_channels(prune_and_prove):
    class LayerScale(Activated):
        def __init__(self):
            super().__init__(None)
            self.scale = nn.Parameter(torch.zeros(8, 1, 1))

        def forward(self, x):
            return self.last(self.stem(x) * self.scale)

    result = prune_and_prove(LayerScale(), X)
    assert result.small.scale.shape == result.small.stem[1].weight[:, None, None].shape


def test_a_learned_shift_is_gated_with_its_channels(prune_and_prove):
    class Shifted(Activated):
        def __init__(self):
            super().__init__(None)
            self.shift = nn.Parameter(torch.zeros(8, 1, 1))

        def forward(self, x):
            return self.last(F.relu(self.stem(x) + self.shift))

    result = prune_and_prove(Shifted(), X)
    assert ("shift", 0) in {pair for site in result.groups.gates for pair in site.tensors}


def test_channels_added_to_the_model_input_stay(group_of):
    class AddsInput(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv_bn(3, 3)
            self.last = nn.Conv2d(3, 5, 1)

        def forward(self, x):
            return self.last(x + self.conv(x))

    conv = group_of(gbn.trace(AddsInput(), X), "conv.0")
    assert conv.frozen
    assert conv.reason == "meets a tensor of fixed size at aten.add.Tensor in the model itself"


def test_a_division_by_zero_channels_freezes_but_for_a_gated_reader(prune_and_prove, group_of):
    class Ratio(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv_bn(3, 8), conv_bn(3, 8)
            self.last = nn.Conv2d(8, 5, 1)

        def forward(self, x):
            return self.last((self.a(x) + 1) / (self.b(x).abs() + 1))

    assert prune_and_prove(Ratio(), X).groups.num_atoms == 8
    a = group_of(gbn.trace(with_ungateable_reader(Ratio()), X), "a.0")
    assert a.frozen
    assert "unknown value" in a.reason


def test_in_place_ops_are_followed(prune_and_prove, group_of):
    class InPlace(Residual):
        def forward(self, x):
            x = F.relu_(self.stem(x))
            y = self.outer(F.relu_(self.inner(x)))
            y += x
            return self.head(F.relu_(y).mean((2, 3)))

    assert set(group_of(prune_and_prove(InPlace(), X).groups, "stem.0").layers) == {
        "stem.0", "outer.0",
    }  # fmt: skip


def test_writing_into_a_slice_never_prunes_wrong(prune_and_prove):
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
            self.mid = conv_bn(16, 8)
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            out = torch.zeros(len(x), 16, 8, 8, dtype=x.dtype)
            out[:, :8] = self.a(x)
            out[:, 8:] = self.b(x)
            return self.last(F.relu(self.mid(out)))

    prune_and_prove(Written(), X, flops=0.7)


class Scales(nn.Module):
    """A residual sum with a scale of one element, shape `shape`, that starts at `value`."""

    def __init__(self, shape, value, first=False):
        super().__init__()
        self.c, self.d = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.h = nn.Conv2d(8, 5, 1)
        self.a, self.first = nn.Parameter(torch.full(shape, value)), first

    def forward(self, x):
        f = self.c(x)
        return self.h(self.a * f.relu() if self.first else f + self.a * self.d(f).relu())


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_scale_that_was_zero_while_tracing_may_become_another(shape):
    torch.manual_seed(0)
    model = Scales(shape, 0.0)
    groups = gbn.trace(model, X)
    assert groups.num_atoms == 8
    with torch.no_grad():
        model.a.fill_(0.7)
    plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=0.5)
    proof = gbn.prove(model, plan, gbn.prune(model, plan), X)
    assert proof.ok and not proof.randomised, proof


def test_a_scale_of_one_element_does_not_hide_the_gates_of_what_it_scales(prune_and_prove):
    result = prune_and_prove(Scales((1,), 0.5, first=True), X)
    assert {site.key for site in result.groups.gates} == {"c.weight"}
    assert result.groups.num_atoms == 8


def test_a_number_written_in_the_forward_is_a_constant(prune_and_prove):
    class Twice(Scales):
        def forward(self, x):
            return self.h(self.c(x).relu() * torch.tensor(2.0) + torch.zeros(()))

    assert prune_and_prove(Twice((), 1.0), X).groups.num_atoms == 8


@pytest.mark.parametrize(
    ("write", "gate"),
    [
        (lambda f, s: f[:, :, :1, :1].add_(s), "h.weight[1]"),
        (lambda f, s: f.flatten(2).sub_(s).clamp_(min=0), "h.weight[1]"),
        (lambda f, s: f[:, :, :1].mul_(s), "c.weight"),
        (lambda f, _: f.view(f.shape).relu_(), "c.weight"),
    ],
    ids=["add", "sub", "mul", "relu"],
)
def test_a_write_through_a_view_reaches_what_it_is_a_view_of(write, gate, randomised):
    class Writes(Scales):
        def forward(self, x):
            f = self.c(x).relu()
            write(f, (x.mean() > 5).to(x.dtype))  # nothing to see in the trial
            return self.h(f)

    groups = gbn.trace(randomised(Writes((), 1.0)), X)
    assert groups.num_atoms == 8
    assert [site.key for site in groups.gates] == [gate]


@pytest.mark.parametrize(
    "op",
    [
        lambda y: torch.log(y.abs()),
        lambda y: 1 / y,
        lambda y: y * y.abs().log(),
        lambda y: (y * y).rsqrt(),
        lambda y: y / y.std((2, 3), keepdim=True),
        lambda y: y / y.abs(),
        lambda y: torch.addcdiv(y, y, y.abs()),
    ],
    ids=["log", "reciprocal", "entropy", "rsqrt", "standardised", "sign", "addcdiv"],
)
def test_what_makes_a_gated_zero_infinite_freezes(op, group_of):
    """No gate behind it can make 0 / 0 a zero again."""

    class Net(Activated):
        def forward(self, x):
            return self.last(op(self.stem(x)))

    assert group_of(gbn.trace(Net(None), X), "stem.0").frozen


def test_positions_are_no_values(prune_and_prove):
    class Net(Activated):
        def forward(self, x):
            return self.last(F.max_pool2d(self.stem(x), 2, return_indices=True)[1].float() / 100)

    result = prune_and_prove(Net(None), X)
    assert [site.key for site in result.groups.gates if not site.is_norm] == ["last.weight[1]"]


def test_random_numbers_for_each_channel_freeze_them(group_of):
    class Net(Activated):
        def forward(self, x):
            y = self.stem(x)
            return self.last(y + 0.1 * torch.randn_like(y))

    assert group_of(gbn.trace(Net(None), X), "stem.0").frozen
