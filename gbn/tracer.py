"""Collects facts about channels while a model runs: which ids meet, which stay, what each op cost.

What enters: each ATen op that the forward executes, by a `TorchDispatchMode`, with parameters
recognised by identity. What leaves: `Facts`, a record of each op, and the ops without a rule.
"""

import functools
from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gbn.errors import RuleError
from gbn.faults import OpRecord
from gbn.rules import Dead, Facts, Info, OpCall, Rule, rule_of, tensors_and_numbers, tensors_in
from gbn.rules.elementwise import elementwise, is_elementwise
from gbn.running import FORWARD_ERRORS, Visit
from gbn.shape_trial import values_of
from gbn.shapes_only import execute
from gbn.size_reads import SizeReads
from gbn.walk import named_tensors

_INFO = "_gbn_info"
_NOTHING = (None, 0, Info())


class Tracer(TorchDispatchMode):
    """Collects facts about ids while ops run."""

    def __init__(self, model: nn.Module, visits: list[Visit], inputs: Any = ()) -> None:
        super().__init__()
        self.facts = Facts()
        self.unknown: dict[str, set[str]] = {}
        self.records: list[OpRecord] = []
        self.returned: list[tuple[int, ...]] = []  # shapes
        self.reads = SizeReads()
        self.read: set[int] = set()  # tensors that entered an op, by their `id`
        self._visits = visits
        self._top = Visit("", type(model))
        # the forward gets copies of the inputs
        self._known: dict[int, Info] = {id(tensor): Info() for tensor in tensors_in(inputs)}
        self._run = object()
        self._writes: Counter[int] = Counter()  # by storage
        self._kinds: dict[Any, tuple[Rule | None, tuple[tuple[int, str], ...]]] = {}
        for name, tensor in named_tensors(model):
            origin = name.rpartition(".")[0]
            ids = {
                dim: self.facts.space.fresh(size, origin, name, dim)
                for dim, size in enumerate(tensor.shape)
            }
            for dim in range(1, tensor.ndim):
                if tensor.shape[dim] == 1:  # known to stay from the start: never an empty dimension
                    self.facts.space.freeze(ids[dim], "is a dimension of size 1")
            starts = frozenset(int(rows[0, 0]) for rows in ids.values() if rows.size)
            gateable = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
            self._known[id(tensor)] = Info(ids, starts if gateable else None)

    def lookup(self, tensor: Tensor) -> Info:
        """Ids of a parameter, a buffer or a traced tensor; none for anything else."""
        known = self._known.get(id(tensor))
        if known is not None:
            return known
        run, writes, info = getattr(tensor, _INFO, _NOTHING)
        if run is not self._run:  # made unseen, or by an earlier trace and kept by the model
            self.reads.blind = False
            return Info()
        # a view wrote into it: its values are unknown
        if self._writes and writes != self._writes[_storage(tensor)]:
            return Info(info.ids)
        return cast(Info, info)

    def _store(self, tensor: Tensor, info: Info) -> None:
        if id(tensor) not in self._known:  # a parameter that is written into keeps its own ids
            writes = self._writes[_storage(tensor)] if self._writes else 0
            setattr(tensor, _INFO, (self._run, writes, info))

    def _note_write(self, tensor: Tensor, before: Dead) -> None:
        """After a write in place: what else lies in the same memory has lost its dead value."""
        info = self.lookup(tensor)
        if before is None or info.dead != before:
            self._writes[_storage(tensor)] += 1
            self._store(tensor, info)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard costs as much as the op

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.reads.note_op()
        before = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
        out = execute(func, args, kwargs)
        visit = self._visits[-1] if self._visits else self._top
        tensors, numbers = tensors_and_numbers((args, kwargs))
        call = OpCall(
            *(func, args, kwargs, out, visit.path, self.facts, self.lookup, self._store),
            tensors,
            before,
        )
        self.read.update(map(id, tensors))
        inputs = tuple([self.lookup(tensor).ids for tensor in tensors])
        first_block = len(self.facts.space.blocks)
        rule, writes = self._kinds.get(func) or self._kind(func)
        written = [(t, self.lookup(t).dead) for t in _written(call, writes)] if writes else ()
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
        outputs = call.outputs()
        self.records.append(
            OpRecord(
                op=call.name,
                module=visit.path,
                site=(visit.kind, visit.num_ops),
                is_leaf=visit.is_leaf,
                shapes=tuple([tuple(tensor.shape) for tensor in outputs]),
                dtypes=tuple([tensor.dtype for tensor in outputs]),
                numbers=numbers,
                values=values_of(outputs),
                inputs=inputs,
                outputs=tuple([self.lookup(tensor).ids for tensor in outputs]),
                blocks=range(first_block, len(self.facts.space.blocks)),
            )
        )
        visit.num_ops += 1
        return out

    def _kind(self, func: Any) -> tuple[Rule | None, tuple[tuple[int, str], ...]]:
        self._kinds[func] = _rule_for(func), _written_arguments(func)
        return self._kinds[func]

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


def _rule_for(func: Any) -> Rule | None:
    rule = rule_of(func)
    return elementwise if rule is None and is_elementwise(func) else rule


def _written(call: OpCall, arguments: tuple[tuple[int, str], ...]) -> list[Tensor]:
    """Tensors that the op writes into."""
    values = [call.arg(number, name) for number, name in arguments]
    return [value for value in values if isinstance(value, Tensor)]


@functools.cache
def _written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    specs = enumerate(func._schema.arguments)
    return tuple((number, spec.name) for number, spec in specs if spec.is_write)
