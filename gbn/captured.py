"""Layers that functions hold: a copy of the model shares them with the original.

`self.f = lambda x: conv(x)` keeps the layer in the function's closure, where `copy.deepcopy` does
not look: the copy calls the layer of the original, whatever is done to its own. What enters: a
model. What leaves: its tensors that are reached so, with the name of the function, to be frozen.
"""

import functools
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import Tensor, nn


def captured_tensors(model: nn.Module) -> dict[int, str]:
    """Which function holds each tensor, by the `id` of the tensor."""
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, function in _functions(module):
            where = f"{path}.{name}" if path else name
            for value in _held_by(function, set()):
                tensors = (
                    (*value.parameters(), *value.buffers())
                    if isinstance(value, nn.Module)
                    else (value,)
                )
                found.update({id(t): where for t in tensors if id(t) in own})
    return found


def _functions(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Functions among the attributes, in lists and dicts of them, hooks, and the forward."""
    for name, value in vars(module).items():
        items = value.values() if isinstance(value, dict) else value
        for item in items if isinstance(value, dict | list | tuple) else (value,):
            if isinstance(item, FunctionType | functools.partial):
                yield name, item
    forward = type(module).forward
    if isinstance(forward, FunctionType):
        yield "forward", forward


def _held_by(value: Any, seen: set[int]) -> Iterator[nn.Module | Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module | Tensor):
        yield value
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            try:
                yield from _held_by(cell.cell_contents, seen)
            except ValueError:  # not filled yet
                continue
        yield from _held_by([value.__defaults__, value.__kwdefaults__], seen)
    elif isinstance(value, functools.partial):
        yield from _held_by([value.func, value.args, value.keywords], seen)
    elif isinstance(value, dict):
        yield from _held_by([*value.values()], seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _held_by(item, seen)
