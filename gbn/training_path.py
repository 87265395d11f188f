"""Branches that run in training mode only, such as auxiliary heads: they must fit after a cut.

What enters: a tracer that has followed the forward in eval mode, and the model. What leaves: more
facts, where training mode reads parameters that eval mode does not: its channels are followed as
well, in one more run with dropout left out and norms as they are in eval mode. Costs, statistics
and trial cuts stay those of eval mode. So where such a branch could know a width (it reads or tells
sizes, which only trials could check), what enters it stays.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gbn.errors import TraceError
from gbn.faults import OpRecord
from gbn.rules import tensors_in
from gbn.running import output_tensors, run_model
from gbn.shapes_only import execute
from gbn.size_reads import SizeReads
from gbn.tracer import Tracer
from gbn.walk import modules, named_parameters

_DROPOUTS = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(torch.dropout, torch.dropout_, torch.feature_dropout, torch.alpha_dropout),
}


def follow_training_path(tracer: Tracer, model: nn.Module, inputs: Any) -> None:
    """Add what training mode says of parameters that eval mode leaves unread.

    To be called where the model is run in eval mode and left as it was afterwards.
    """
    unread = {name: p for name, p in named_parameters(model) if id(p) not in tracer.read}
    if not unread:
        return
    watch = _Reads()
    try:
        with _training(model), watch:
            run_model(model, inputs)
    except TraceError as error:
        cause = error.__cause__
        told = f"training mode, which does not run on these inputs ({type(cause).__name__})"
        tracer.unknown.setdefault(told, set()).update(_owners(unread))
        return
    extra = {name for name, p in unread.items() if id(p) in watch.read}
    if extra:
        _merge(tracer, model, inputs, _owners(extra))


def _merge(tracer: Tracer, model: nn.Module, inputs: Any, owners: set[str]) -> None:
    facts = tracer.facts
    eval_reads, tracer.reads = tracer.reads, SizeReads()
    num_records, num_macs = len(tracer.records), len(facts.macs)
    num_statistics, num_calls = len(facts.statistics), facts.num_calls.copy()
    with _training(model), tracer, tracer.reads:
        outputs = run_model(model, inputs)
    for output in output_tensors(outputs):
        for rows in tracer.lookup(output).ids.values():
            facts.space.freeze(rows, "is a model output in training mode")
    extra = tracer.records[num_records:]
    if not tracer.reads.blind:
        _freeze_entering(tracer, extra, owners)
    tracer.reads = eval_reads
    facts.num_calls = num_calls
    del tracer.records[num_records:], facts.macs[num_macs:], facts.statistics[num_statistics:]


def _freeze_entering(tracer: Tracer, records: list[OpRecord], owners: set[str]) -> None:
    for record in records:
        if record.module in owners:
            for ids in (*record.inputs, *record.outputs):
                for rows in ids.values():
                    why = f"enters {record.module or 'the model itself'}, run in training mode only"
                    tracer.facts.space.freeze(rows, why)


def _owners(names: Any) -> set[str]:
    return {name.rpartition(".")[0] for name in names}


@contextlib.contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    every = modules(model)
    before = [module.training for module in every]
    try:
        for module in every:
            module.training = not isinstance(module, _NormBase | _DropoutNd)
        with _NoDropout():
            yield
    finally:
        for module, mode in zip(every, before, strict=True):
            module.training = mode


class _NoDropout(TorchFunctionMode):
    """Functions that drop channels by chance give back what they get."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _DROPOUTS:
            return args[0]
        return func(*args, **(kwargs or {}))


class _Reads(TorchDispatchMode):
    """Notes which tensors enter ops, by their `id`."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.read.update(map(id, tensors_in((args, kwargs))))
        return execute(func, args, kwargs or {})
