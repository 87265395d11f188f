"""Decode image files into pixels of one size.

What enters: paths, a number of channels, a size. What leaves: uint8 tensors (N, C, H, W).
An image of the wanted size is used as it is; another one is resized to cover the size that is
later cropped from (the wanted one divided by 0.875, from 64 pixels on) and cropped in the middle.
Refused, by name: images that cannot be read, and 16-bit images.
"""

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pipeline.errors import UsageError, one_line

logger = logging.getLogger(__name__)

MODES = {3: "RGB", 1: "L"}
CROP_SHARE = 0.875
MIN_CROPPED_SIDE = 64
PROGRESS_FILES = 10_000
# What Pillow raises on damaged files of one format or another.
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, OverflowError)
Pixels = npt.NDArray[np.uint8]


class ImageBytes(Protocol):
    """An image that is no file of its own; `str` names it."""

    def read(self) -> bytes:
        """Its bytes."""


ImageFile = Path | ImageBytes


def covering(height_width: tuple[int, int]) -> tuple[int, int]:
    """The size an image is resized to before its middle of `height_width` is taken."""
    if min(height_width) < MIN_CROPPED_SIDE:
        return height_width
    return round(height_width[0] / CROP_SHARE), round(height_width[1] / CROP_SHARE)


@dataclass(frozen=True, kw_only=True)
class Target:
    """wanted: (H, W) of the network's input; inner: what is kept, `wanted` or what covers it."""

    inner: tuple[int, int]
    wanted: tuple[int, int]


def fitted(path: ImageFile, channels: int, target: Target) -> Pixels:
    """(H, W, C) of size `target.inner`; an image that has that very size is left as it is."""
    inner = target.inner
    with _opened(path, channels) as image:
        width, height = image.size
        if inner == target.wanted == (height, width):
            return _array(image)
        cover = covering(target.wanted)
        scale = max(cover[0] / height, cover[1] / width)
        size = (max(round(width * scale), cover[1]), max(round(height * scale), cover[0]))
        resized = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (size[0] - inner[1]) // 2, (size[1] - inner[0]) // 2
        return _array(resized.crop((left, top, left + inner[1], top + inner[0])))


def part(path: ImageFile, channels: int, box: list[float], wanted: tuple[int, int]) -> Pixels:
    """(H, W, C): the part `box` (left, top, width, height, as fractions), resized to `wanted`."""
    with _opened(path, channels) as image:
        width, height = image.size
        left, top = box[0] * width, box[1] * height
        corners = (left, top, left + box[2] * width, top + box[3] * height)
        size = (wanted[1], wanted[0])
        return _array(image.resize(size, Image.Resampling.BILINEAR, box=corners))


def to_tensor(arrays: list[Pixels]) -> torch.Tensor:
    """Arrays (H, W, C) as one uint8 tensor (N, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(arrays).transpose(0, 3, 1, 2)))


def decode_all(
    paths: Sequence[ImageFile], channels: int, target: Target, threads: int
) -> torch.Tensor:
    """All images, uint8 (N, C, H, W) of size `target.inner`; UsageError names a bad file."""
    images = torch.empty((len(paths), channels, *target.inner), dtype=torch.uint8)
    array = images.numpy()

    def store(index: int) -> None:
        array[index] = fitted(paths[index], channels, target).transpose(2, 0, 1)

    _for_each(range(len(paths)), store, threads, "decoded")
    return images


def image_sizes(
    paths: Sequence[ImageFile], threads: int, *, verify: bool = False
) -> set[tuple[int, int]]:
    """The (height, width) that occur, from the headers; `verify` has Pillow check the whole file.

    Raises UsageError for a file that is no image.
    """
    found: set[tuple[int, int]] = set()

    def look(path: ImageFile) -> None:
        try:
            with Image.open(_stream(path)) as image:
                found.add((image.height, image.width))
                if verify:
                    image.verify()
        except (*IMAGE_ERRORS, Image.DecompressionBombError) as error:
            raise _unreadable(path, error) from error

    _for_each(paths, look, threads, "checked")
    return found


def _for_each(items: Sequence[Any], act: Callable[[Any], None], threads: int, verb: str) -> None:
    """Run `act` on every item in `threads` threads; the first error stops it."""
    with ThreadPoolExecutor(threads) as pool:
        # Blocks keep the cost of handing out work small, and errors early.
        for start in range(0, len(items), PROGRESS_FILES):
            block = items[start : start + PROGRESS_FILES]
            parts = [block[k::threads] for k in range(threads)]
            for result in [pool.submit(_run, act, piece) for piece in parts]:
                result.result()
            logger.info("%s %d of %d images", verb, start + len(block), len(items))


def _run(act: Callable[[Any], None], items: Sequence[Any]) -> None:
    for item in items:
        act(item)


@contextmanager
def _opened(path: ImageFile, channels: int) -> Iterator[Image.Image]:
    """The decoded image in the mode for `channels`."""
    try:
        with Image.open(_stream(path)) as image:
            if image.mode.startswith(("I", "F")):
                raise UsageError(
                    f"{path}: has pixels of mode {image.mode!r}, more than 8 bits; convert it to "
                    "8 bits or use a .npz file"
                )
            # Palettes with transparency go by RGBA, else Pillow guesses a background.
            if image.mode == "P" and "transparency" in image.info:
                converted = image.convert("RGBA").convert(MODES[channels])
            else:
                converted = image.convert(MODES[channels])
    except (*IMAGE_ERRORS, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    yield converted


def _stream(path: ImageFile) -> Path | io.BytesIO:
    return path if isinstance(path, Path) else io.BytesIO(path.read())


def _unreadable(path: ImageFile, error: BaseException) -> UsageError:
    return UsageError(
        f"{path}: cannot be read as an image ({one_line(error, 100)}); replace or remove it"
    )


def _array(image: Image.Image) -> Pixels:
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]
