"""What a network's own configuration says of its inputs.

What enters: a module and the `--arch` it came from. What leaves: an `InputConfig`.
Nothing is guessed: what is not stated is None.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

TORCHVISION = "torchvision:"


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """input_size (C, H, W), mean and std per channel, and who says so."""

    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    origin: str | None = None


def input_config(module: nn.Module, arch: str | None) -> InputConfig:
    """The configuration that timm keeps on the module, else that of torchvision's weights."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(module, attribute, None)
        if isinstance(config, dict) and config.get("input_size"):
            return _checked(config["input_size"], config.get("mean"), config.get("std"), "timm")
    if arch is not None and arch.startswith(TORCHVISION):
        return _from_torchvision(arch.removeprefix(TORCHVISION))
    return InputConfig()


def _from_torchvision(name: str) -> InputConfig:
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights(name)
    best = getattr(weights, "DEFAULT", None)
    if best is None:
        return InputConfig()
    transforms = best.transforms()
    crop = getattr(transforms, "crop_size", None)
    height_width = [*crop, *crop][:2] if crop else None
    size = (3, *height_width) if height_width else None
    mean, std = getattr(transforms, "mean", None), getattr(transforms, "std", None)
    return _checked(size, mean, std, "torchvision")


def _checked(size: object, mean: object, std: object, owner: str) -> InputConfig:
    """Only values of the right kind: a whole-module file could hold anything there."""
    sizes = _numbers(size)
    if sizes is None or len(sizes) != 3 or any(n < 1 or n != int(n) for n in sizes):
        return InputConfig()
    means, stds = _numbers(mean), _numbers(std)
    if means is None or stds is None or len(means) != len(stds) or any(s <= 0 for s in stds):
        means = stds = None
    return InputConfig(
        input_size=(int(sizes[0]), int(sizes[1]), int(sizes[2])),
        mean=means,
        std=stds,
        origin=f"{owner} config",
    )


def _numbers(values: object) -> tuple[float, ...] | None:
    if not isinstance(values, Sequence) or isinstance(values, str):
        return None
    if not all(isinstance(value, int | float) for value in values):
        return None
    return tuple(float(value) for value in values)
