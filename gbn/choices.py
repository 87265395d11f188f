"""Networks that choose by value: detectors keep the boxes above a score, and the best of those.

Two runs that are equal up to rounding may choose differently where two scores tie, and then differ
in everything. So the run of the reference notes what it chose, and the run of the candidate is made
to choose the same: given the same choices, the two networks must be equal.

A choice is any op that makes integers or booleans out of floats. What enters: a run. What leaves:
`Choices`, to be followed by another run. Ops whose inputs have other shapes in the other run (their
channels were removed) choose for themselves.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from gbn.distance import distance
from gbn.rules import numbers_in, tensors_in

aten = torch.ops.aten
_MADE_ANEW = ("new_", "empty", "zeros", "ones", "full")
_VALUES_AND_INDICES = {aten.topk: 2, aten.sort: 1, aten.max: 1, aten.min: 1}  # place of `dim`

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Choice:
    """What one op chose, what it was told, and the floats that it chose from."""

    op: str
    numbers: tuple[int | float, ...]
    shapes: Shapes
    chosen: tuple[Tensor, ...]
    sources: tuple[Tensor, ...]


@dataclass
class Choices:
    """Choices of one run in their order, and how another run that followed them compares.

    `num_overruled`: how often it would have chosen otherwise; `max_abs_diff`: largest difference of
    what it chose from, relative to the largest value.
    """

    made: list[Choice] = field(default_factory=list)
    num_overruled: int = 0
    max_abs_diff: float = 0.0


def _shapes(tensors: Iterable[Tensor]) -> Shapes:
    return tuple(tuple(tensor.shape) for tensor in tensors)


def _chooses(func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    name = func.overloadpacket.__name__
    if func._schema.is_mutable or name.startswith(_MADE_ANEW) or name.endswith("_like"):
        return False  # it is given no value to choose by, or writes what was chosen elsewhere
    whole = [not out.is_floating_point() and not out.is_complex() for out in outputs]
    if not any(whole) or not any(tensor.is_floating_point() for tensor in inputs):
        return False
    return all(whole) or func.overloadpacket in _VALUES_AND_INDICES


def _floats(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor.is_floating_point()]


class NoteChoices(TorchDispatchMode):
    """Notes the choices of the run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.choices = Choices()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = list(tensors_in((args, kwargs or {}))), list(tensors_in(out))
        if _chooses(func, inputs, outputs):
            chosen = tuple(t.clone() for t in outputs if not t.is_floating_point())
            sources = tuple(tensor.clone() for tensor in _floats(inputs))
            numbers = numbers_in((args, kwargs or {}))
            self.choices.made.append(Choice(str(func), numbers, _shapes(inputs), chosen, sources))
        return out


class FollowChoices(TorchDispatchMode):
    """Makes the run inside choose as another did, as long as it goes the same way."""

    def __init__(self, choices: Choices) -> None:
        super().__init__()
        self._choices = choices
        self._next = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = list(tensors_in((args, kwargs or {}))), list(tensors_in(out))
        if not _chooses(func, inputs, outputs) or self._next >= len(self._choices.made):
            return out
        choice = self._choices.made[self._next]
        self._next += 1
        if choice.op != str(func):
            self._next = len(self._choices.made)  # it went another way
            return out
        if choice.shapes != _shapes(inputs):
            return out
        told_same = choice.numbers == numbers_in((args, kwargs or {}))
        # other numbers (a threshold computed from a width) are no rounding: never excused
        apart = distance(choice.sources, _floats(inputs)) if told_same else math.inf
        self._choices.max_abs_diff = max(self._choices.max_abs_diff, apart)
        own = [t for t in outputs if not t.is_floating_point()]
        if not told_same or all(map(torch.equal, own, choice.chosen)):
            return out
        self._choices.num_overruled += 1
        chosen = tuple(tensor.clone() for tensor in choice.chosen)  # it may be written into
        return _as_chosen(func, args, kwargs or {}, out, chosen)


def _as_chosen(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, chosen: tuple[Tensor, ...]
) -> Any:
    """The result of the op, had it chosen so: values are those of its own input."""
    place = _VALUES_AND_INDICES.get(func.overloadpacket)
    if place is None or len(list(tensors_in(out))) == 1:
        left = iter(chosen)
        return tree_map(lambda v: next(left) if isinstance(v, Tensor) else v, out)
    x, (index,) = args[0], chosen
    dim = args[place] if len(args) > place else kwargs.get("dim", -1)
    removed = index.ndim < x.ndim
    where = index.unsqueeze(dim) if removed else index
    values = x.gather(dim, where)
    return type(out)((values.squeeze(dim) if removed else values, index))
