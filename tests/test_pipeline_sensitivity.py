"""The cost of one group's cut alone, against networks cut by hand."""

import numpy as np
import pytest
import torch
from torch import nn

import gbn
from pipeline.checkup import Checkup
from pipeline.sensitivity import is_affordable, sensitivity


def checkup(samples: int = 10) -> Checkup:
    return Checkup(
        metric="sum", samples=samples, higher_is_better=True, in_points=False,
        measure=lambda _model: 0.0,
    )  # fmt: skip


@pytest.fixture
def network() -> tuple[nn.Sequential, gbn.ChannelGroups]:
    """Weights of one and no norm: the output counts the paths, 4 * 6 for each input."""
    layers = [nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(4, 6, 1, bias=False)]
    model = nn.Sequential(*layers, nn.Conv2d(6, 1, 1, bias=False)).eval()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    return model, gbn.trace(model, torch.ones(1, 1, 1, 1))


def paths(model: nn.Module) -> float:
    with torch.no_grad():
        return float(model(torch.ones(1, 1, 1, 1)))


def test_each_group_is_cut_alone(network: tuple[nn.Sequential, gbn.ChannelGroups]) -> None:
    model, groups = network
    alive = np.ones(groups.num_atoms, dtype=np.bool_)
    first, second = (g for g in groups.groups if not g.frozen)
    alive[first.atoms[0]] = False
    alive[list(second.atoms[:3])] = False
    found = sensitivity(model, groups, alive, checkup(), paths)
    values = {row["name"]: (row["kept"], row["value"]) for row in found["groups"]}
    assert values == {first.name: (0.75, 3 * 6.0), second.name: (0.5, 4 * 3.0)}
    assert paths(model) == 24.0


def test_groups_that_kept_all_are_not_measured(
    network: tuple[nn.Sequential, gbn.ChannelGroups],
) -> None:
    model, groups = network
    whole = np.ones(groups.num_atoms, dtype=np.bool_)
    assert sensitivity(model, groups, whole, checkup(), paths)["groups"] == []


def test_it_is_measured_where_training_costs_far_more(
    network: tuple[nn.Sequential, gbn.ChannelGroups],
) -> None:
    _, groups = network
    alive = np.ones(groups.num_atoms, dtype=np.bool_)
    alive[groups.groups[0].atoms[0]] = False
    # one group of 90 samples, against 3 % of three forward passes for each training image
    assert is_affordable(groups, alive, checkup(90), 1000)
    assert not is_affordable(groups, alive, checkup(91), 1000)
