"""Training batches by number, and in smaller parts.

Enters: the user's data. Leaves: the same batch for the same number, whoever asks, whenever.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pipeline.data import Batch, Data


class BatchStream:
    """Training batches without end, by number: batch n is the same whoever asks, whenever."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self.per_epoch = len(data.train_loader(0))

    def take(self, start: int, count: int, *, augmented: bool = True) -> Iterator[Batch]:
        """Batches start .. start + count - 1; not `augmented`: the same images as they are."""
        epoch, skip = divmod(start, self.per_epoch)
        while count > 0:
            for number, batch in enumerate(self._data.train_loader(epoch, augmented=augmented)):
                if number < skip:
                    continue
                if count == 0:
                    return
                count -= 1
                yield batch
            epoch, skip = epoch + 1, 0


def in_small_batches(images: Tensor, targets: Any, size: int) -> Iterator[Batch]:
    """Batches of at most `size`; one, where targets of any structure do not go by images."""
    leaves, structure = tree_flatten(targets)
    if not all(isinstance(leaf, Tensor) and leaf.shape[:1] == images.shape[:1] for leaf in leaves):
        yield images, targets
        return
    for start in range(0, len(images), size):
        chosen = slice(start, start + size)
        yield images[chosen], tree_unflatten([leaf[chosen] for leaf in leaves], structure)
