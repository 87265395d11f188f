"""Layers that functions hold: a copy of the model shares them with the original.

`self.f = lambda x: conv(x)` keeps the layer in the function's closure, where `copy.deepcopy` does
not look: the copy calls the layer of the original, whatever is done to its own. What enters: a
model. What leaves: its tensors that are reached so, with the name of the function, to be frozen.
"""

import functools
from collections import OrderedDict
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from gbn.walk import named_modules, named_tensors

_FUNCTIONS = (FunctionType, functools.partial)
_PLAIN = frozenset((bool, int, float, str, type(None)))
_TABLE_KINDS = frozenset((dict, OrderedDict))
_NESTS = (dict, list, tuple)
_TABLES = ("_parameters", "_buffers", "_modules")


def captured_tensors(model: nn.Module) -> dict[int, str]:
    """Which function holds each tensor, by the `id` of the tensor."""
    found: dict[int, str] = {}
    by_class: dict[type, list[nn.Module | Tensor]] = {}
    for path, module in named_modules(model):
        kind = type(module)
        if kind not in by_class:
            by_class[kind] = [*_held_by(kind.forward, set())]
        held = [("forward", value) for value in by_class[kind]]
        for name, function in _functions(module):
            held += [(name, value) for value in _held_by(function, set())]
        for name, value in held:
            where = f"{path}.{name}" if path else name
            tensors = (
                (tensor for _, tensor in named_tensors(value))
                if isinstance(value, nn.Module)
                else (value,)
            )
            found.update({id(tensor): where for tensor in tensors})
    if not found:
        return found
    own = {id(tensor) for _, tensor in named_tensors(model)}
    return {key: where for key, where in found.items() if key in own}


def _functions(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Functions among the attributes, and in lists and dicts of them, such as hooks."""
    for name, value in vars(module).items():
        kind = type(value)
        if kind in _PLAIN or (kind in _TABLE_KINDS and not value):
            continue
        if isinstance(value, _FUNCTIONS):
            yield name, value
        elif isinstance(value, _NESTS) and value and name not in _TABLES:
            for item in value.values() if isinstance(value, dict) else value:
                if isinstance(item, _FUNCTIONS):
                    yield name, item


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
