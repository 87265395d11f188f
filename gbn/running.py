"""Running a model under watch: eval mode, no gradients, plain attention, known module paths."""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from gbn.errors import TraceError

_CONTAINERS = (dict, list, OrderedDict, set)
# What Python code that meets a tensor of a size it did not expect is known to raise.
_FORWARD_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)


def run_model(model: nn.Module, example_inputs: Any) -> Any:
    """Call the model with a tensor, a tuple of positional or a mapping of keyword arguments.

    The forward gets copies of the tensors: it may write into its inputs.
    """
    example_inputs = tree_map(_own_copy, example_inputs)
    try:
        if isinstance(example_inputs, Mapping):
            return model(**example_inputs)
        if isinstance(example_inputs, tuple | list):
            return model(*example_inputs)
        return model(example_inputs)
    except _FORWARD_ERRORS as error:
        text = " ".join(str(error).split())[:300]
        raise TraceError(
            f"the model does not run on the example inputs: {type(error).__name__}: {text}"
        ) from error


def _own_copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@contextlib.contextmanager
def tracing_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, attention computed by plain ops; all restored afterwards.

    What the forward writes on its modules (a cache, a counter, a buffer) is taken back as well.
    """
    held = [_Held.of(module) for module in model.modules()]
    buffers = [(buffer, buffer.clone(), buffer._version) for buffer in model.buffers()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module_state in held:
            module_state.restore()
        with torch.no_grad():
            for buffer, value, version in buffers:
                if buffer._version != version:
                    buffer.copy_(value)


@dataclass(frozen=True)
class _Held:
    """The attributes of a module, and the items of those that are dicts or lists."""

    attributes: dict[str, Any]
    saved: dict[str, Any]
    items: tuple[tuple[Any, Any], ...]

    @classmethod
    def of(cls, module: nn.Module) -> "_Held":
        values = vars(module)
        items = tuple((v, copy.copy(v)) for v in values.values() if type(v) in _CONTAINERS)
        return cls(values, dict(values), items)

    def restore(self) -> None:
        for container, items in self.items:
            if isinstance(container, list):
                container[:] = items
            else:
                container.clear()
                container.update(items)
        self.attributes.clear()
        self.attributes.update(self.saved)


@contextlib.contextmanager
def module_paths(model: nn.Module) -> Iterator[list["Visit"]]:
    """A stack of the modules that are running, innermost last."""
    stack: list[Visit] = []
    handles = []
    for path, module in model.named_modules():
        if not path:
            continue
        handles.append(module.register_forward_pre_hook(_enter(stack, path), prepend=True))
        handles.append(module.register_forward_hook(_leave(stack), always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Visit:
    """One running call of a module: its path, its class, and the ops it has executed so far."""

    path: str
    kind: type[nn.Module]
    num_ops: int = 0


def _enter(stack: list[Visit], path: str) -> Any:
    def hook(module: nn.Module, _inputs: Any) -> None:
        stack.append(Visit(path, type(module)))

    return hook


def _leave(stack: list[Visit]) -> Any:
    def hook(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        stack.pop()

    return hook
