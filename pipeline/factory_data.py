"""Data from the user's own loaders.

What enters: a `DataRequest` whose source names a callable without arguments that returns a
training and a validation loader. What leaves: `FactoryData`, which is a `Data`.
Batch size, order and augmentation are the loaders' own; torch's random state is seeded by
(seed, epoch) while a pass starts, so that loaders that draw from it repeat.
Refused: anything but two loaders with a length and a dataset, and batches that are not float32
(N, C, H, W) with int64 (N,), or with tensors of any structure where the task is the user's own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from pipeline.data_types import Batch, DataRequest
from pipeline.errors import UsageError, one_line
from pipeline.importers.callables import FOREIGN_ERRORS, resolve_callable
from pipeline.stored_data import epoch_seeds


@dataclass(frozen=True, kw_only=True)
class FactoryLoader:
    """One pass over a loader of the user; `subset` cuts it after so many images."""

    loader: Any
    seed: int
    max_batches: int | None = None
    subset: int | None = None

    def __len__(self) -> int:
        num_batches = len(self.loader)
        return num_batches if self.max_batches is None else min(num_batches, self.max_batches)

    def __iter__(self) -> Iterator[Batch]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            batches = iter(self.loader)
            first = next(batches, None)
        left = self.subset
        for number in range(len(self)):
            batch = first if number == 0 else next(batches, None)
            if batch is None or left == 0:
                return
            images, targets = batch
            if left is not None:
                part = slice(min(left, len(images)))
                images, targets = images[part], tree_map(itemgetter(part), targets)
                left -= len(images)
            yield images, targets


@dataclass(frozen=True, kw_only=True)
class FactoryData:
    """`Data` of two loaders; see there for its members."""

    request: DataRequest
    train: Any
    val: Any

    @property
    def num_classes(self) -> int | None:
        """Not stated by loaders."""
        return None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Not stated by loaders."""
        return None

    @property
    def num_train(self) -> int:
        """Images in the training loader's dataset."""
        return len(self.train.dataset)

    @property
    def num_val(self) -> int:
        """Images in the validation loader's dataset."""
        return len(self.val.dataset)

    @property
    def mean(self) -> tuple[float, ...] | None:
        """As stated in the request; not applied here."""
        return self.request.mean

    @property
    def std(self) -> tuple[float, ...] | None:
        """As stated in the request; not applied here."""
        return self.request.std

    @property
    def preprocessing(self) -> Mapping[str, object]:
        """That of the user's loaders, which is not known here."""
        return {
            "source": f"loaders of {self.request.source}",
            "normalised": "by the loaders",
            "augmentation": "that of the loaders, for calibration too",
            "batches": "as the loaders make them",
        }

    def train_loader(
        self,
        epoch: int,
        *,
        batch_size: int | None = None,
        subset: int | None = None,
        augmented: bool = True,  # noqa: ARG002 - the loader's own cannot be taken off
    ) -> FactoryLoader:
        """See `Data`. Raises UsageError for another batch size than the loader's own."""
        _check_batch_size(self.train, batch_size)
        if subset is not None and not 1 <= subset <= self.num_train:
            raise UsageError(f"a subset of {subset} of {self.num_train} training images: too many")
        set_epoch = getattr(getattr(self.train, "sampler", None), "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
        return FactoryLoader(
            loader=self.train, seed=epoch_seeds(self.request.seed, epoch)[0], subset=subset
        )

    def val_loader(self, batch_size: int | None = None) -> FactoryLoader:
        """See `Data`. Raises UsageError for another batch size than the loader's own."""
        _check_batch_size(self.val, batch_size)
        return FactoryLoader(loader=self.val, seed=self.request.seed)

    def val_sample(self, count: int) -> FactoryLoader:
        """See `Data`; the first images, since loaders can only be had in their own order."""
        return FactoryLoader(loader=self.val, seed=self.request.seed, subset=count)

    def calibration_batches(self, n: int) -> FactoryLoader:
        """See `Data`; the loader's own augmentation cannot be taken off."""
        return FactoryLoader(loader=self.train, seed=self.request.seed, max_batches=n)


def load_factory(request: DataRequest) -> FactoryData:
    """The loaders that the callable `request.source` returns, after a look at a first batch."""
    where = f"--data {request.source}"
    factory = resolve_callable(request.source, "--data")
    try:
        made = factory()
    except FOREIGN_ERRORS as error:
        raise UsageError(f"{where}: calling it fails: {one_line(error)}") from error
    if not isinstance(made, tuple | list) or len(made) != 2:
        held = f"{len(made)} items" if isinstance(made, tuple | list) else type(made).__name__
        raise UsageError(f"{where}: returns {held}; it must return (train loader, val loader)")
    for name, loader in zip(("train", "val"), made, strict=True):
        the_loader = f"{where}: the {name} loader"
        _check_batch(_first_batch(loader, the_loader), the_loader, request)
    return FactoryData(request=request, train=made[0], val=made[1])


def _check_batch_size(loader: Any, batch_size: int | None) -> None:
    own = getattr(loader, "batch_size", None)
    if batch_size not in (None, own):
        raise UsageError(
            f"the loader makes batches of {own}, {batch_size} were asked for; set the batch size "
            "in the factory"
        )


def _first_batch(loader: Any, where: str) -> Any:
    try:
        sizes = len(loader), len(loader.dataset)
    except (TypeError, AttributeError) as error:
        raise UsageError(
            f"{where} ({type(loader).__name__}) has no length or no dataset; use a "
            "torch.utils.data.DataLoader over a dataset with a length"
        ) from error
    if 0 in sizes:
        raise UsageError(f"{where} is empty")
    try:
        with torch.random.fork_rng(devices=[]):
            return next(iter(loader))
    except FOREIGN_ERRORS as error:
        raise UsageError(f"{where} fails at its first batch: {one_line(error)}") from error


def _check_batch(batch: Any, where: str, request: DataRequest) -> None:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise UsageError(f"{where} gives a {type(batch).__name__}; it must give (images, labels)")
    images, labels = batch
    _check_tensor(images, f"{where} gives images", torch.float32, request.input_size)
    if not request.any_targets:
        _check_tensor(labels, f"{where} gives labels", torch.int64, ())
        if len(labels) != len(images):
            raise UsageError(f"{where} gives {len(images)} images with {len(labels)} labels")
        return
    other = [type(leaf).__name__ for leaf in tree_leaves(labels) if not _is_tensor(leaf)]
    if other:
        raise UsageError(
            f"{where} gives targets with a {other[0]}; give tensors, or tuples or dicts of them"
        )


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _check_tensor(value: Any, what: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not isinstance(value, torch.Tensor):
        raise UsageError(f"{what} as {type(value).__name__}, not as a tensor")
    if value.dtype != dtype or value.ndim == 0 or tuple(value.shape[1:]) != shape:
        wanted = (len(value) if value.ndim else 1, *shape)
        raise UsageError(
            f"{what} {value.dtype} {tuple(value.shape)}; the model takes {dtype} {wanted}"
        )
