"""Fixtures shared by the tests of the pruning library."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import gbn


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """Everything that one way through the library made."""

    model: nn.Module
    groups: gbn.ChannelGroups
    plan: gbn.PrunePlan
    small: nn.Module
    proof: gbn.Proof


def _randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """No statistic, bias or scale is left at a value that would hide an error (0 or 1)."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape: torch.Size, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if name.endswith(("running_mean", "bias")):
                tensor.copy_(uniform(tensor.shape, -0.7, 0.7))
            elif name.endswith("running_var"):
                tensor.copy_(uniform(tensor.shape, 0.5, 2.0))
            elif isinstance(tensor, nn.Parameter) and (tensor.ndim == 1 or not tensor.any()):
                sign = (torch.rand(tensor.shape, generator=generator) < 0.3) * -2.0 + 1.0
                tensor.copy_(uniform(tensor.shape, 0.5, 1.5) * sign)
    return model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny networks run many times slower when threads contend for few cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Times that tests measure on a busy machine must not stay in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def randomised() -> Callable[..., nn.Module]:
    """Give norms, biases and zero parameters random values."""
    return _randomise


@pytest.fixture
def group_of() -> Callable[[gbn.ChannelGroups, str], gbn.Group]:
    """The group that a layer's output channels belong to."""

    def find(groups: gbn.ChannelGroups, layer: str) -> gbn.Group:
        return next(group for group in groups.groups if layer in group.layers)

    return find


@pytest.fixture
def prune_and_prove() -> Callable[..., Pruned]:
    """Randomise, trace, plan, prune; the gated network must equal the smaller one."""

    def run(model: nn.Module, inputs: Any, flops: float = 0.5, seed: int = 0) -> Pruned:
        _randomise(model, seed)
        groups = gbn.trace(model, inputs)
        plan = gbn.plan(groups, gbn.magnitude_scores(model, groups), flops=flops)
        small = gbn.prune(model, plan)
        proof = gbn.prove(model, plan, small, inputs)
        assert proof.ok, proof
        assert not proof.vacuous, proof
        before = sum(p.numel() for p in model.parameters())
        assert sum(p.numel() for p in small.parameters()) < before
        return Pruned(model=model, groups=groups, plan=plan, small=small, proof=proof)

    return run


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without data make 96 images in 5 steps each: as many as a test has time for."""
    from pipeline import data_free

    monkeypatch.setattr(data_free, "_MAX_IMAGES", 96)
    monkeypatch.setattr(data_free, "_STEPS", 5)
