"""The scores that are compared alone are what their names say."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gbn
from benchmarks import scores_alone
from benchmarks.scores_alone import activation_taylor, cuts, gamma


@pytest.fixture
def net(randomised: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, gbn.ChannelGroups]:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    layers += [nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)]
    model = randomised(nn.Sequential(*layers)).eval()
    return model, gbn.trace(model, torch.randn(1, 3, 8, 8))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 3, 8, 8, generator=generator), torch.arange(7) % 4


def test_activation_taylor_is_molchanovs_of_what_leaves_the_relus(net: Any) -> None:
    model, groups = net
    alive = np.ones(groups.num_atoms, dtype=np.bool_)
    images, labels = batch()
    expected = []
    for relu in (2, 5):
        per_image = []
        for image, label in zip(images, labels, strict=True):
            given = model[: relu + 1](image[None]).detach().requires_grad_()
            F.cross_entropy(model[relu + 1 :](given), label[None]).backward()
            per_image.append((given * given.grad).detach().mean((2, 3))[0].abs().double())
        total = torch.stack(per_image).mean(0)
        expected.append(total / total.norm())
    found = activation_taylor(model, groups, alive, [(images, labels)])
    order = np.concatenate([group.atoms for group in groups.groups if not group.frozen])
    assert np.allclose(found.values[order], torch.cat(expected).numpy(), rtol=1e-5)


def test_gamma_is_the_size_of_the_scale_also_of_a_network_that_was_cut(net: Any) -> None:
    model, groups = net
    alive = np.ones(groups.num_atoms, dtype=np.bool_)
    first, second = (np.array(group.atoms) for group in groups.groups if not group.frozen)
    assert np.allclose(
        gamma(model, groups, alive, []).values[first], model[1].weight.detach().abs()
    )
    alive[first[:2]] = False
    small = gbn.prune(model, gbn.PrunePlan.of(groups, alive))
    cut = gamma(small, groups, alive, []).values
    assert cut[first[:2]].tolist() == [0.0, 0.0]
    assert np.allclose(cut[first[2:]], model[1].weight.detach().abs()[2:])
    assert np.allclose(cut[second], model[4].weight.detach().abs())


def test_members_of_a_residual_stream_stand_at_their_mean(
    randomised: Callable[[nn.Module], nn.Module],
) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
            self.inner, self.second = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
            self.last = nn.Conv2d(6, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(self.stem(x)))
            return self.last(torch.relu(x + self.second(self.inner(x)))).mean((2, 3))

    model = randomised(Residual()).eval()
    groups = gbn.trace(model, torch.randn(1, 3, 4, 4))
    alive = np.ones(groups.num_atoms, dtype=np.bool_)
    (stream,) = (np.array(group.atoms) for group in groups.groups if not group.frozen)
    found = gamma(model, groups, alive, []).values[stream]
    assert np.allclose(found, (model.first.weight.abs() + model.second.weight.abs()).detach() / 2)


def test_cuts_pass_through_every_share_that_is_shown() -> None:
    assert cuts([0.3, 0.6], 0.0) == [0.6, 0.3]
    assert cuts([0.6, 0.3], 0.5) == [0.6, 0.3]
    assert cuts([0.8], 0.9) == pytest.approx([0.9, 0.81, 0.8])


def test_top1_is_the_share_of_all_images_that_is_right() -> None:
    outputs = torch.eye(4)
    batches = [(outputs[:3], torch.tensor([0, 1, 0])), (outputs[3:], torch.tensor([3]))]
    assert scores_alone.top1(nn.Identity(), batches) == 0.75
