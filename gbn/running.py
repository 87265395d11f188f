"""Running a model under watch: eval mode, no gradients, plain attention, known module paths.

What enters: a model and its inputs. What leaves: what the forward returned, and its tensors.
Refused: TorchScript modules, inference mode, and outputs in which tensors could be hidden.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from gbn.errors import GbnError, TraceError
from gbn.walk import modules, named_modules, named_tensors

_CONTAINERS = frozenset((dict, list, OrderedDict, set))
_PLAIN = (bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device)
_SEED = 0  # of every watched run: a forward's own randomness must not tell two networks apart
# What Python code that meets a tensor of a size it did not expect is known to raise.
FORWARD_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)


class WatchEnded(Exception):  # noqa: N818 - ends a watched run, is no failure
    """Raised by those who watch a run, to end it."""


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
    except (GbnError, WatchEnded):
        raise
    except Exception as error:  # a forward may check its sizes and raise what its author chose
        text = " ".join(str(error).split())[:300]
        raise TraceError(
            f"the model does not run on the example inputs: {type(error).__name__}: {text}"
        ) from error


def output_tensors(outputs: Any) -> list[Tensor]:
    """All tensors that a forward returned, in order, also inside the user's own objects.

    Raises TraceError where there is none, or where something could hide one.
    """
    found = list(_tensors_of(outputs, "the output", []))
    if not found:
        raise TraceError(
            f"the model returns no tensor but {type(outputs).__name__}: there is nothing to "
            "follow or compare"
        )
    return found


def _tensors_of(value: Any, where: str, above: list[Any]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if value is None or isinstance(value, _PLAIN) or any(value is other for other in above):
        return
    if isinstance(value, Mapping):
        parts = [(f"{where}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, tuple | list):
        parts = [(f"{where}[{index}]", item) for index, item in enumerate(value)]
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module) and not callable(value):
        parts = [(f"{where}.{name}", item) for name, item in vars(value).items()]
    else:
        raise TraceError(
            f"{where} is a {type(value).__name__}, in which tensors cannot be found: "
            "return tensors, tuples, dicts or dataclasses"
        )
    for name, item in parts:
        yield from _tensors_of(item, name, [*above, value])


def _own_copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@contextlib.contextmanager
def tracing_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, one seed, attention by plain ops; all restored afterwards.

    What the forward writes on its modules (a cache, a counter, a buffer) is taken back as well.
    Raises TraceError for TorchScript modules and for inference mode.
    """
    refuse_untraceable(model)
    with plain_eval(model):
        yield


@contextlib.contextmanager
def plain_eval(model: nn.Module) -> Iterator[None]:
    """The same, for a model that is known to be traceable."""
    every = modules(model)
    held = [_Held.of(module) for module in every]
    values = {id(b): b for module in every for b in module._buffers.values() if b is not None}
    buffers = [
        (buffer, buffer.clone(), buffer._version)
        for buffer in values.values()
        if not buffer.is_meta  # which has no values to take back
    ]
    weights = [p for module in every for p in module._parameters.values() if p is not None]
    devices = {p.device.index or 0 for p in weights if p.device.type == "cuda"}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        if any(module.training for module in every):
            model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.random.fork_rng(devices), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            torch.manual_seed(_SEED)
            with plain_norms():
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module_state in held:
            module_state.restore()
        with torch.no_grad():
            for buffer, value, version in buffers:
                if buffer._version != version:
                    buffer.copy_(value)


@contextlib.contextmanager
def plain_norms() -> Iterator[None]:
    """`rms_norm` by its definition on every device.

    Some devices have one op for it, others run it as several; statistics are told apart by the
    name and number of an op, which must be the same where the model is traced, and where it runs.
    """
    usual = torch.rms_norm
    try:
        setattr(torch, "rms_norm", _rms_norm)  # noqa: B010 - not as typed
        yield
    finally:
        setattr(torch, "rms_norm", usual)  # noqa: B010


def _rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    over = [dim - len(shape) for dim in range(len(shape))]
    if tuple(x.shape[x.ndim - len(shape) :]) != tuple(shape):
        raise RuntimeError(f"rms_norm over {list(shape)} of a tensor of {list(x.shape)}")
    least = torch.finfo(wide.dtype).eps if eps is None else eps
    normed = wide * torch.rsqrt(wide.pow(2).mean(over, keepdim=True) + least)
    return (normed if weight is None else normed * weight).to(x.dtype)


def refuse_untraceable(model: nn.Module) -> None:
    """Raise TraceError for what cannot be run and copied: TorchScript, lazy modules, no weights."""
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"the model is a {type(model).__name__}, no nn.Module: give the module whose weights "
            "are to be pruned"
        )
    for path, module in named_modules(model):
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"{path or 'the model'} is a TorchScript module, whose ops cannot be followed: "
                "give the Python module that it was made from"
            )
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                raise TraceError(
                    f"the model cannot be copied, which pruning needs: {name!r} of "
                    f"{path or 'the model itself'} is a computed tensor. Take computed tensors off "
                    "its modules first (torch.nn.utils.remove_weight_norm and the like)"
                )
    tensors = [tensor for _, tensor in named_tensors(model)]
    if any(map(is_lazy, tensors)):
        raise TraceError(
            "the model has lazy modules, whose sizes are not known yet: run it once on an example "
            "input, then trace it"
        )
    if any(tensor.is_meta for tensor in tensors):
        raise TraceError("the model is on the meta device and has no weights: load them first")
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors):
        raise TraceError(
            "tensors of torch.inference_mode cannot be followed: build and trace the model outside "
            "of it (torch.no_grad is fine)"
        )


@dataclass(frozen=True)
class _Held:
    """The attributes of a module, and the items of those that are dicts or lists; None if empty.

    Most are: a module has a dozen tables of hooks.
    """

    attributes: dict[str, Any]
    saved: dict[str, Any]
    items: list[tuple[Any, Any]]

    @classmethod
    def of(cls, module: nn.Module) -> "_Held":
        values = vars(module)
        items = [(v, v.copy() if v else None) for v in values.values() if type(v) in _CONTAINERS]
        return cls(values, dict(values), items)

    def restore(self) -> None:
        for container, items in self.items:
            if items is None:
                if container:
                    container.clear()
            elif isinstance(container, list):
                container[:] = items
            else:
                container.clear()
                container.update(items)
        now = self.attributes
        if len(now) == len(self.saved) and all(map(is_, now.values(), self.saved.values())):
            return
        now.clear()
        now.update(self.saved)


@contextlib.contextmanager
def module_paths(model: nn.Module) -> Iterator[list["Visit"]]:
    """A stack of the modules that are running, innermost last."""
    stack: list[Visit] = []
    handles = []
    for path, module in named_modules(model):
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
    is_leaf: bool = False
    num_ops: int = 0


def _enter(stack: list[Visit], path: str) -> Any:
    def hook(module: nn.Module, _inputs: Any) -> None:
        stack.append(Visit(path, type(module), not module._modules))

    return hook


def _leave(stack: list[Visit]) -> Any:
    def hook(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        stack.pop()

    return hook
