"""Batches out of splits whose images can be had by index.

What enters: two `Split`s and a `DataRequest`. What leaves: `StoredData`, which is a `Data`.
Refused: subsets larger than the training set. Order and augmentation depend on the seed and the
epoch alone.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch

from pipeline.augment import centre_crop, flip, resized_crop, shift
from pipeline.data_types import Batch, DataRequest, Loader
from pipeline.errors import UsageError

Moves = Literal["shift", "part", "none"]
"""By an eighth of the size; to a random part, resized; or not at all."""
_IN_WORDS: dict[Moves, str] = {
    "none": "flip",
    "shift": "flip, shift by an eighth",
    "part": "flip, resized random part",
}


class Split(Protocol):
    """Images of one split, by index."""

    @property
    def labels(self) -> torch.Tensor:
        """int64 (N,)."""

    def pixels(self, indices: torch.Tensor, rng: torch.Generator | None) -> torch.Tensor:
        """(N, C, H, W) at the input size, uint8 or float32; augmented if there is a generator."""


@dataclass(frozen=True, kw_only=True)
class TensorSplit:
    """A split held in memory: uint8 or float32 (N, C, H', W'), H' and W' at least H and W.

    moves: how augmented images move besides being mirrored.
    """

    images: torch.Tensor
    labels: torch.Tensor
    height_width: tuple[int, int]
    moves: Moves

    def pixels(self, indices: torch.Tensor, rng: torch.Generator | None) -> torch.Tensor:
        """See `Split`."""
        chosen = self.images[indices]
        if rng is not None and self.moves == "part":
            return flip(resized_crop(chosen, self.height_width, rng), rng)
        centred = centre_crop(chosen, self.height_width)
        if rng is None:
            return centred
        mirrored = flip(centred, rng)
        return shift(mirrored, rng) if self.moves == "shift" else mirrored


@dataclass(frozen=True, kw_only=True)
class SplitLoader:
    """One pass over `order`; `rng_seed` None means no augmentation."""

    split: Split
    order: torch.Tensor
    batch_size: int
    drop_last: bool
    rng_seed: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __len__(self) -> int:
        full, rest = divmod(len(self.order), self.batch_size)
        return full if rest == 0 or (self.drop_last and full > 0) else full + 1

    def __iter__(self) -> Iterator[Batch]:
        rng = None
        if self.rng_seed is not None:
            rng = torch.Generator().manual_seed(self.rng_seed)
        # One batch ahead: images are decoded while the network works on the batch before.
        with ThreadPoolExecutor(max_workers=1) as ahead:
            chunks = self.order.split(self.batch_size)[: len(self)]
            pending = ahead.submit(self._batch, chunks[0], rng)
            for chunk in chunks[1:]:
                batch = pending.result()
                pending = ahead.submit(self._batch, chunk, rng)
                yield batch
            yield pending.result()

    def _batch(self, indices: torch.Tensor, rng: torch.Generator | None) -> Batch:
        images = self.split.pixels(indices, rng)
        labels = self.split.labels[indices]
        scale = 1.0 if images.is_floating_point() else 255.0
        images = images.to(torch.float32)
        if self.mean is None or self.std is None:
            return images.contiguous(), labels
        mean = torch.tensor(self.mean).mul_(scale).view(1, -1, 1, 1)
        std = torch.tensor(self.std).mul_(scale).view(1, -1, 1, 1)
        return ((images - mean) / std).contiguous(), labels


@dataclass(frozen=True, kw_only=True)
class StoredData:
    """`Data` of two splits; see there for its members."""

    request: DataRequest
    train: Split
    val: Split
    num_classes: int | None
    class_names: tuple[str, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    augmented: bool
    preprocessing: Mapping[str, object] = field(default_factory=dict)

    @property
    def num_train(self) -> int:
        """Training images."""
        return len(self.train.labels)

    @property
    def num_val(self) -> int:
        """Validation images."""
        return len(self.val.labels)

    def train_loader(
        self,
        epoch: int,
        *,
        batch_size: int | None = None,
        subset: int | None = None,
        augmented: bool = True,
    ) -> Loader:
        """See `Data`. Raises UsageError for a subset larger than the training set."""
        if subset is not None and not 1 <= subset <= self.num_train:
            raise UsageError(f"a subset of {subset} of {self.num_train} training images: too many")
        order_seed, augment_seed = epoch_seeds(self.request.seed, epoch)
        order = _shuffled(self.num_train, order_seed)[:subset]
        rng_seed = augment_seed if self.augmented and augmented else None
        return self._loader(self.train, order, batch_size, drop_last=True, rng_seed=rng_seed)

    def val_loader(self, batch_size: int | None = None) -> SplitLoader:
        """See `Data`."""
        order = torch.arange(self.num_val)
        return self._loader(self.val, order, batch_size, drop_last=False, rng_seed=None)

    def val_sample(self, count: int) -> SplitLoader:
        """See `Data`; folders hold one class after another, so the sample is spread over all."""
        order = torch.linspace(0, self.num_val - 1, min(count, self.num_val)).round().long()
        return self._loader(self.val, order, None, drop_last=False, rng_seed=None)

    def calibration_batches(self, n: int) -> SplitLoader:
        """See `Data`."""
        order = _shuffled(self.num_train, epoch_seeds(self.request.seed, 0)[0])
        order = order[: n * self.request.batch_size]
        return self._loader(self.train, order, None, drop_last=False, rng_seed=None)

    def _loader(
        self,
        split: Split,
        order: torch.Tensor,
        batch_size: int | None,
        *,
        drop_last: bool,
        rng_seed: int | None,
    ) -> SplitLoader:
        return SplitLoader(
            split=split,
            order=order,
            batch_size=batch_size or self.request.batch_size,
            drop_last=drop_last,
            rng_seed=rng_seed,
            mean=self.mean,
            std=self.std,
        )


def augmentation(augment: str, moves: Moves) -> tuple[Moves, str]:
    """How images move under "standard", "flip" or "none", where they can by `moves`; in words."""
    moves = moves if augment == "standard" else "none"
    return moves, "none" if augment == "none" else _IN_WORDS[moves]


def epoch_seeds(seed: int, epoch: int) -> tuple[int, int]:
    """Two seeds that differ for every (seed, epoch)."""
    first, second = np.random.SeedSequence([seed, epoch]).generate_state(2)
    return int(first), int(second)


def _shuffled(num: int, seed: int) -> torch.Tensor:
    return torch.randperm(num, generator=torch.Generator().manual_seed(seed))
