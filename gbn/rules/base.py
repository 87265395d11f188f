"""What a rule may know and do: the tracer's view of one executed ATen op.

A rule is a function `rule(call: OpCall) -> None`. It reads the ids of the op's input tensors,
states facts (tie, freeze, count MACs) and sets the ids of the outputs. An op without a rule
freezes every channel that enters it.

Besides ids, each tensor carries its *dead value*: what its removed channels would hold if every
gate that the channel passes were zero. It is a number, or the set of gates (`Raw`) that would
still have to be attached to make it zero, or None where it cannot be known. Removal is exact only
where dead channels reach their consumer as zeros.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gbn.ids import FIXED, IdSpace, Rows

Raw = frozenset[int]  # starts of the blocks of parameters that could be gated
Dead = float | Raw | None
_NESTS = (tuple, list, dict)
OVER_CHANNELS = "statistics are taken over channels"
"""Why groups are frozen that `prune_norms` would free."""
NOT_FINITE = float("nan")  # the dead value of 0 / 0: no gate behind it makes that zero


@dataclass(slots=True)
class Info:
    """What is known of one tensor. Not to be changed: a rule makes a new one.

    ids: dimension -> table of ids, int64 (k, n), for a dimension of size n: position p is there
        while all k ids of column p are; nearly always k is 1. An absent dimension is of fixed size.
    dead: what a removed channel would hold here, were its gates zero: a number; the gates that
        would have to be added to make it zero; or None where that cannot be known.
    constant: the forward made it, the same in every run and at each position.
    """

    ids: dict[int, Rows] = field(default_factory=dict)
    dead: Dead = None
    constant: bool = False


@dataclass(frozen=True)
class MacRecord:
    """`constant` MACs for each combination of surviving positions of `rows`."""

    op: str
    module: str
    constant: int
    rows: tuple[Rows, ...]


@dataclass(frozen=True)
class NormGate:
    """Blocks (weight, bias) of a batch norm: its γ and β are multiplied by one gate a channel."""

    module: str
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """A dimension with ids `joint` (one axis a factor) that was split into `factors`."""

    joint: Rows
    factors: tuple[Rows, ...]


@dataclass(frozen=True)
class SizedUse:
    """An op of `module` was told the size of `rows`, possibly by an attribute such as `role`."""

    module: str
    role: str
    rows: Rows


@dataclass(frozen=True)
class StatisticsRecord:
    """Call number `call` of `op` in the run takes statistics over dimensions with these ids."""

    op: str
    call: int
    rows: dict[int, Rows]


@dataclass
class Facts:
    """Everything that rules state, in the order of execution.

    `prune_norms`: statistics over channels are those of what is left; else they freeze it.
    """

    space: IdSpace = field(default_factory=IdSpace)
    macs: list[MacRecord] = field(default_factory=list)
    required_gates: set[int] = field(default_factory=set)
    input_gates: set[int] = field(default_factory=set)  # on what a weight reads, not what it writes
    norm_gates: list[NormGate] = field(default_factory=list)
    produced: dict[int, str] = field(default_factory=dict)
    splits: dict[int, Split] = field(default_factory=dict)
    sized: list[SizedUse] = field(default_factory=list)
    prune_norms: bool = False
    statistics: list[StatisticsRecord] = field(default_factory=list)
    num_calls: Counter[str] = field(default_factory=Counter)  # of ops, so far


@dataclass
class OpCall:
    """One executed op, as its rule sees it: ids of tensors are read and written here.

    func, args, kwargs, out: the ATen op, what it was called with (real tensors), what came out.
    module: the path of the module whose forward called it, "" for the model itself.
    facts, lookup, store, tensors: the tracer's own; a rule goes by the methods below.
    before: shape of the first argument before the op, which may change it in place.

    Whatever a rule raises, and numpy for sizes that do not fit, the trace raises as a RuleError
    that names op and module.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    module: str
    facts: Facts
    lookup: Callable[[Tensor], Info]
    store: Callable[[Tensor, Info], None]
    tensors: list[Tensor] | None = None
    before: tuple[int, ...] = ()

    @functools.cached_property
    def name(self) -> str:
        """The op as PyTorch writes it, such as aten.add.Tensor."""
        return op_name(self.func)

    @property
    def where(self) -> str:
        """Op and module, for reasons."""
        return f"{self.name} in {self.module or 'the model itself'}"

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """Argument by position or by name; `default` where it was not given."""
        if len(self.args) > index:
            return self.args[index]
        return self.kwargs.get(name, default)

    def info(self, tensor: Any) -> Info:
        """What is known of a tensor; an `Info` without ids for anything else."""
        return self.lookup(tensor) if isinstance(tensor, Tensor) else Info()

    def inputs(self) -> list[Tensor]:
        """All tensors among the arguments, also inside lists."""
        if self.tensors is None:
            self.tensors = tensors_in((self.args, self.kwargs))
        return self.tensors

    def outputs(self) -> list[Tensor]:
        """All tensors that came out, in order."""
        return tensors_in(self.out)

    def set(self, info: Info, out: Tensor | None = None) -> None:
        """State what is known of an output (default: the only one).

        Ids whose number is not the output's size on that dimension are dropped: it is then fixed.
        """
        target = self.out if out is None else out
        shape = target.shape
        ids = {d: r for d, r in info.ids.items() if r.shape[1] == shape[d]}
        self.store(target, Info(ids, info.dead))

    def fresh(self, size: int) -> Rows:
        """New ids that this op issues, int64 (1, size)."""
        return self.facts.space.fresh(size, self.module)

    def sized(self, rows: Rows, role: str = "") -> None:
        """This op's arguments state the size of `rows`, (k, n), so a cut must change them.

        role: the attribute of the module that holds it, if it is known.
        """
        self.facts.sized.append(SizedUse(self.module, role, rows))

    def tie(self, a: Rows, b: Rows) -> None:
        """Position p of `a`, (k, n), and of `b`, (j, n), are one channel: they go together."""
        self.facts.space.tie(a, b, f"meets a tensor of fixed size at {self.where}")

    def freeze(self, info: Info, dims: Iterable[int] | None = None, why: str = "") -> None:
        """Channels that enter here on these dims (default: all) stay, in the report because of
        `why`."""
        chosen = [dim for dim in (info.ids if dims is None else dims) if dim in info.ids]
        if chosen:
            reason = f"{why} ({self.where})" if why else f"no rule for {self.where}"
            for dim in chosen:
                self.facts.space.freeze(info.ids[dim], reason)

    def over_channels(self, info: Info, dims: Iterable[int]) -> bool:
        """The op takes statistics of its first argument over these dims: they stay, or True.

        True: they may go, and the reference network takes the statistics over the survivors.
        """
        rows = {d: info.ids[d] for d in dims if d in info.ids}
        rows = {d: r for d, r in rows.items() if not self.facts.space.stays(r)}
        if not rows:
            return False
        if not self.facts.prune_norms:
            self.freeze(info, rows, OVER_CHANNELS)
            return False
        number = self.facts.num_calls[self.name]
        self.facts.statistics.append(StatisticsRecord(self.name, number, rows))
        return True

    def gate(self, dead: Dead) -> Dead:
        """Demand the gates that make dead channels zero here; returns the dead value then.

        That is 0.0 where gates can do it, else `dead` as it was.
        """
        if isinstance(dead, frozenset):
            self.facts.required_gates |= dead
            return 0.0
        return dead


