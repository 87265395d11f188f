"""Augmentation of whole batches at once.

What enters: pixels (N, C, H, W) and a generator. What leaves: pixels of the input size.
Images at the input size are shifted; larger ones give a random part of themselves, resized.
"""

import math

import torch
from torch.nn import functional

# Of the image's area and width : height, as is usual for training on photographs.
CROP_AREA = (0.35, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)


def flip(pixels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Mirror about half of the images left to right."""
    chosen = torch.rand(len(pixels), generator=rng) < 0.5
    return torch.where(chosen[:, None, None, None], pixels.flip(3), pixels)


def shift(pixels: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """A crop of the same size out of each image padded with black by an eighth of its size."""
    num, _, height, width = pixels.shape
    pad_y, pad_x = height // 8, width // 8
    padded = functional.pad(pixels, (pad_x, pad_x, pad_y, pad_y))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    top = torch.randint(2 * pad_y + 1, (num,), generator=rng)
    left = torch.randint(2 * pad_x + 1, (num,), generator=rng)
    return windows[torch.arange(num), :, top, left]


def random_boxes(num: int, rng: torch.Generator) -> torch.Tensor:
    """(N, 4): left, top, width, height of random parts, as fractions of the image."""
    area = torch.empty(num).uniform_(*CROP_AREA, generator=rng)
    low, high = (math.log(ratio) for ratio in CROP_RATIO)
    ratio = torch.empty(num).uniform_(low, high, generator=rng).exp()
    width = (area * ratio).sqrt().clamp(max=1.0)
    height = (area / ratio).sqrt().clamp(max=1.0)
    left = torch.rand(num, generator=rng) * (1 - width)
    top = torch.rand(num, generator=rng) * (1 - height)
    return torch.stack((left, top, width, height), dim=1)


def resized_crop(
    pixels: torch.Tensor, height_width: tuple[int, int], rng: torch.Generator
) -> torch.Tensor:
    """A random part of each image, resized to `height_width` (bilinear)."""
    left, top, width, height = random_boxes(len(pixels), rng).unbind(1)
    theta = torch.zeros(len(pixels), 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width, 2 * left + width - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
    shape = [len(pixels), pixels.shape[1], *height_width]
    grid = functional.affine_grid(theta, shape, align_corners=False)
    sampled = functional.grid_sample(
        pixels.float(), grid, padding_mode="border", align_corners=False
    )
    return sampled if pixels.is_floating_point() else sampled.round().to(pixels.dtype)


def centre_crop(pixels: torch.Tensor, height_width: tuple[int, int]) -> torch.Tensor:
    """The middle of each image."""
    top = (pixels.shape[2] - height_width[0]) // 2
    left = (pixels.shape[3] - height_width[1]) // 2
    return pixels[:, :, top : top + height_width[0], left : left + height_width[1]]
