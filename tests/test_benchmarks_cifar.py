"""The CIFAR networks have the keys, shapes and sizes that their checkpoints state."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from benchmarks.cifar_models import (
    CifarResNet,
    PaddedShortcut,
    resnet20,
    resnet20_b,
    resnet56,
    resnet56_b,
)

MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"


def _described_keys(blocks: int, *, option_b: bool) -> set[str]:
    def norm(name: str) -> set[str]:
        parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return {f"{name}.{part}" for part in parts}

    keys = {"conv1.weight", "linear.weight", "linear.bias"} | norm("bn1")
    for layer in (1, 2, 3):
        for block in range(blocks):
            prefix = f"layer{layer}.{block}"
            keys |= {f"{prefix}.conv1.weight", f"{prefix}.conv2.weight"}
            keys |= norm(f"{prefix}.bn1") | norm(f"{prefix}.bn2")
    if option_b:
        for layer in (2, 3):
            keys |= {f"layer{layer}.0.shortcut.0.weight"} | norm(f"layer{layer}.0.shortcut.1")
    return keys


@pytest.mark.parametrize(
    ("build", "blocks", "option_b"),
    [
        (resnet20, 3, False),
        (resnet56, 9, False),
        (resnet20_b, 3, True),
        (resnet56_b, 9, True),
    ],
)
def test_keys_are_those_described(
    build: Callable[[], nn.Module], blocks: int, option_b: bool
) -> None:
    assert set(build().state_dict()) == _described_keys(blocks, option_b=option_b)


@pytest.mark.parametrize("build", [resnet20, resnet20_b])
def test_images_become_ten_class_scores(build: Callable[[], nn.Module]) -> None:
    with torch.no_grad():
        assert build().eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("build", "num_params"), [(resnet20, 269_722), (resnet56, 853_018)])
def test_parameter_counts_are_the_published_ones(
    build: Callable[[], nn.Module], num_params: int
) -> None:
    # 0.27 M and 0.85 M in table 6 of the paper.
    assert sum(parameter.numel() for parameter in build().parameters()) == num_params


def test_padded_shortcut_takes_every_second_pixel_between_zero_channels() -> None:
    x = torch.arange(2 * 2 * 4 * 4.0).reshape(2, 2, 4, 4)
    expected = torch.zeros(2, 4, 2, 2)
    expected[:, 1:3] = F.max_pool2d(-x, 1, stride=2).neg()
    shortcut = PaddedShortcut(2, 4)
    assert torch.equal(shortcut(x), expected)
    assert shortcut.pad == (0, 0, 0, 0, 1, 1)


def test_unknown_shortcut_option_is_refused() -> None:
    with pytest.raises(ValueError, match="'C': shortcuts are of option A or B"):
        CifarResNet(3, "C")


@pytest.mark.parametrize(
    ("file", "build"),
    [
        ("resnet20-cifar10.safetensors", resnet20),
        ("resnet20-cifar10-jpeg.safetensors", resnet20),
        ("resnet56-cifar10.safetensors", resnet56),
        ("resnet56-cifar10-gbn-baseline.safetensors", resnet56_b),
    ],
)
def test_trained_weights_fit_strictly(file: str, build: Callable[[], nn.Module]) -> None:
    path = MODELS / file
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    weights = load_file(path)
    fresh = build()
    missing, unexpected = fresh.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert [key for key in missing if not key.endswith("num_batches_tracked")] == []
