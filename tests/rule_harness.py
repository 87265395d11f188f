"""Runs single ops with their rules, and writes what became of the channels as a string.

A program is a function of the harness and a tensor whose channels (dim 1, eight unless told) have
ids: `lambda h, x: h(aten.relu.default, x)`. What became of the channels: one letter a channel,
equal letters live and go together, a dot stays, several letters in brackets must all live.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gbn.ids import Rows
from gbn.rules import Facts, Info, OpCall, rule_of, tensors_in
from gbn.rules.elementwise import elementwise, is_elementwise


class Harness:
    def __init__(self) -> None:
        self.facts = Facts()
        self.ran: list[Any] = []
        self._infos: dict[int, Info] = {}
        self._alive: list[Tensor] = []

    def activation(self, shape: tuple[int, ...], dim: int = 1, dead: Any = 0.0, **options: Any):
        """A tensor with ids on one dim; a removed channel holds `dead`."""
        tensor = torch.rand(shape, **options)
        self._store(tensor, Info({dim: self.facts.space.fresh(shape[dim], "x")}, dead))
        return tensor

    def parameter(self, *shape: int) -> Tensor:
        """Ids on every dim, as the tracer gives them to parameters."""
        tensor = torch.rand(shape)
        name = f"p{len(self._infos)}"
        ids = {d: self.facts.space.fresh(n, name, name, d) for d, n in enumerate(shape)}
        self._store(tensor, Info(ids, frozenset(int(rows[0, 0]) for rows in ids.values())))
        return tensor

    def __call__(self, func: Any, *args: Any, result: Any = None, **kwargs: Any) -> Any:
        """Run an op and its rule. `result`: what comes out where the op does not run here."""
        before = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
        out = func(*args, **kwargs) if result is None else result
        self._alive += tensors_in(out)
        call = OpCall(
            func, args, kwargs, out, "m", self.facts, self._lookup, self._store, before=before
        )  # fmt: skip
        rule = rule_of(func) or (elementwise if is_elementwise(func) else None)
        assert rule is not None, func
        rule(call)
        self.facts.num_calls[call.name] += 1
        self.ran.append(func)
        return out

    def _lookup(self, tensor: Tensor) -> Info:
        return self._infos.get(id(tensor), Info())

    def _store(self, tensor: Tensor, info: Info) -> None:
        self._alive.append(tensor)
        self._infos[id(tensor)] = info

    def rows(self, tensor: Tensor, dim: int) -> Rows | None:
        """Ids of one dim of a tensor."""
        return self._lookup(tensor).ids.get(dim)

    def letters(self, dims: list[Rows | None]) -> list[str | None]:
        """What ids came to, letters in the order of their first use."""
        resolution = self.facts.space.resolve()
        names: dict[int, str] = {}

        def name(atoms: frozenset[int]) -> str:
            found = [names.setdefault(a, chr(ord("a") + len(names))) for a in sorted(atoms)]
            return found[0] if len(found) == 1 else f"({''.join(found)})" if found else "."

        texts: list[str | None] = []
        for rows in dims:
            columns = () if rows is None else resolution.columns(rows)
            texts.append(None if rows is None else "".join(map(name, columns)))
        return texts


Program = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A program, and by hand: what its channels come to, and those of dim `at` of its result."""

    program: Program
    channels: str
    result: str | None = None
    at: int = 1
    shape: tuple[int, ...] = (2, 8, 4, 4)
    dim: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def run(self) -> tuple[Harness, list[str | None]]:
        torch.manual_seed(0)
        harness = Harness()
        with torch.no_grad():
            x = harness.activation(self.shape, self.dim, **self.options)
            dims = [harness.rows(x, self.dim)]  # an op in place may move them
            out = self.program(harness, x)
        if isinstance(out, Tensor):
            dims.append(harness.rows(out, self.at))
        return harness, harness.letters(dims)