@functools.cache
def op_name(func: Any) -> str:
    """An op as PyTorch writes it, such as aten.add.Tensor."""
    return str(func)


def tensors_in(value: Any) -> list[Tensor]:
    """Tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    if isinstance(value, _NESTS):
        _collect(value, found, [])
    return found


def numbers_in(value: Any) -> tuple[int | float, ...]:
    """Ints and floats in nested arguments, in order."""
    return tensors_and_numbers(value)[1]


def tensors_and_numbers(value: Any) -> tuple[list[Tensor], tuple[int | float, ...]]:
    """Both, in one pass."""
    tensors: list[Tensor] = []
    numbers: list[int | float] = []
    _collect(value, tensors, numbers)
    return tensors, tuple(numbers)


def _collect(value: Any, tensors: list[Tensor], numbers: list[int | float]) -> None:
    for item in value.values() if isinstance(value, dict) else value:
        kind = type(item)
        if kind is int or kind is float:
            numbers.append(item)
        elif item is None or kind is bool:
            continue
        elif isinstance(item, Tensor):
            tensors.append(item)
        elif isinstance(item, _NESTS):
            _collect(item, tensors, numbers)


@functools.lru_cache(maxsize=4096)
def fixed(size: int) -> Rows:
    """Ids of a dimension that can never be removed; not to be written into."""
    rows = np.full((1, size), FIXED, dtype=np.int64)
    rows.flags.writeable = False
    return rows


def stack(parts: Iterable[Rows]) -> Rows:
    """Rows that must all hold, shape (sum of k, n)."""
    return np.concatenate(list(parts), axis=0)


def vanishes(dead: Dead) -> bool:
    """Zero, or zero once it is gated."""
    return dead == 0.0 or isinstance(dead, frozenset)


def join_dead(values: Iterable[Dead]) -> Dead:
    """Dead value of tensors that lie side by side."""
    seen = list(values)
    if any(value != value for value in seen):
        return NOT_FINITE
    if all(map(vanishes, seen)):
        raw = [value for value in seen if isinstance(value, frozenset)]
        return frozenset().union(*raw) if raw else 0.0
    return seen[0] if seen and all(value == seen[0] for value in seen) else None


Rule = Callable[[OpCall], None]
RULES: dict[Any, Rule] = {}


def register_rule(*ops: Any) -> Callable[[Rule], Rule]:
    """Make a function the rule of these ops.

    An op is an `OpOverload`, a packet with all overloads, or a name such as `"mylib::scaled_relu"`,
    for ops of a library that need not be there.

    >>> @register_rule(torch.ops.mylib.scaled_relu)
    ... def _(call): call.set(call.info(call.args[0]))

    A later rule of the same op takes the place of an earlier one. Raises nothing; what is wrong in
    a rule is a RuleError of the trace that meets it.
    """

    def keep(rule: Rule) -> Rule:
        for op in ops:
            RULES[op] = rule
        return rule

    return keep


def rule_of(func: Any) -> Rule | None:
    """The rule of an op: of this overload, else of its packet or its name, else None."""
    packet = getattr(func, "overloadpacket", None)
    named = getattr(packet, "_qualified_op_name", None)
    return RULES.get(func) or RULES.get(packet) or RULES.get(named)


aten = torch.ops.aten
