"""What is made good after a cut without training: the images for it, and running statistics.

Enters: a network in eval mode, and training images as they are. Leaves: one batch to refit layers
on, or batch norms whose statistics are those of the images. Which of the two: `Recipe.refits`.
"""

from collections.abc import Iterable
from types import MethodType

import torch
from torch import Tensor, nn

import gbn
from gbn.norms import BatchNorm, tracked_norms
from pipeline.data import Data

_REFIT_IMAGES, _REFIT_ROWS = 256, 16384
_REFIT_VALUES = 2**24  # numbers in these images at most: 111 of 3 x 224 x 224
_LAST_TIMES = 4  # as many images and rows where no training follows


def refit_inputs(data: Data, *, last: bool) -> tuple[Tensor, gbn.RefitSettings]:
    """Training images (N, ...) to refit layers on, and how. last: no training follows, so that a
    closer fit is worth its time."""
    times = _LAST_TIMES if last else 1
    inputs = one_batch(data, times * _REFIT_IMAGES, _REFIT_VALUES)
    return inputs, gbn.RefitSettings(rows=times * _REFIT_ROWS)


def one_batch(data: Data, images: int, values: int) -> Tensor:
    """At most so many training images (N, ...), of at most so many `values` in all, but one."""
    found: list[Tensor] = []
    for batch, _ in data.calibration_batches(images):
        fitting = max(values // batch[0].numel(), 1)
        left = min(fitting, images) - sum(map(len, found))
        if left <= 0:
            break
        found.append(batch[:left])
    return torch.cat(found)


def renew_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """After a cut they are off; in place, a plain average over whole batches."""
    norms = [*tracked_norms(model).values()]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()  # and nothing else: dropout would distort what norms see
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    synchronised = [norm for norm in norms if isinstance(norm, nn.SyncBatchNorm)]
    for norm in synchronised:
        # its own would wait for the other processes, which do not run this
        norm.forward = MethodType(BatchNorm.forward, norm)  # type: ignore[method-assign]
    whole = 0
    try:
        with torch.no_grad():
            for number, images in enumerate(batches):
                if number and len(images) < whole:
                    continue  # a part of a batch would weigh as much as a whole one
                whole = len(images)
                model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for norm in synchronised:
            del norm.forward
        model.eval()
