"""Run a model once and follow every channel: `trace(model, example_inputs) -> ChannelGroups`.

What enters: a model and inputs that it runs on (real tensors, any device). What leaves: which
channels live and go together, what each costs, where gates go. The model is run in eval mode
without gradients and is left as it was.

A `TorchDispatchMode` sees each ATen op that the forward executes, whatever Python the forward
contains, with parameters recognised by identity. The rules in `gbn.rules` say what each op does to
channels; an op without a rule freezes the channels that enter it and is reported by name. Then
some cuts are tried out: where the forward turns out to have a size baked in, what meets it there
is frozen, so that no plan made from the result can crash or change the network's meaning.
"""

import contextlib
import fnmatch
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gbn.cuts import NUM_CUTS, WHOLE_WIDTHS, cut
from gbn.errors import RuleError, TraceError
from gbn.faults import Fault, OpRecord, freeze_fault, guesses_near, takes_parts
from gbn.grouping import build_groups
from gbn.groups import ChannelGroups, Mask, surviving
from gbn.ids import Block
from gbn.proof import randomised
from gbn.rules import Dead, Facts, Info, OpCall, numbers_in, rule_of, tensors_in
from gbn.rules.elementwise import elementwise, is_elementwise
from gbn.running import (
    FORWARD_ERRORS,
    Visit,
    module_paths,
    output_tensors,
    plain_eval,
    refuse_untraceable,
    run_model,
)
from gbn.shape_trial import CutNetwork, find_shape_faults, values_of
from gbn.shapes_only import execute, inputs_without_values, without_values
from gbn.sizes import told_alike
from gbn.trial import find_fault

_INFO = "_gbn_info"
_NOTHING = (None, 0, Info())
_MAX_ROUNDS = 60


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    freeze: Sequence[str] = (),
    prune_norms: bool = False,
) -> ChannelGroups:
    """Follow the channels of `model` through one run on `example_inputs`.

    `example_inputs`: a tensor (N, C, H, W), a tuple of positional or a dict of keyword arguments.
    MACs are counted for these inputs: use batch 1. `freeze`: module name patterns (`layer1.*`)
    whose output channels must stay. `prune_norms`: norms over channels (LayerNorm, GroupNorm,
    standardised weights) may lose some and then normalise over the rest. That changes what they
    compute for the others, as no gate does; the proof's reference does the same. By default such
    channels stay.

    The run needs no values as a rule, so it takes milliseconds and no memory for activations. A
    forward that looks at values (detectors do) is run on the real tensors.

    Raises TraceError when the model does not run on the inputs or a pattern matches no module.
    """
    refuse_untraceable(model)
    try:
        with _no_collection(), without_values(model):
            meta = inputs_without_values(example_inputs)
            tracer = _follow(model, meta, freeze, prune_norms)
        with _no_collection():
            return _after_trials(
                tracer, model, partial(_trial_of_shapes, model, example_inputs, tracer.returned)
            )
    except (RuleError, TraceError):
        tracer = _follow(model, example_inputs, freeze, prune_norms)
    return _after_trials(tracer, model, partial(_trial_with_values, model, example_inputs))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No cyclic garbage collection meanwhile: each walks over all that torch has loaded.

    A trace makes many small objects and no cycles to speak of; collections took a third of it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _follow(
    model: nn.Module, example_inputs: Any, freeze: Sequence[str], prune_norms: bool
) -> "Tracer":
    with plain_eval(model), module_paths(model) as visits:
        tracer = Tracer(model, visits)
        tracer.facts.prune_norms = prune_norms
        with tracer:
            outputs = run_model(model, example_inputs)
        returned = output_tensors(outputs)
        tracer.returned = [tuple(output.shape) for output in returned]
        for output in returned:
            for rows in tracer.lookup(output).ids.values():
                tracer.facts.space.freeze(rows, "is a model output")
        _freeze_matching(tracer, model, freeze)
    return tracer


Trial = Callable[[ChannelGroups, Mask, list[OpRecord]], list[Fault]]


def _after_trials(tracer: "Tracer", model: nn.Module, trial: Trial) -> ChannelGroups:
    """The groups, less what cuts show to be baked into the forward."""
    hard_coded: list[str] = []
    no_guess: set[str] = set()
    tied: set[tuple[str, str, int]] = set()
    groups = build_groups(tracer.facts, model, tracer.unknown)
    rounds = 0
    cuts = list(range(NUM_CUTS) if takes_parts(tracer.records, groups) else WHOLE_WIDTHS)
    while groups.num_atoms and cuts:
        faults = trial(groups, cut(groups, cuts[0]), tracer.records)
        rounds += 1
        if not faults:
            cuts.pop(0)
            continue
        if rounds > _MAX_ROUNDS:
            raise TraceError(
                f"after {rounds} trials a cut still changes what the network computes; the "
                f"last place was: {[*hard_coded, faults[0].place][-1]}. Freeze that part with "
                "--freeze"
            )
        for fault in faults:
            guessed = guesses_near(tracer.records[fault.index].module, groups)
            if guessed and not fault.is_number:
                no_guess |= guessed
            elif not fault.is_number and _tie_told_alike(tracer, model, groups, fault, tied):
                continue
            else:
                reason = freeze_fault(fault, groups, tracer.facts, tracer.records, hard_coded)
                hard_coded += [] if reason in hard_coded else [reason]
        groups = build_groups(tracer.facts, model, tracer.unknown, tuple(hard_coded), no_guess)
    return groups


