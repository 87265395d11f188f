"""Put the nodes of a graph into an order in which each value is made before it is used.

What enters: a graph, changed in place, with the graphs inside of it. Refused: cycles, values made
twice, values that nothing makes.
"""

from collections import deque

import onnx

from pipeline.importers.onnx_in.errors import UsageError, label

MAX_DEPTH = 20


def sort_graph(
    graph: onnx.GraphProto, where: str, outer: frozenset[str] = frozenset(), depth: int = 0
) -> set[str]:
    """Sort `graph`; `outer` are the values of the graphs around it. Returns those it takes."""
    if depth > MAX_DEPTH:
        raise UsageError(f"{where}: graphs lie {depth} deep inside each other: not supported")
    known = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    known |= {sparse.values.name for sparse in graph.sparse_initializer}
    maker = _makers(graph, known, where)
    inner = frozenset(outer | known | set(maker))
    needs = [_needs(node, inner, depth) for node in graph.node]
    for node, names in zip(graph.node, needs, strict=True):
        missing = sorted(name for name in names if name not in inner)
        if missing:
            raise UsageError(
                f"{where}: {label(node)} reads {missing[0]!r}, which nothing makes: no node, "
                "input or initializer has that name"
            )
    for value in graph.output:
        if value.name not in inner:
            raise UsageError(f"{where}: nothing makes the output {value.name!r}")
    order = _order(graph, needs, maker, where)
    if order != sorted(order):
        nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
        del graph.node[:]
        graph.node.extend(nodes)
    taken = {name for names in needs for name in names} | {v.name for v in graph.output}
    return taken - known - set(maker)


def _makers(graph: onnx.GraphProto, known: set[str], where: str) -> dict[str, int]:
    maker: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.output:
            if name and (name in maker or name in known):
                raise UsageError(
                    f"{where}: {label(node)} makes {name!r}, which is made elsewhere as well: "
                    "names must be distinct"
                )
            if name:
                maker[name] = index
    return maker


def _needs(node: onnx.NodeProto, inner: frozenset[str], depth: int) -> set[str]:
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else []
        for graph in (*graphs, *attribute.graphs):
            names |= sort_graph(graph, f"in {label(node)}", inner, depth + 1)
    return names


def _order(
    graph: onnx.GraphProto, needs: list[set[str]], maker: dict[str, int], where: str
) -> list[int]:
    """Indices of nodes in order; those that are sorted already keep their places."""
    if all(maker.get(name, -1) < i for i, names in enumerate(needs) for name in names):
        return list(range(len(needs)))
    waits = [{maker[name] for name in names if name in maker} for names in needs]
    users: dict[int, list[int]] = {}
    for index, sources in enumerate(waits):
        for source in sources:
            users.setdefault(source, []).append(index)
    left = [len(sources) for sources in waits]
    ready = deque(index for index, count in enumerate(left) if count == 0)
    order: list[int] = []
    while ready:
        index = ready.popleft()
        order.append(index)
        for user in users.get(index, ()):
            left[user] -= 1
            if left[user] == 0:
                ready.append(user)
    if len(order) < len(needs):
        stuck = next(i for i, count in enumerate(left) if count)
        raise UsageError(f"{where}: {label(graph.node[stuck])} is part of a cycle")
    return order
