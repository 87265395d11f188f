"""Trial cuts are left out exactly where the forward cannot know a width."""

import sys

import pytest
import torch
from torch import nn

import gbn
from gbn.errors import TraceError

tracing = sys.modules["gbn.trace"]  # `gbn.trace` itself is the function

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A grouped convolution between two plain ones; `act` is any function of the tensor."""

    def __init__(self, act):
        super().__init__()
        self.one, self.mid = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.two = nn.Linear(8, 5)
        self.act = act

    def forward(self, x):
        y = self.mid(self.act(self, self.one(x).relu()))
        return self.two(y.mean((2, 3)))


class TriedError(Exception):
    pass


@pytest.fixture
def no_trials(monkeypatch):
    def fail(*_args):
        raise TriedError

    monkeypatch.setattr(tracing, "find_shape_faults", fail)


BLIND = {
    "function": lambda _, x: torch.nn.functional.silu(x),
    "operators": lambda _, x: 0.5 * x + x / 3 - x * x,
    "in place": lambda _, x: x.clone().mul_(2).add_(x),
    "gate": lambda _, x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "dims": lambda _, x: x.transpose(0, 1).transpose(0, 1) if x.ndim == 4 else x,
    "pad": lambda _, x: torch.nn.functional.pad(x, (0, 1, 0, 1), "replicate"),
    "pool": lambda _, x: torch.nn.functional.max_pool2d(x, 3, 1, 1),
}
SEEING = {
    "shape": lambda _, x: x * (x.shape[1] / 8),
    "size": lambda _, x: x if x.size(1) == 8 else x * 2,
    "numel": lambda _, x: x * x.numel(),
    "length": lambda _, x: x * len(x[0]),
    "stride": lambda _, x: x * x.stride(0),
    "unpacked": lambda _, x: torch.stack([*x]),
    "weight's shape": lambda net, x: x * net.one.weight.shape[0],
    "weight's length": lambda net, x: x * len(net.one.bias),
    "data": lambda net, x: x * net.one.weight.data.shape[0],
    "view": lambda _, x: x.view(2, 8, 8, 8),
    "pad": lambda _, x: torch.nn.functional.pad(x, (0, 0, 0, 0, 1, -1)),
    "turned pad": lambda _, x: torch.nn.functional.pad(x.transpose(1, 3), (1, -1)).transpose(1, 3),
    "slice": lambda _, x: torch.cat([x[:, :4], x[:, 4:]], 1),
    "attribute": lambda net, x: x * (1.0 if net.mid.groups == 8 else 2.0),
    "script": lambda _, x: scripted(x),
    "operator of the library": lambda _, x: torch.ops.aten.view.default(x, [2, 8, 8, 8]),
}


@torch.jit.script
def scripted(x):
    return x.reshape(x.size(0), x.size(1), 8, 8)


@pytest.mark.parametrize("act", BLIND.values(), ids=BLIND.keys())
@pytest.mark.usefixtures("no_trials")
def test_a_forward_that_knows_no_width_is_not_tried(act):
    groups = gbn.trace(Net(act), X)
    assert [group.size for group in groups.groups if not group.frozen] == [8]


@pytest.mark.parametrize("act", SEEING.values(), ids=SEEING.keys())
@pytest.mark.usefixtures("no_trials")
def test_a_forward_that_may_know_a_width_is_tried(act):
    with pytest.raises(TriedError):
        gbn.trace(Net(act), X)


@pytest.mark.usefixtures("no_trials")
def test_groups_told_by_another_module_are_tried():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.groups = nn.Parameter(torch.randn(8, 1, 3, 3)), 8

        def forward(self, x):
            return torch.nn.functional.conv2d(x, self.weight, None, 1, 1, 1, self.groups)

    model = Net(lambda _, x: x)
    model.mid = Own()
    with pytest.raises(TriedError):
        gbn.trace(model, X)


def test_the_groups_are_those_that_trials_leave(monkeypatch):
    nets = [Net(act) for act in BLIND.values()]
    certain = [gbn.trace(net, X).groups for net in nets]
    monkeypatch.setattr(tracing, "untried", lambda *_: None)
    assert [gbn.trace(net, X).groups for net in nets] == certain


def test_a_number_as_large_as_a_width_stays_where_no_op_was_told_it(prune_and_prove):
    model = Net(lambda net, x: x * (2.0 if net.many == 8 else 3.0))
    model.many = 8
    result = prune_and_prove(model, X)
    assert result.small.many == 8
    assert result.small.mid.groups < 8


def test_layers_of_torch_are_left_as_they_were():
    kinds = (nn.modules.conv._ConvNd, nn.LayerNorm, nn.RMSNorm)
    before = [set(vars(kind)) for kind in kinds]
    gbn.trace(Net(BLIND["pool"]), X)
    with pytest.raises(TraceError):
        gbn.trace(Net(lambda _, x: x[7]), X)
    assert [set(vars(kind)) for kind in kinds] == before
    assert nn.Conv2d(4, 4, 1, groups=2).groups == 2
