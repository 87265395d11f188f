"""Times of nodes at many widths -> the time of a graph at any widths.

Enters: for each of several choices of widths, what every node took there. Leaves: a `TimeFit`, the
sum of one small formula a node: a constant, a part for each of its widths, and one for their
product (launch, memory, arithmetic), none below zero. Nodes of one kind (op, kernel, image size,
what is fused behind) share their formula, so each is fitted to many points. Where a kernel computes
in blocks, its widths were recorded rounded up, and the formula rounds as it does.

A node that only some of the choices have is left out: it belongs to widths that do not fit the
kernels. What no width explains counts as a constant.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from exporters.errors import ExportError
from exporters.node_times import NodeTime
from exporters.resized import Widths, WidthTable

_BLOCKS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class TimeTerm:
    """ms times the size of each of `widths`, rounded up to a multiple of its step."""

    ms: float
    widths: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TimeFit:
    """terms: of all nodes. typical_error: median over nodes and samples of |modelled / found - 1|,
    weighted by time. steps: width -> the largest block that a kernel rounds it up to.
    """

    terms: tuple[TimeTerm, ...]
    typical_error: float
    steps: dict[int, int]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One choice of widths (num_widths,), and its nodes in the order they ran."""

    widths: Widths
    nodes: tuple[NodeTime, ...]


@dataclass(frozen=True)
class _Tie:
    width: int
    factor: int
    block: int

    def sizes(self, rows: Widths) -> npt.NDArray[np.float64]:
        found = rows[:, self.width] * self.factor
        return (-(-found // self.block) * self.block).astype(np.float64)


@dataclass(frozen=True)
class _Node:
    """One node in those samples that have it: their widths (rows), its times, what it follows."""

    kind: str
    rows: Widths
    ms: npt.NDArray[np.float64]
    ties: tuple[_Tie, ...]


def fit_times(samples: Sequence[Sample]) -> TimeFit:
    """Raises ExportError where the samples have no node in common."""
    nodes = list(_nodes(samples))
    if not nodes:
        raise ExportError("no node ran at most of the widths tried: nothing can be modelled")
    by_kind: dict[str, list[_Node]] = defaultdict(list)
    for node in nodes:
        by_kind[node.kind].append(node)
    terms: list[TimeTerm] = []
    errors: list[npt.NDArray[np.float64]] = []
    weights: list[npt.NDArray[np.float64]] = []
    for alike in by_kind.values():
        design = np.concatenate([_features(node, node.rows) for node in alike])
        times = np.concatenate([node.ms for node in alike])
        scale = np.maximum(times, 1e-6)
        coefficients, _ = nnls(design / scale[:, None], times / scale)
        errors.append(np.abs(design @ coefficients / scale - 1))
        weights.append(times)
        for node in alike:
            terms += _terms(node, coefficients)
    steps: dict[int, int] = {}
    for tie in (tie for node in nodes for tie in node.ties):
        steps[tie.width] = max(steps.get(tie.width, 1), tie.block)
    return TimeFit(
        terms=tuple(terms),
        typical_error=_weighted_median(np.concatenate(errors), np.concatenate(weights)),
        steps=steps,
    )


def _weighted_median(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(share, 0.5)])


def _subsets(count: int) -> list[tuple[int, ...]]:
    """Which ties each feature multiplies: none, each alone, all."""
    singles = [(i,) for i in range(count)]
    return [(), *singles, *([tuple(range(count))] if count > 1 else [])]


def _features(node: _Node, rows: Widths) -> npt.NDArray[np.float64]:
    sizes = [tie.sizes(rows) for tie in node.ties]
    columns = [
        math.prod((sizes[i] for i in subset), start=np.ones(len(rows)))
        for subset in _subsets(len(sizes))
    ]
    return np.stack(columns, axis=1)


def _terms(node: _Node, coefficients: npt.NDArray[np.float64]) -> Iterator[TimeTerm]:
    for ms, subset in zip(coefficients, _subsets(len(node.ties)), strict=True):
        ties = [node.ties[i] for i in subset]
        if ms > 0:
            yield TimeTerm(
                ms=float(ms) * math.prod(tie.factor for tie in ties),
                widths=tuple(tie.width for tie in ties),
                steps=tuple(max(tie.block // tie.factor, 1) for tie in ties),
            )


def _nodes(samples: Sequence[Sample]) -> Iterator[_Node]:
    found: dict[str, list[tuple[int, NodeTime]]] = defaultdict(list)
    for number, sample in enumerate(samples):
        for name, node in named(sample.nodes):
            found[name].append((number, node))
    for runs in found.values():
        if len(runs) * 2 <= len(samples) or len({_form(node) for _, node in runs}) > 1:
            continue
        rows = np.stack([samples[number].widths for number, _ in runs])
        kind, ties = _kind_and_ties([node for _, node in runs], rows)
        yield _Node(kind, rows, np.array([node.ms for _, node in runs]), ties)


def named(nodes: Sequence[NodeTime]) -> Iterator[tuple[str, NodeTime]]:
    """Nodes by names that stay the same at other widths; those that onnxruntime puts in between
    are numbered anew each time, and are called after the node before them.
    """
    before = "start"
    for node in nodes:
        if "_token_" in node.name:
            yield f"{node.op} after {before}", node
        else:
            before = f"{node.op} {node.name}"
            yield before, node


def _form(node: NodeTime) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    return node.op, tuple(map(len, node.inputs)), tuple(map(len, node.outputs))


def _kind_and_ties(nodes: Sequence[NodeTime], rows: Widths) -> tuple[str, tuple[_Tie, ...]]:
    """The kind: op and shapes with letters for what changes. The ties, in order of letters."""
    tables = {block: WidthTable(-(-rows // block) * block) for block in _BLOCKS}
    ties: dict[int, _Tie] = {}
    words = [nodes[0].op]
    for shapes in zip(*((*node.inputs, *node.outputs) for node in nodes), strict=True):
        word = []
        for sizes in zip(*shapes, strict=True):
            tie = None if len(set(sizes)) == 1 else _tie(sizes, tables)
            if tie is None:
                word.append(str(sizes[0]) if len(set(sizes)) == 1 else "?")
                continue
            known = ties.get(tie.width)
            if known is None or tie.block > known.block:
                ties[tie.width] = tie
            word.append("abcdefgh"[min(list(ties).index(tie.width), 7)])
        words.append("x".join(word))
    if "?" in " ".join(words):
        words += [nodes[0].name]
    return " ".join(words), tuple(ties.values())


def _tie(sizes: Sequence[int], tables: dict[int, WidthTable]) -> _Tie | None:
    for block, table in tables.items():
        found = table.find(sizes)
        if found is not None and (block == 1 or found[1] == 1):
            return _Tie(found[0], found[1], block)
    return None
