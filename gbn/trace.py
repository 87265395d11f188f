"""Run a model once and follow every channel: `trace(model, example_inputs) -> ChannelGroups`.

What enters: a model and inputs that it runs on (real tensors, any device). What leaves: which
channels live and go together, what each costs, where gates go. The model is run in eval mode
without gradients and is left as it was.

A `TorchDispatchMode` sees each ATen op that the forward executes, whatever Python the forward
contains, with parameters recognised by identity. The rules in `gbn.rules` say what each op does to
channels; an op without a rule freezes the channels that enter it and is reported by name.
"""

import contextlib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gbn.errors import TraceError
from gbn.grouping import build_groups
from gbn.groups import ChannelGroups
from gbn.rules import Facts, Info, OpCall, rule_of, tensors_in
from gbn.rules.elementwise import elementwise, is_elementwise

_INFO = "_gbn_info"


def trace(
    model: nn.Module, example_inputs: Any, *, freeze: Sequence[str] = ()
) -> ChannelGroups:
    """Follow the channels of `model` through one run on `example_inputs`.

    `example_inputs`: a tensor (N, C, H, W), a tuple of positional or a dict of keyword arguments.
    MACs are counted for these inputs: use batch 1. `freeze`: module name patterns (`layer1.*`)
    whose output channels must stay.

    Raises TraceError when the model does not run on the inputs or a pattern matches no module.
    """
    tracer = Tracer(model)
    with tracing_mode(model), tracer.watch_modules(), tracer:
        outputs = run_model(model, example_inputs)
    for output in tree_leaves(outputs):
        if isinstance(output, Tensor):
            info = tracer.lookup(output)
            for rows in info.ids.values():
                tracer.facts.space.freeze(rows, "is a model output")
    _freeze_matching(tracer, model, freeze)
    return build_groups(tracer.facts, model, tracer.unknown)


def run_model(model: nn.Module, example_inputs: Any) -> Any:
    """Call the model with a tensor, a tuple of positional or a mapping of keyword arguments."""
    try:
        if isinstance(example_inputs, Mapping):
            return model(**example_inputs)
        if isinstance(example_inputs, tuple | list):
            return model(*example_inputs)
        return model(example_inputs)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
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


class Tracer(TorchDispatchMode):
    """Collects facts about ids while ops run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.facts = Facts()
        self.unknown: dict[str, set[str]] = {}
        self._model = model
        self._path: list[str] = []
        self._known: dict[int, Info] = {}
        named = [*model.named_parameters(), *model.named_buffers()]
        for name, tensor in named:
            origin = name.rpartition(".")[0]
            ids = {
                dim: self.facts.space.fresh(size, origin, name, dim)
                for dim, size in enumerate(tensor.shape)
            }
            starts = frozenset(int(rows[0, 0]) for rows in ids.values() if rows.size)
            gateable = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
            self._known[id(tensor)] = Info(ids, starts if gateable else None)

    def lookup(self, tensor: Tensor) -> Info:
        """Ids of a parameter, a buffer or a traced tensor; none for anything else."""
        known = self._known.get(id(tensor))
        return known if known is not None else getattr(tensor, _INFO, Info())

    def _store(self, tensor: Tensor, info: Info) -> None:
        setattr(tensor, _INFO, info)

    @contextlib.contextmanager
    def watch_modules(self) -> Iterator[None]:
        """Keep the path of the module that is running, for names in reasons."""
        handles = []
        for path, module in self._model.named_modules():
            if not path:
                continue
            enter = _remember(self._path, path)
            handles.append(module.register_forward_pre_hook(enter, prepend=True))
            handles.append(module.register_forward_hook(_forget(self._path), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        module = self._path[-1] if self._path else ""
        call = OpCall(func, args, kwargs, out, module, self.facts, self.lookup, self._store)
        rule = rule_of(func)
        if rule is None and is_elementwise(func):
            rule = elementwise
        if rule is not None:
            rule(call)
        else:
            self._refuse(call)
        return out

    def _refuse(self, call: OpCall) -> None:
        infos = [call.info(tensor) for tensor in call.inputs()]
        if any(info.ids for info in infos):
            self.unknown.setdefault(call.name, set()).add(call.module)
        for info in infos:
            call.freeze(info)
        for tensor in tensors_in(call.out):
            self._store(tensor, Info())


def _remember(path: list[str], name: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any) -> None:
        path.append(name)

    return hook


def _forget(path: list[str]) -> Any:
    def hook(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        path.pop()

    return hook


def _freeze_matching(tracer: Tracer, model: nn.Module, patterns: Sequence[str]) -> None:
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        matched = {
            name for name in names
            if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
        }
        if not matched:
            raise TraceError(
                f"--freeze {pattern!r} matches no module; names look like {', '.join(names[:3])}"
            )
        for block in tracer.facts.space.blocks:
            if block.start in tracer.facts.produced and block.origin in matched:
                rows = torch.arange(block.start, block.start + block.size).numpy()[None]
                tracer.facts.space.freeze(rows, f"matched by --freeze {pattern}")
