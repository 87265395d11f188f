"""Walking over a model's modules and tensors, as `nn.Module.named_modules` and its kin do.

Theirs are nested generators, one a level, and a trace walks a dozen times: that took a tenth of it.
Within `walked_once` a model is walked once.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from torch import Tensor, nn

Walk = list[tuple[str, nn.Module]]
Found = TypeVar("Found")
# The model that is being traced in this context, and what was found on it, by who found it.
_KNOWN: ContextVar[tuple[nn.Module, dict[Any, Any]] | None] = ContextVar("_KNOWN", default=None)


@contextlib.contextmanager
def walked_once(model: nn.Module) -> Iterator[None]:
    """Meanwhile the model keeps its modules, so that they need not be looked for again."""
    token = _KNOWN.set((model, {}))
    try:
        yield
    finally:
        _KNOWN.reset(token)


def remembered(model: nn.Module, find: Callable[[nn.Module], Found]) -> Found:
    """`find(model)`, which is not to be changed; within `walked_once` it is found once."""
    known = _KNOWN.get()
    if known is None or known[0] is not model:
        return find(model)
    if find not in known[1]:
        known[1][find] = find(model)
    return cast(Found, known[1][find])


def named_modules(model: nn.Module, *, twice: bool = False) -> Walk:
    """(path, module), each before its children. `twice`: a shared module under each of its paths.

    As `model.named_modules(remove_duplicate=not twice)`. The list is not to be changed.
    """
    return remembered(model, _walk_twice if twice else _walk)


def _walk_twice(model: nn.Module) -> Walk:
    return _walk(model, twice=True)


def _walk(model: nn.Module, twice: bool = False) -> Walk:
    found: Walk = []
    seen: set[nn.Module] = set()
    stack = [("", model)]
    while stack:
        path, module = stack.pop()
        if not twice:
            if module in seen:
                continue
            seen.add(module)
        found.append((path, module))
        if module._modules:
            start = f"{path}." if path else ""
            for name, child in reversed(module._modules.items()):
                if child is not None:
                    stack.append((start + name, child))
    return found


def modules(model: nn.Module) -> list[nn.Module]:
    """As `model.modules()`."""
    return [module for _, module in named_modules(model)]


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """All parameters, then all buffers; shared ones by their first name."""
    walked = named_modules(model)
    return [*_named_in(walked, "_parameters"), *_named_in(walked, "_buffers")]


def named_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """As `model.named_parameters()`."""
    return [*_named_in(named_modules(model), "_parameters")]


def _named_in(walked: Walk, table: str) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for path, module in walked:
        for name, tensor in getattr(module, table).items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield (f"{path}.{name}" if path else name), tensor
