"""Few images, made to go a long way: each training image is a mixture of two.

Enters: normalised images (N, C, H, W). Leaves: a `Data` whose labels are zeros and mean nothing:
what an image shows is for a teacher to say. Mixtures (Zhang et al. 2018, "mixup") lie where classes
meet, about which images of one class say little; without them a network soon knows the few images
by heart.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data_types import Batch, Data, DataRequest, Loader
from pipeline.stored_data import StoredData, TensorSplit, epoch_seeds


@dataclass(frozen=True, kw_only=True)
class MixedLoader:
    """Batches of `loader`, each image mixed with another of its batch; the same for one `seed`."""

    loader: Loader
    seed: int

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        rng = torch.Generator().manual_seed(self.seed)
        for images, labels in self.loader:
            yield mixed(images, rng), labels


@dataclass(frozen=True, kw_only=True)
class MixedData(StoredData):
    """`StoredData` whose training images are mixtures; see there."""

    def train_loader(
        self,
        epoch: int,
        *,
        batch_size: int | None = None,
        subset: int | None = None,
        augmented: bool = True,
    ) -> MixedLoader:
        """See `Data`."""
        loader = super().train_loader(
            epoch, batch_size=batch_size, subset=subset, augmented=augmented
        )
        return MixedLoader(loader=loader, seed=sum(epoch_seeds(self.request.seed, epoch)))


def mixed(images: Tensor, rng: torch.Generator) -> Tensor:
    """Each image times a share drawn from 0..1, and another one times the rest.

    Scaled so that what is normalised keeps its variance.
    """
    share = torch.rand((len(images), 1, 1, 1), generator=rng)
    others = images[torch.randperm(len(images), generator=rng)]
    scale = (share.square() + (1 - share).square()).sqrt()
    return (share * images + (1 - share) * others) / scale


def mixtures(images: Tensor, rounds: int, seed: int) -> Tensor:
    """(rounds * N, C, H, W): each image `rounds` times, mixed with another one."""
    rng = torch.Generator().manual_seed(seed)
    return torch.cat([mixed(images, rng) for _ in range(rounds)])


def made_images(training: Tensor, held_out: Tensor, batch_size: int, seed: int) -> Data:
    """Mirrored, shifted and mixed for training; held-out images as they are."""
    channels, height, width = training.shape[1:]

    def split(images: Tensor) -> TensorSplit:
        labels = torch.zeros(len(images), dtype=torch.int64)
        return TensorSplit(
            images=images, labels=labels, height_width=(height, width), moves="shift"
        )

    return MixedData(
        request=DataRequest(
            source="images made from the network",
            input_size=(channels, height, width),
            batch_size=batch_size,
            seed=seed,
        ),
        train=split(training),
        val=split(held_out),
        num_classes=None,
        class_names=None,
        mean=None,
        std=None,
        augmented=True,
    )
