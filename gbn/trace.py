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
from typing import Any

import numpy as np
from torch import nn

from gbn.captured import captured_tensors
from gbn.cuts import NUM_CUTS, WHOLE_WIDTHS, cut
from gbn.errors import RuleError, TraceError
from gbn.faults import Fault, OpRecord, freeze_fault, guesses_near, takes_parts
from gbn.grouping import build_groups
from gbn.groups import ChannelGroups, Mask, surviving
from gbn.ids import Block
from gbn.proof import randomised
from gbn.rules import Facts
from gbn.running import (
    module_paths,
    output_tensors,
    plain_eval,
    refuse_untraceable,
    run_model,
)
from gbn.shape_trial import CutNetwork, find_shape_faults
from gbn.shapes_only import forget, inputs_without_values, without_values
from gbn.size_reads import untried
from gbn.sizes import told_alike
from gbn.tracer import Tracer
from gbn.training_path import follow_training_path
from gbn.trial import find_fault
from gbn.walk import named_tensors, walked_once

_MAX_ROUNDS = 60


class UnsteadyForward(TraceError):  # noqa: N818 - what it is
    """Two runs of one forward differ, without any cut."""


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
    with walked_once(model):
        refuse_untraceable(model)
        try:
            return _traced(model, example_inputs, freeze, prune_norms)
        finally:
            forget()


def _traced(
    model: nn.Module, example_inputs: Any, freeze: Sequence[str], prune_norms: bool
) -> ChannelGroups:
    def by_shapes() -> ChannelGroups:
        with without_values(model):
            meta = inputs_without_values(example_inputs)
            tracer = _follow(model, meta, freeze, prune_norms)
        return _after_trials(
            tracer, model, partial(_trial_of_shapes, model, example_inputs, tracer.returned)
        )

    def by_values() -> ChannelGroups:
        tracer = _follow(model, example_inputs, freeze, prune_norms)
        return _after_trials(tracer, model, partial(_trial_with_values, model, example_inputs))

    try:
        with _no_collection():
            return _steadily(by_shapes)
    except (RuleError, TraceError):
        return _steadily(by_values)


def _steadily(attempt: Callable[[], ChannelGroups]) -> ChannelGroups:
    """Again where two runs differed: a forward may keep what it computed when first called."""
    try:
        return attempt()
    except UnsteadyForward:
        return attempt()


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
) -> Tracer:
    with plain_eval(model), module_paths(model) as visits:
        tracer = Tracer(model, visits, example_inputs)
        tracer.facts.prune_norms = prune_norms
        with tracer, tracer.reads:
            outputs = run_model(model, example_inputs)
        returned = output_tensors(outputs)
        tracer.returned = [tuple(output.shape) for output in returned]
        for output in returned:
            for rows in tracer.lookup(output).ids.values():
                tracer.facts.space.freeze(rows, "is a model output")
        follow_training_path(tracer, model, example_inputs)
    _freeze_matching(tracer, model, freeze)
    _freeze_captured(tracer, model)
    return tracer


Trial = Callable[[ChannelGroups, Mask, list[OpRecord]], list[Fault]]


def _after_trials(tracer: Tracer, model: nn.Module, trial: Trial) -> ChannelGroups:
    """The groups, less what cuts show to be baked into the forward."""
    hard_coded: Counter[str] = Counter()
    no_guess: set[str] = set()
    tied: set[tuple[str, str, int]] = set()
    groups = build_groups(tracer.facts, model, tracer.unknown)
    rounds = 0
    steady = False
    if (certain := untried(tracer.reads, tracer.facts, groups, model, tracer.records)) is not None:
        return certain
    cuts = list(range(NUM_CUTS) if takes_parts(tracer.records, groups) else WHOLE_WIDTHS)
    while groups.num_atoms and cuts:
        faults = trial(groups, cut(groups, cuts[0]), tracer.records)
        rounds += 1
        if not faults:
            cuts.pop(0)
            continue
        whole = np.ones(groups.num_atoms, dtype=np.bool_)
        if not steady and (unlike := trial(groups, whole, tracer.records)):
            raise UnsteadyForward(
                "two runs of the model on the same inputs execute other ops or give other values, "
                f"first at {unlike[0].place}: its channels cannot be followed"
            )
        steady = True
        if rounds > _MAX_ROUNDS:
            raise TraceError(
                f"after {rounds} trials a cut still changes what the network computes; the "
                f"last place was: {faults[0].place}. Freeze the layers there"
            )
        for fault in faults:
            guessed = guesses_near(tracer.records[fault.index].module, groups)
            if guessed and not fault.is_number:
                no_guess |= guessed
            elif not fault.is_number and _tie_told_alike(tracer, model, groups, fault, tied):
                continue
            else:
                reason = freeze_fault(fault, groups, tracer.facts, tracer.records, hard_coded)
                hard_coded[reason] += 1
        del groups  # before there are others, which are as large
        groups = build_groups(tracer.facts, model, tracer.unknown, tuple(hard_coded), no_guess)
    return groups


def _tie_told_alike(
    tracer: Tracer,
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


def _freeze_matching(tracer: Tracer, model: nn.Module, patterns: Sequence[str]) -> None:
    modules = {n: m for n, m in model.named_modules(remove_duplicate=False) if n}
    tensors = dict(named_tensors(model))
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


def _freeze_captured(tracer: Tracer, model: nn.Module) -> None:
    captured = captured_tensors(model)
    if not captured:
        return
    names = dict(named_tensors(model))
    for block in tracer.facts.space.blocks:
        holder = captured.get(id(names[block.tensor])) if block.tensor is not None else None
        if holder is not None:
            rows = np.arange(block.start, block.start + block.size, dtype=np.int64)[None]
            why = f"is held by a function ({holder}), which copies of the model share"
            tracer.facts.space.freeze(rows, why)


def _output_blocks(facts: Facts) -> list[Block]:
    """Widths that layers write: outputs of weights, and tensors of one dimension (a norm's)."""
    parameters = [block for block in facts.space.blocks if block.tensor is not None]
    num_dims = Counter(block.tensor for block in parameters)
    return [b for b in parameters if b.start in facts.produced or num_dims[b.tensor] == 1]
