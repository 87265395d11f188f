"""Times of nodes where only whole graphs can be timed: on providers that return before they finish.

Enters: the executed nodes of one graph at several widths, and the time of each whole graph. Leaves:
the same nodes with times that add up as nearly as they can: each pays for starting, for every
element that it reads and writes, and for its multiply-accumulates, at one price for each kind of
layer. None is below zero.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from exporters.node_times import NodeTime, elements, is_layer, work

_KINDS = ("start", "elements", "depthwise", "point", "window", "matrix")


def spread(
    nodes: Sequence[tuple[NodeTime, ...]], whole_ms: Sequence[float]
) -> list[tuple[NodeTime, ...]]:
    """`whole_ms[i]` is the time of the graph that `nodes[i]` are of."""
    parts = [np.stack([_amounts(node) for node in graph]) for graph in nodes]
    design = np.stack([part.sum(axis=0) for part in parts])
    scale = np.maximum(design.max(axis=0), 1.0)
    found = np.array(whole_ms)
    prices, _ = nnls(design / scale / found[:, None], np.ones_like(found))
    return [
        tuple(
            replace(node, ms=float(ms))
            for node, ms in zip(graph, part / scale @ prices, strict=True)
        )
        for graph, part in zip(nodes, parts, strict=True)
    ]


def _amounts(node: NodeTime) -> npt.NDArray[np.float64]:
    amounts = dict.fromkeys(_KINDS, 0.0)
    amounts["start"] = 1.0
    amounts["elements"] = float(elements(node))
    if is_layer(node):
        amounts[_kind(node)] = float(work(node))
    return np.array(list(amounts.values()))


def _kind(node: NodeTime) -> str:
    weight = node.inputs[1]
    if len(weight) <= 2:
        return "matrix"
    if weight[1] == 1:
        return "depthwise"
    return "point" if set(weight[2:]) == {1} else "window"
