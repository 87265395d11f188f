"""Layers behind a cut are refitted to what the original computed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import gbn


def images(count=8, seed=0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """The second half of the first layer's channels repeats the first half, each times two."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 6, 3, **options)
        self.head = nn.Linear(6, 4)
        with torch.no_grad():
            self.one.weight[4:] = 2 * self.one.weight[:4]
            self.one.bias[4:] = 2 * self.one.bias[:4]

    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))


def without_second_half(model):
    """The plan that takes the repeated channels."""
    groups = gbn.trace(model, images(1))
    group = next(g for g in groups.groups if g.name == "one")
    alive = np.ones(groups.num_atoms, dtype=np.bool_)
    alive[list(group.atoms)[4:]] = False
    plan = gbn.PrunePlan.of(groups, alive)
    assert list(plan.kept["one.weight"][0]) == [0, 1, 2, 3]
    return plan


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": "same"}, {"padding": (0, 2)}],
    ids=str,
)
def test_what_the_survivors_can_say_is_restored(options):
    model = Net(**options).eval()
    plan = without_second_half(model)
    small = gbn.prune(model, plan)
    x = images(16, seed=9)
    before = (small(x) - model(x)).abs().max().item()
    settings = gbn.RefitSettings(ridge=1e-6)
    found = gbn.refit(model, small, plan, images(32, 1), settings)
    assert set(found.error_left) == {"two"}
    after = (small(x) - model(x)).abs().max().item()
    # by hand: the weights of a pair add up, w[c] + 2 w[c + 4]; the ridge leaves a small rest
    assert after < 0.02 * before
    expected = model.two.weight[:, :4] + 2 * model.two.weight[:, 4:]
    assert (small.two.weight - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_linear_layer_is_refitted_on_every_row():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[0].weight[4:], model[0].bias[4:] = model[0].weight[:4], model[0].bias[:4]
    x = torch.randn(4, 7, 5)
    groups = gbn.trace(model, x)
    alive = np.arange(groups.num_atoms) < 4
    plan = gbn.PrunePlan.of(groups, alive)
    small = gbn.prune(model, plan)
    gbn.refit(model, small, plan, torch.randn(64, 7, 5), gbn.RefitSettings(ridge=1e-6))
    assert (small(x) - model(x)).abs().max() < 0.02 * model(x).abs().max()


def test_the_original_and_modes_stay_and_the_same_is_found_again():
    model = Net().train()
    plan = without_second_half(model)
    before = copy.deepcopy(model.state_dict())
    smalls = [gbn.prune(model, plan) for _ in range(2)]
    for small in smalls:
        gbn.refit(model, small, plan, images())
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(map(torch.equal, smalls[0].parameters(), smalls[1].parameters()))


def test_a_layer_that_runs_twice_is_left_alone():
    class Twice(Net):
        def forward(self, x):
            f = self.one(x).relu()
            return self.head((self.two(f) + self.two(-f)).mean((2, 3)))

    model = Twice().eval()
    plan = without_second_half(model)
    small = gbn.prune(model, plan)
    weight = small.two.weight.clone()
    assert gbn.refit(model, small, plan, images()).error_left == {}
    assert torch.equal(weight, small.two.weight)


def test_a_refit_that_gains_nothing_on_new_samples_is_not_taken():
    """Few samples of many inputs: the fit is perfect where it was made and worse elsewhere."""
    model = Net().eval()
    plan = without_second_half(model)
    small = gbn.prune(model, plan)
    with torch.no_grad():  # already as good as can be
        small.two.weight.copy_(model.two.weight[:, :4] + 2 * model.two.weight[:, 4:])
    weight = small.two.weight.clone()
    settings = gbn.RefitSettings(rows=24, ridge=1e-9)
    assert gbn.refit(model, small, plan, images(1), settings).error_left == {}
    assert torch.equal(weight, small.two.weight)


def test_an_offset_goes_into_the_mean_of_the_norm_behind():
    """Channels that are constant carry an offset and nothing else: a norm can take it all."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6),
        nn.ReLU(), nn.Conv2d(6, 4, 1),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[0].weight[4:], model[0].bias[4:] = 0.0, 3.0
    groups = gbn.trace(model, images(1))
    alive = np.ones(groups.num_atoms, dtype=np.bool_)
    alive[[*next(g for g in groups.groups if g.name == "0").atoms][4:]] = False
    plan = gbn.PrunePlan.of(groups, alive)
    small = gbn.prune(model, plan)
    x = images(16, seed=9)
    before = (small(x) - model(x)).abs().max()
    gbn.refit(model, small, plan, images(16, 1), gbn.RefitSettings(ridge=1e-6))
    assert (small(x) - model(x)).abs().max() < 1e-3 * before
    expected = model[3].running_mean - 3.0 * model[2].weight[:, 4:].sum(1).flatten()
    assert torch.allclose(small[3].running_mean, expected, atol=1e-3)


class Residual(nn.Module):
    """Two layers and a norm beside a stream; the sum is what leaves."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 1)
        self.inner = nn.Conv2d(6, 8, 1)
        self.outer = nn.Conv2d(8, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.in_place = in_place
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.outer(self.inner(x).relu()))
        if self.in_place:
            y += x
        else:
            y = x + y
        return y


@pytest.mark.parametrize("in_place", [False, True])
def test_a_layer_before_a_sum_makes_up_for_the_other_summand(in_place):
    """The stem is off by a constant: only what is added to it can take that back."""
    model = Residual(in_place).eval()
    groups = gbn.trace(model, images(1))
    alive = np.ones(groups.num_atoms, dtype=np.bool_)
    alive[[*next(g for g in groups.groups if g.name == "inner").atoms][6:]] = False
    plan = gbn.PrunePlan.of(groups, alive)
    small = gbn.prune(model, plan)
    x = images(16, seed=9)
    small.stem.register_forward_hook(lambda _layer, _x, y: y + 1)  # its own weights cannot mend it
    before = (small(x) - model(x)).abs().mean()
    gbn.refit(model, small, plan, images(32, 1), gbn.RefitSettings(ridge=1e-9))
    assert (small(x) - model(x)).abs().mean() < 0.3 * before


def test_a_depthwise_layer_is_refitted_channel_by_channel():
    """Its inputs are off by a factor a channel: its weights take the inverse."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ).eval()
    groups = gbn.trace(model, images(1))
    alive = np.arange(groups.num_atoms) != 0
    plan = gbn.PrunePlan.of(groups, alive)
    small = gbn.prune(model, plan)
    factors = torch.linspace(0.5, 2, len(small[0].weight))[:, None, None]
    small[0].register_forward_hook(lambda _layer, _x, y: y * factors)
    gbn.refit(model, small, plan, images(32, 1), gbn.RefitSettings(ridge=1e-9))
    kept = torch.as_tensor(np.asarray(plan.kept["1.weight"][0]))
    expected = model[1].weight[kept] / factors[:, :, :, None]
    # the layer before takes a part of the factors first, as far as its check rows gain by it
    product = small[1].weight * small[0].weight.mean((1, 2, 3))[:, None, None, None]
    wanted = expected * model[0].weight[kept].mean((1, 2, 3))[:, None, None, None]
    assert torch.allclose(product, wanted, rtol=1e-2, atol=1e-4)


def halved(model):
    groups = gbn.trace(model, images(1))
    scores = gbn.Scores(np.arange(groups.num_atoms) + 1.0, "test")
    plan = gbn.plan(groups, scores, flops=0.6)
    return gbn.prune(model, plan), plan


class Padded(nn.Conv2d):
    """Pads in its forward, as layers with TensorFlow's padding do."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 0.1


@pytest.mark.parametrize(
    ("made", "passed_over"),
    [
        (lambda: Padded(8, 8, 3), "is a Padded, which may compute something else"),
        (lambda: nn.Sequential(nn.Flatten(), Scaled(8 * 64, 5)), "is a Scaled, which"),
    ],
)
def test_layers_of_derived_classes_stay_as_they_are_and_are_named(made, passed_over):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), made()).eval()
    small, plan = halved(model)
    before = {k: v.clone() for k, v in small[2].state_dict().items()}
    found = gbn.refit(model, small, plan, images(16))
    assert any(passed_over in reason for reason in found.passed_over.values())
    assert all(torch.equal(value, before[key]) for key, value in small[2].state_dict().items())


class ReadTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(x.mean((2, 3))) + nn.functional.linear(x.amax((2, 3)), self.fc.weight)


def test_a_weight_that_another_op_reads_too_stays_as_it_is():
    torch.manual_seed(0)
    model = ReadTwice().eval()
    small, plan = halved(model)
    before = small.fc.weight.clone()
    found = gbn.refit(model, small, plan, images(16))
    assert found.passed_over["fc"] == "is read more than once"
    assert torch.equal(small.fc.weight, before)


class ReadsItsBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3))) + 1000 * self.fc.bias


def test_a_refit_that_moves_the_outputs_away_is_taken_back():
    torch.manual_seed(0)
    model = ReadsItsBias().eval()
    small, plan = halved(model)
    before = {k: v.clone() for k, v in small.state_dict().items()}
    found = gbn.refit(model, small, plan, images(64))
    assert found.error_left == {}
    assert found.passed_over["fc"] == "the network's outputs became worse"
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
