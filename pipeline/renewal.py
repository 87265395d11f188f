"""Batch norms' running statistics, anew.

Enters: a network in eval mode, and batches of images on its device. Leaves: the network with
statistics that are those of the images.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gbn.norms import tracked_norms


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
        model.eval()
