"""Which ops read a tensor, in one run of a network that is watched op by op.

What enters: tensors to watch, as the run makes them. What leaves: how many ops read each, and
whether an addition alone does.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ADDS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


class Readers(TorchDispatchMode):
    """Watched tensors are held, so that no other takes their id."""

    def __init__(self) -> None:
        super().__init__()
        self._read_by: dict[int, list[Any]] = {}
        self._held: list[Tensor] = []

    def watched(self, tensor: Tensor) -> Tensor:
        """The tensor; a second time changes nothing."""
        if id(tensor) not in self._read_by:
            self._held.append(tensor)
            self._read_by[id(tensor)] = []
        return tensor

    def of(self, tensor: Tensor) -> int:
        """How many ops have read a watched tensor so far."""
        return len(self._read_by[id(tensor)])

    def is_only_added(self, tensor: Tensor) -> bool:
        """To another tensor of its shape. What is added in place is read as the sum later."""
        readers = self._read_by[id(tensor)]
        return readers[:1] == ["in place"] or readers == ["add"]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for place, leaf in enumerate(tree_leaves((args, kwargs))):
            if isinstance(leaf, Tensor) and id(leaf) in self._read_by:
                in_place = func is torch.ops.aten.add_.Tensor and place == 0
                word = "in place" if in_place else "add"
                self._read_by[id(leaf)].append(word if is_sum(func, args, kwargs) else func)
        return func(*args, **(kwargs or {}))


def is_sum(func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
    """Whether a call adds two different tensors of one shape, and nothing else."""
    if func not in _ADDS or kwargs or len(args) != 2:
        return False
    a, b = args
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a is not b and a.shape == b.shape
