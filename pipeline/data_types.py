"""What data enters as (`DataRequest`) and what every source of data offers (`Data`).

A batch is (images, targets): float32 (N, C, H, W), normalised, and labels, int64 (N,). For a task
of the user's own, targets are what its loss takes: tensors, or tuples, lists or dicts of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline.config_sections import AUGMENTATIONS
from pipeline.errors import UsageError

Batch = tuple[torch.Tensor, Any]


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """The data a run works on.

    source: a folder with train/ and val/ or test/, a .npz file, or FILE.py:FACTORY or
        package.module:FACTORY.
    input_size: (C, H, W) of the network.
    mean, std: per channel, for pixels scaled to 0..1; the user's, else the model's, else None.
    workers: threads that decode images; 0 is one.
    augment: of the training images: "standard" mirrors and moves them, "flip" mirrors them alone,
        "auto" is `auto_augment` for images in files and "none" for arrays.
    seed: of the order and the augmentation, together with the epoch.
    val_only: take the validation images for training as well, so that no others need be there.
    any_targets: loaders may give other targets than labels.
    """

    source: str
    input_size: tuple[int, int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    batch_size: int = 128
    workers: int = 2
    augment: str = "auto"
    auto_augment: str = "standard"
    seed: int = 0
    val_only: bool = False
    any_targets: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size}: must be 1 or more")
        if self.workers < 0:
            raise UsageError(f"--workers {self.workers}: must be 0 or more")
        if self.augment not in AUGMENTATIONS:
            raise UsageError(f"--augment {self.augment}: must be one of {', '.join(AUGMENTATIONS)}")
        if (self.mean is None) != (self.std is None):
            raise UsageError("--mean and --std: give both or neither")
        if self.mean is None or self.std is None:
            return
        channels = self.input_size[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise UsageError(
                f"--mean has {len(self.mean)} and --std {len(self.std)} values; the model takes "
                f"{channels} channels"
            )
        if any(value <= 0 for value in self.std):
            raise UsageError(f"--std {','.join(map(str, self.std))}: must be positive")


class Loader(Protocol):
    """Batches of one pass, and how many there are; it may be iterated again, with equal result."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Data(Protocol):
    """Training and validation data.

    num_classes, class_names: None where the source does not say.
    mean, std: what pixels were normalised with; None where they came normalised.
    preprocessing: for the report and the metadata of the ONNX file.
    """

    @property
    def num_classes(self) -> int | None: ...

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    @property
    def num_train(self) -> int: ...

    @property
    def num_val(self) -> int: ...

    @property
    def mean(self) -> tuple[float, ...] | None: ...

    @property
    def std(self) -> tuple[float, ...] | None: ...

    @property
    def preprocessing(self) -> Mapping[str, object]: ...

    def train_loader(
        self,
        epoch: int,
        *,
        batch_size: int | None = None,
        subset: int | None = None,
        augmented: bool = True,
    ) -> Loader:
        """Shuffled, augmented batches, the same for the same seed and epoch.

        augmented: off, the same images as they are, where that can be had.

        An incomplete last batch is left out when there is another one: batch norms need company.
        subset: only this many images, drawn anew each epoch.
        """

    def val_loader(self, batch_size: int | None = None) -> Loader:
        """All validation images in their own order."""

    def val_sample(self, count: int) -> Loader:
        """At most `count` validation images, the same each time, spread over all where they can be
        had by index."""

    def calibration_batches(self, n: int) -> Loader:
        """At most `n` batches of training images without augmentation, in one fixed order."""
