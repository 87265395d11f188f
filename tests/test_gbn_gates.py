"""Gates: attached, they change nothing; folded, they leave what they computed, bit for bit."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gbn
from gbn.gates import ChannelGate

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 3])


class Net(nn.Module):
    """A norm's gate, a bias-free convolution's, a convolution's and a linear layer's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.plain = nn.Conv2d(8, 6, 3)
        self.hidden = nn.Linear(6, 5)
        self.last = nn.Linear(5, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(self.plain(x)).mean((2, 3))
        return self.last(F.relu(self.hidden(x)))


@pytest.fixture
def net(randomised):
    torch.manual_seed(0)
    model = randomised(Net())
    return model, gbn.trace(model, X)


def test_sites_are_norms_first_and_layers_where_no_norm_follows(net):
    _, groups = net
    assert [(s.name, s.is_norm, s.tensors) for s in groups.gates] == [
        ("norm", True, (("norm.weight", 0), ("norm.bias", 0))),
        ("plain", False, (("plain.weight", 0), ("plain.bias", 0))),
        ("hidden", False, (("hidden.weight", 0), ("hidden.bias", 0))),
    ]


def test_attaching_and_folding_leaves_every_bit(net):
    model, groups = net
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([49.0, -49.0, 3.0, 1e-3, 0.1, 1e-9, 0.0, 41.7]))
    state, ids = copy.deepcopy(model.state_dict()), [id(p) for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    model.eval()
    expected = model(X)
    gates = gbn.Gates(model, groups)
    assert torch.equal(model(X), expected)
    gates.fold()
    assert [name for name, _ in model.named_parameters()] == names
    assert [id(p) for p in model.parameters()] == ids
    for name, value in model.named_parameters():
        assert torch.equal(value, state[name]), name
        assert type(value) is nn.Parameter and value.is_leaf
    assert type(model.norm) is nn.BatchNorm2d and type(model.plain) is nn.Conv2d


def test_a_gate_at_its_start_is_exactly_one():
    start = torch.randn(10_000, generator=torch.Generator().manual_seed(3))
    gate = ChannelGate(nn.Parameter(start.clone()), start, 0)
    weight = torch.randn(10_000, 2)
    assert torch.equal(gate(weight), weight)


def test_gates_of_norms_start_at_gamma_and_others_at_one(net):
    model, groups = net
    gamma = model.norm.weight.detach().clone()
    with gbn.Gates(model, groups) as gates:
        assert torch.equal(gates.phi["norm.weight"], gamma)
        assert gates.phi["plain.weight"].tolist() == [1.0] * 6
        assert gates.phi["hidden.weight"].tolist() == [1.0] * 5


def test_a_zero_gate_makes_the_channel_zero(net):
    model, groups = net
    with gbn.Gates(model.eval(), groups) as gates, torch.no_grad():
        gates.phi["norm.weight"][2] = 0.0
        gates.phi["plain.weight"][1] = 0.0
        assert not model.norm(model.conv(X))[:, 2].any()
        assert not model.plain(torch.randn(2, 8, 5, 5))[:, 1].any()


def test_folding_after_training_gives_the_gated_network(net):
    model, groups = net
    with gbn.Gates(model, groups) as gates:
        optimizer = torch.optim.SGD([*model.parameters()], lr=0.5, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            (F.cross_entropy(model(X), Y) + 1e-2 * gates.penalty()).backward()
            optimizer.step()
        assert not torch.equal(gates.phi["plain.weight"], torch.ones(6))
        model.eval()
        gated = model(X)
    assert torch.equal(model(X), gated)
    assert not any("parametrizations" in name for name, _ in model.named_parameters())


def test_tied_weights_are_gated_together_and_folded_once(randomised):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(5, 8)
            self.one, self.two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.two.weight = self.one.weight
            self.last = nn.Linear(8, 4)

        def forward(self, x):
            x = F.relu(self.embed(x))
            return self.last(F.relu(self.two(F.relu(self.one(x)))))

    model, x = randomised(Tied()).eval(), torch.randn(3, 5)
    groups = gbn.trace(model, x)
    before = model(x)
    with gbn.Gates(model, groups) as gates:
        assert torch.equal(model(x), before)
        with torch.no_grad():
            gates.phi["one.weight"].mul_(0.5)
        assert torch.equal(model.one.weight, model.two.weight)
        gated = model(x)
    assert torch.equal(model(x), gated)
    assert model.one.weight is model.two.weight


def _loss(model):
    return F.cross_entropy(model(X.double()), Y)


def test_scores_are_first_order_effects_of_each_gate(net):
    """|dL/dphi * phi| by central differences in float64."""
    model, groups = net
    model = model.double().eval()
    with gbn.Gates(model, groups) as gates:
        _loss(model).backward()
        gates.accumulate()
        for name, phi in gates.phi.items():
            expected = np.zeros(len(phi))
            for channel in range(len(phi)):
                values = []
                for step in (1e-5, -1e-5):
                    with torch.no_grad():
                        phi[channel] += step
                        values.append(float(_loss(model)))
                        phi[channel] -= step
                expected[channel] = abs((values[0] - values[1]) / 2e-5 * float(phi[channel]))
            assert np.allclose(gates.site_scores()[name], expected, rtol=1e-4, atol=1e-8)
            assert expected.max() > 1e-4


def test_a_norms_score_is_gamma_and_beta_times_their_gradients(net):
    model, groups = net
    model = model.double().eval()
    plain = copy.deepcopy(model)
    _loss(plain).backward()
    gamma, beta = plain.norm.weight, plain.norm.bias
    expected = (gamma * gamma.grad + beta * beta.grad).abs().detach().numpy()
    with gbn.Gates(model, groups) as gates:
        _loss(model).backward()
        gates.accumulate()
    assert np.allclose(gates.site_scores()["norm.weight"], expected, rtol=1e-10)


def test_batches_add_up_by_absolute_value(net):
    model, groups = net
    model.eval()
    with gbn.Gates(model, groups) as gates:
        totals = np.zeros(6)
        for sign in (1.0, -1.0):
            (sign * F.cross_entropy(model(X), Y)).backward()
            grad = gates.phi["plain.weight"].grad
            totals += (grad * gates.phi["plain.weight"]).abs().detach().double().numpy()
            gates.accumulate()
            assert gates.phi["plain.weight"].grad is None
    assert np.allclose(gates.site_scores()["plain.weight"], totals)
    assert totals.max() > 0


def test_an_atoms_score_is_the_sum_over_its_gates(randomised):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.na = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.b, self.nb = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.na(self.a(x))
            return self.last(F.relu(x + self.nb(self.b(x)))).mean((2, 3))

    model = randomised(Residual()).eval()
    groups = gbn.trace(model, X)
    with gbn.Gates(model, groups) as gates:
        F.cross_entropy(model(X), Y).backward()
        gates.accumulate()
        per_site, scores = gates.site_scores(), gates.scores()
    order = [groups.dims[site.dim].atoms for site in groups.gates]
    assert all(np.array_equal(np.sort(atoms), np.arange(8)) for atoms in order)
    expected = sum(
        per_site[f"{name}.weight"][np.argsort(o)]
        for name, o in zip(("na", "nb"), order, strict=True)
    )
    assert np.allclose(scores.values, expected)
    assert scores.kind == "gate"


def test_leaving_the_block_by_an_error_folds(net):
    model, groups = net
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt), gbn.Gates(model, groups):
        assert hasattr(model.norm, "parametrizations")
        raise KeyboardInterrupt
    assert not hasattr(model.norm, "parametrizations")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_gates_for_another_model_leave_it_as_it_was(net):
    _, groups = net
    other = nn.Module()
    other.norm = nn.BatchNorm2d(8)
    with pytest.raises(AttributeError):
        gbn.Gates(other, groups)
    assert not hasattr(other.norm, "parametrizations")


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(gbn.GbnError, match="gate scores are not finite: the loss diverged"):
        gbn.Scores(np.array([1.0, np.nan]), "gate")


def test_magnitude_scores_are_relative_to_each_tensor_and_refuse_other_models(net):
    model, groups = net
    values = gbn.magnitude_scores(model, groups).values
    with torch.no_grad():
        model.plain.weight.mul_(100)
    assert np.allclose(gbn.magnitude_scores(model, groups).values, values)
    with torch.no_grad():
        model.plain.weight[4].mul_(100)
    louder = gbn.magnitude_scores(model, groups).values
    atom = groups.dims[next(s.dim for s in groups.gates if s.name == "plain")].atoms[4]
    assert louder[atom] > values[atom]
    with pytest.raises(gbn.PlanMismatch, match=r"no parameter 'conv.weight'"):
        gbn.magnitude_scores(nn.Linear(2, 2), groups)


def test_two_weights_of_one_module_have_gates_of_their_own(prune_and_prove):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            shapes = (16, 3), (24, 16), (10, 24)
            self.w1, self.w2, self.w3 = (nn.Parameter(torch.randn(*s, 3, 3)) for s in shapes)

        def forward(self, x):
            x = F.relu(F.conv2d(F.relu(F.conv2d(x, self.w1)), self.w2))
            return F.conv2d(x, self.w3)

    result = prune_and_prove(Two(), torch.randn(2, 3, 8, 8))
    with gbn.Gates(result.model, result.groups) as gates:
        assert {name: len(phi) for name, phi in gates.phi.items()} == {"w1": 16, "w2": 24}
        result.model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        gates.accumulate()
        assert (gates.scores().values > 0).all()


def test_norms_that_share_gamma_have_one_gate(prune_and_prove):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.d = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
            self.b1, self.b2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
            self.b2.weight = self.b1.weight
            self.h = nn.Conv2d(8, 5, 1)

        def forward(self, x):
            return self.h(F.relu(self.b2(self.d(F.relu(self.b1(self.c(x)))))))

    x = torch.randn(2, 3, 8, 8)
    result = prune_and_prove(Shared(), x)
    (site,) = result.groups.gates
    assert {name for name, _ in site.tensors} == {"b1.weight", "b1.bias", "b2.bias"}
    before = result.model.eval()(x)
    with gbn.Gates(result.model, result.groups) as gates:
        assert torch.equal(result.model(x), before)
        with torch.no_grad():
            gates.phi["b1.weight"][2] = 0.0
        assert not result.model.b2.bias[2] and not result.model.b2.weight[2]


def test_weights_that_are_not_numbers_are_refused_by_kind(net):
    model, groups = net
    with torch.no_grad():
        model.plain.weight[0] = torch.nan
    with pytest.raises(gbn.ScoresNotFinite, match=r"magnitude scores .*: the weights hold NaN"):
        gbn.magnitude_scores(model, groups)


def test_gradients_are_kept_for_an_optimizer_only_when_asked(net):
    model, groups = net
    sums = []
    for keep in (False, True):
        with gbn.Gates(model.double().eval(), groups) as gates:
            _loss(model).backward()
            gates.accumulate(keep_gradients=keep)
            held = [phi.grad is not None for phi in gates.phi.values()]
            assert all(held) if keep else not any(held)
            sums.append(gates.site_scores())
    assert all(np.array_equal(sums[0][key], sums[1][key]) for key in sums[0])


def test_norms_whose_scale_a_gate_stands_for_are_named(net):
    model, groups = net
    norms = {id(m.weight) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    with gbn.Gates(model, groups) as gates:
        assert gates.stood_for
        assert {id(parameter) for parameter in gates.stood_for} <= norms
