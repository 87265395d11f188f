"""Run a model once and follow every channel: `trace(model, example_inputs) -> ChannelGroups`.

What enters: a model and inputs that it runs on (real tensors, any device). What leaves: which
channels live and go together, what each costs, where gates go. The model is run in eval mode
without gradients and is left as it was.

A `TorchDispatchMode` sees each ATen op that the forward executes, whatever Python the forward
contains, with parameters recognised by identity. The rules in `gbn.rules` say what each op does to
channels; an op without a rule freezes the channels that enter it and is reported by name. Then a
random cut is tried out: where the forward turns out to have a size baked in, what meets it there
is frozen, so that no plan made from the result can crash or change the network's meaning.
"""

import fnmatch
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gbn.errors import TraceError
from gbn.grouping import build_groups
from gbn.groups import ChannelGroups
from gbn.ids import Block
from gbn.rules import Facts, Info, OpCall, rule_of, tensors_in
from gbn.rules.elementwise import elementwise, is_elementwise
from gbn.running import Visit, module_paths, run_model, tracing_mode
from gbn.trial import OpRecord, find_fault, freeze_fault

_INFO = "_gbn_info"
_MAX_TRIALS = 40


def trace(model: nn.Module, example_inputs: Any, *, freeze: Sequence[str] = ()) -> ChannelGroups:
    """Follow the channels of `model` through one run on `example_inputs`.

    `example_inputs`: a tensor (N, C, H, W), a tuple of positional or a dict of keyword arguments.
    MACs are counted for these inputs: use batch 1. `freeze`: module name patterns (`layer1.*`)
    whose output channels must stay.

    Raises TraceError when the model does not run on the inputs or a pattern matches no module.
    """
    with tracing_mode(model), module_paths(model) as visits:
        tracer = Tracer(model, visits)
        with tracer:
            outputs = run_model(model, example_inputs)
    for output in tree_leaves(outputs):
        if isinstance(output, Tensor):
            for rows in tracer.lookup(output).ids.values():
                tracer.facts.space.freeze(rows, "is a model output")
    _freeze_matching(tracer, model, freeze)
    hard_coded: list[str] = []
    for attempt in range(_MAX_TRIALS):
        groups = build_groups(tracer.facts, model, tracer.unknown, tuple(hard_coded))
        fault = find_fault(model, groups, tracer.records, example_inputs, seed=attempt)
        if fault is None:
            return groups
        hard_coded.append(freeze_fault(fault, groups, tracer.facts, tracer.records, hard_coded))
    raise TraceError(
        f"after {_MAX_TRIALS} trials a cut still changes what the network computes; the last place "
        f"was: {hard_coded[-1]}. Freeze that part with --freeze"
    )


class Tracer(TorchDispatchMode):
    """Collects facts about ids while ops run."""

    def __init__(self, model: nn.Module, visits: list[Visit]) -> None:
        super().__init__()
        self.facts = Facts()
        self.unknown: dict[str, set[str]] = {}
        self.records: list[OpRecord] = []
        self._visits = visits
        self._top = Visit("", type(model))
        self._known: dict[int, Info] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
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
        if id(tensor) not in self._known:  # a parameter that is written into keeps its own ids
            setattr(tensor, _INFO, info)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        visit = self._visits[-1] if self._visits else self._top
        call = OpCall(func, args, kwargs, out, visit.path, self.facts, self.lookup, self._store)
        inputs = tuple(self.lookup(tensor).ids for tensor in call.inputs())
        first_block = len(self.facts.space.blocks)
        rule = rule_of(func)
        if rule is None and is_elementwise(func):
            rule = elementwise
        if rule is not None:
            rule(call)
        else:
            self._refuse(call)
        self.records.append(
            OpRecord(
                op=call.name,
                module=visit.path,
                site=(visit.kind, visit.num_ops),
                shapes=tuple(tuple(tensor.shape) for tensor in call.outputs()),
                inputs=inputs,
                outputs=tuple(self.lookup(tensor).ids for tensor in call.outputs()),
                blocks=range(first_block, len(self.facts.space.blocks)),
            )
        )
        visit.num_ops += 1
        return out

    def _refuse(self, call: OpCall) -> None:
        infos = [call.info(tensor) for tensor in call.inputs()]
        if any(info.ids for info in infos):
            self.unknown.setdefault(call.name, set()).add(call.module)
        for info in infos:
            call.freeze(info)
        for tensor in tensors_in(call.out):
            self._store(tensor, Info())


def _freeze_matching(tracer: Tracer, model: nn.Module, patterns: Sequence[str]) -> None:
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        chosen = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not chosen:
            raise TraceError(
                f"--freeze {pattern!r} matches no module; names look like {', '.join(names[:3])}"
            )
        inside = tuple(f"{name}." for name in chosen)
        blocks = [
            block
            for block in _output_blocks(tracer.facts)
            if block.origin in chosen or block.origin.startswith(inside)
        ]
        if not blocks:
            raise TraceError(f"--freeze {pattern!r} matches no module with channels of its own")
        for block in blocks:
            rows = np.arange(block.start, block.start + block.size, dtype=np.int64)[None]
            tracer.facts.space.freeze(rows, f"matched by --freeze {pattern}")


def _output_blocks(facts: Facts) -> list[Block]:
    """Widths that layers write: outputs of weights, and tensors of one dimension (a norm's)."""
    parameters = [block for block in facts.space.blocks if block.tensor is not None]
    num_dims = Counter(block.tensor for block in parameters)
    return [b for b in parameters if b.start in facts.produced or num_dims[b.tensor] == 1]
