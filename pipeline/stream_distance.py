"""How far the streams of a pruned network are from those of the original, while it trains.

Enters: both networks, the plan between them, and which layers read a stream. Leaves: a scalar that
can be differentiated, after each pair of forward passes. The channels that are left are compared
with the same ones of the original (a FitNet hint, Romero et al. 2015, with nothing to learn in
between).
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gbn
from gbn.streams import StreamReader


class StreamDistance:
    """Hooks on both networks; within `watching` the last tensors that were read are at hand."""

    def __init__(
        self,
        original: nn.Module,
        small: nn.Module,
        plan: gbn.PrunePlan,
        readers: Sequence[StreamReader],
    ) -> None:
        self._networks = (original, small)
        self._readers = readers
        self._read: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        device = next(small.parameters()).device
        self._kept: dict[str, Tensor | None] = {}
        for reader in readers:
            kept = reader.kept(plan)
            self._kept[reader.path] = None if kept is None else torch.tensor(kept, device=device)

    @contextlib.contextmanager
    def watching(self) -> Iterator["StreamDistance"]:
        """Both networks keep what their layers read."""
        with contextlib.ExitStack() as hooks:
            for network, read in zip(self._networks, self._read, strict=True):
                for reader in self._readers:
                    handle = network.get_submodule(reader.path).register_forward_pre_hook(
                        _keeper(read, reader.path)
                    )
                    hooks.callback(handle.remove)
            yield self
        for read in self._read:
            read.clear()

    def take(self) -> Tensor | None:
        """Squared distance over the original's mean square, a mean over the streams; then forgets.

        None where one of the two did not run since, or none of the layers.
        """
        originals, own = (dict(read) for read in self._read)
        for read in self._read:
            read.clear()
        distances = [
            _distance(own[reader.path], self._left(originals[reader.path], reader))
            for reader in self._readers
            if reader.path in own and reader.path in originals
        ]
        return torch.stack(distances).mean() if distances else None

    def _left(self, taught: Tensor, reader: StreamReader) -> Tensor:
        kept = self._kept[reader.path]
        return taught if kept is None else taught.index_select(reader.axis, kept)


def _keeper(read: dict[str, Tensor], path: str) -> Any:
    def hook(_layer: nn.Module, given: tuple[Any, ...]) -> None:
        read[path] = given[0]

    return hook


def _distance(found: Tensor, taught: Tensor) -> Tensor:
    taught = taught.float()
    scale = taught.square().mean().clamp(min=torch.finfo(torch.float32).tiny)
    return F.mse_loss(found.float(), taught) / scale
