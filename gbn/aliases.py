"""Tensors that modules hold beside their tables of parameters and buffers.

Recurrent layers keep a list of their weights, other modules a plain attribute. What enters: a model
and which tensor takes the place of which. What leaves: the model, holding the new ones.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gbn.walk import modules, remembered

_TABLES = ("_parameters", "_buffers", "_modules")
_HOLDERS = (Tensor, list, tuple, dict)
Held = list[tuple[dict[str, Any], str, Any]]


def replace_aliases(model: nn.Module, replaced: Mapping[int, Tensor]) -> Held:
    """Put new tensors in the place of old ones; `replaced` has them by the `id` of the old one.

    Returns what was held before, for `restore_aliases`.
    """
    before: Held = []
    for held, name in remembered(model, _holders):
        value = held.get(name)
        new = _replaced(value, replaced)
        if new is not value:
            before.append((held, name, value))
            held[name] = new
    return before


def _holders(model: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Attributes in which there could be tensors, and their names."""
    return [
        (held, name)
        for held in map(vars, modules(model))
        for name, value in held.items()
        if isinstance(value, _HOLDERS) and name not in _TABLES and _may_hold(value)
    ]


def _may_hold(value: Any) -> bool:
    """A tensor, or a collection of more than plain values."""
    if isinstance(value, Tensor):
        return True
    items = value.values() if isinstance(value, dict) else value
    return any(isinstance(item, Tensor) for item in items)


def restore_aliases(before: Held) -> None:
    """Undo `replace_aliases`."""
    for held, name, value in before:
        held[name] = value


def _replaced(value: Any, replaced: Mapping[int, Tensor]) -> Any:
    """The value itself where it holds none of these tensors."""
    if isinstance(value, Tensor):
        return replaced.get(id(value), value)
    if not value:
        return value
    if type(value) in (list, tuple) and any(id(item) in replaced for item in value):
        return type(value)(replaced.get(id(item), item) for item in value)
    if type(value) is dict and any(id(item) in replaced for item in value.values()):
        return {key: replaced.get(id(item), item) for key, item in value.items()}
    return value
