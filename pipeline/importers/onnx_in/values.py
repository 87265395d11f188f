"""What a name of the ONNX graph stands for while the network is built.

Three kinds: a `Const` whose values are known, `Items`, a short list of numbers of which some are
known only when the network runs (sizes, mostly), and an `fx.Node`, a tensor of the run.

Every node of the run carries *probes* in `meta[PROBES]`: what it gives for one or two trial sizes
of the free batch, tensors without values on the meta device. What is the same for both does not
depend on the batch. None: it depends on values, so nothing is known.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

PROBES = "onnx_probes"

Number: TypeAlias = int | float | bool | fx.Node


@dataclass(frozen=True)
class Const:
    """A tensor known at import; `name` is that of the initializer if it is one, unchanged."""

    tensor: Tensor
    name: str = ""


@dataclass(frozen=True)
class Items:
    """A small tensor, as Python numbers and nodes that give such numbers, in row-major order."""

    values: tuple[Number, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """The position in `values` of each element, in its shape: what layout ops work on."""
        return np.arange(len(self.values)).reshape(self.shape)

    def moved(self, places: npt.NDArray[np.int64]) -> "Items":
        """The elements at `places`, in the shape of these."""
        return Items(tuple(self.values[p] for p in places.reshape(-1)), places.shape, self.dtype)

    @property
    def is_known(self) -> bool:
        """Whether all values are known at import."""
        return not any(isinstance(value, fx.Node) for value in self.values)

    def to_const(self) -> Const:
        """As a tensor; only if `is_known`."""
        return Const(torch.tensor(self.values, dtype=self.dtype).reshape(self.shape))


@dataclass(frozen=True)
class Sequence:
    """An ONNX sequence; its length is known at import."""

    values: tuple["Const | Items | fx.Node", ...]


Value: TypeAlias = Const | Items | Sequence | fx.Node


def probes_of(node: fx.Node) -> tuple[Any, ...] | None:
    """The results of the trial runs, None where they are not known."""
    return node.meta.get(PROBES)


def agreed(node: fx.Node) -> Any:
    """The number that all trial runs give, None where they differ or give none."""
    probes = probes_of(node)
    if not probes or isinstance(probes[0], Tensor):
        return None
    return probes[0] if all(probe == probes[0] for probe in probes) else None