def _tie_told_alike(
    tracer: "Tracer",
    model: nn.Module,
    groups: ChannelGroups,
    fault: Fault,
    tied: set[tuple[str, str, int]],
) -> bool:
    """Let widths that one attribute tells shrink alike; False if there are none not yet `tied`."""
    path = tracer.records[fault.index].module
    free = [u for u in tracer.facts.sized if not surviving(u.rows, groups.removable_ids).all()]
    alike = told_alike(free, model.get_submodule(path), path)
    new = {key: rows for key, rows in alike.items() if key not in tied}
    for first, *others in new.values():
        for rows in others:
            tracer.facts.space.tie(first, rows, "its size is told by one number with a fixed one")
    tied.update(new)
    return bool(new)


def _trial_of_shapes(
    model: nn.Module,
    inputs: Any,
    returned: list[tuple[int, ...]],
    groups: ChannelGroups,
    alive: Mask,
    records: list[OpRecord],
) -> list[Fault]:
    return find_shape_faults(model, CutNetwork(groups, alive, records, returned), inputs)


def _trial_with_values(
    model: nn.Module, inputs: Any, groups: ChannelGroups, alive: Mask, records: list[OpRecord]
) -> list[Fault]:
    fault = find_fault(randomised(model), groups, alive, records, inputs)
    return [] if fault is None else [fault]


class Tracer(TorchDispatchMode):
    """Collects facts about ids while ops run."""

    def __init__(self, model: nn.Module, visits: list[Visit]) -> None:
        super().__init__()
        self.facts = Facts()
        self.unknown: dict[str, set[str]] = {}
        self.records: list[OpRecord] = []
        self.returned: list[tuple[int, ...]] = []  # shapes
        self._visits = visits
        self._top = Visit("", type(model))
        self._known: dict[int, Info] = {}
        self._run = object()
        self._writes: Counter[int] = Counter()  # by storage
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
        if known is not None:
            return known
        run, writes, info = getattr(tensor, _INFO, _NOTHING)
        if run is not self._run:  # left by an earlier trace on a tensor that the model keeps
            return Info()
        if writes != self._writes[_storage(tensor)]:  # a view wrote into it: its values are unknown
            return Info(info.ids)
        return cast(Info, info)

    def _store(self, tensor: Tensor, info: Info) -> None:
        if id(tensor) not in self._known:  # a parameter that is written into keeps its own ids
            setattr(tensor, _INFO, (self._run, self._writes[_storage(tensor)], info))

    def _note_write(self, tensor: Tensor, before: Dead) -> None:
        """After a write in place: what else lies in the same memory has lost its dead value."""
        info = self.lookup(tensor)
        if before is None or info.dead != before:
            self._writes[_storage(tensor)] += 1
            self._store(tensor, info)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        before = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
        out = execute(func, args, kwargs)
        visit = self._visits[-1] if self._visits else self._top
        call = OpCall(
            func, args, kwargs, out, visit.path, self.facts, self.lookup, self._store, before
        )
        inputs = tuple(self.lookup(tensor).ids for tensor in call.inputs())
        first_block = len(self.facts.space.blocks)
        rule = rule_of(func)
        if rule is None and is_elementwise(func):
            rule = elementwise
        written = [(tensor, self.lookup(tensor).dead) for tensor in _written(call)]
        try:
            (rule or self._refuse)(call)
        except FORWARD_ERRORS as error:
            raise RuleError(
                f"the rule for {call.where} failed: {type(error).__name__}: {error}. This is no "
                "fault of the model: please report it, with this line"
            ) from error
        self.facts.num_calls[call.name] += 1
        for tensor, held in written:
            self._note_write(tensor, held)
        outputs = list(call.outputs())
        self.records.append(
            OpRecord(
                op=call.name,
                module=visit.path,
                site=(visit.kind, visit.num_ops),
                is_leaf=visit.is_leaf,
                shapes=tuple(tuple(tensor.shape) for tensor in outputs),
                dtypes=tuple(tensor.dtype for tensor in outputs),
                numbers=numbers_in((args, kwargs)),
                values=values_of(outputs),
                inputs=inputs,
                outputs=tuple(self.lookup(tensor).ids for tensor in outputs),
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


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else 0


def _written(call: OpCall) -> list[Tensor]:
    """Tensors that the op writes into."""
    schema = call.func._schema
    if not schema.is_mutable:
        return []
    given = dict(zip((spec.name for spec in schema.arguments), call.args, strict=False))
    values = [(given | call.kwargs).get(spec.name) for spec in schema.arguments if spec.is_write]
    return [value for value in values if isinstance(value, Tensor)]


def _freeze_matching(tracer: Tracer, model: nn.Module, patterns: Sequence[str]) -> None:
    modules = {n: m for n, m in model.named_modules(remove_duplicate=False) if n}
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for pattern in patterns:
        chosen = [m for name, m in modules.items() if fnmatch.fnmatchcase(name, pattern)]
        if not chosen:
            some = ", ".join([*modules][:3])
            raise TraceError(f"--freeze {pattern!r} matches no module; names look like {some}")
        held = {id(t) for m in chosen for t in (*m.parameters(), *m.buffers())}
        blocks = [b for b in _output_blocks(tracer.facts) if id(tensors[b.tensor or ""]) in held]
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
