"""Running a model under watch: eval mode, no gradients, plain attention, known module paths."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gbn.errors import TraceError

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
    """Call the model with a tensor, a tuple of positional or a mapping of keyword arguments."""
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


@contextlib.contextmanager
def tracing_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, attention computed by plain ops; all restored afterwards."""
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, flag in training.items():
            module.training = flag


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
