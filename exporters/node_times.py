"""How long each node of a graph takes, as onnxruntime itself records it.

Enters: an ONNX file or its bytes, and where and on what it runs. Leaves: one `NodeTime` for each
node that was executed: after fusion, so a convolution with the activation behind it is one node,
with the sizes that its kernel really computes (widths are padded where the kernel works in
blocks). Of providers that return before their work is done these times say nothing; there the
time of the whole graph is what can be measured (`whole_ms`, and `spread_times` for the nodes).
"""

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exporters.cores import on_core
from exporters.inputs import Shape, random_inputs
from exporters.session import Array, Session, open_session
from exporters.timing import garbage_collection_off, run_ms, warm_up

SYNCHRONOUS = ("cpu", "openvino")
"""Providers whose nodes have done their work when they return."""

_FEWEST_RUNS = 8
_MOST_RUNS = 100


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a graph is timed and on what.

    sizes: input name -> shape without the batch, where the file leaves it open. seed: of inputs.
    """

    provider: str
    threads: int
    cores: tuple[int, ...] = ()
    batch: int = 1
    sizes: Mapping[str, Shape] = field(default_factory=dict)
    seed: int = 0

    def open(self, model: Path | bytes, profile: Path | None = None) -> Session:
        """A session there."""
        return open_session(model, self.provider, self.threads, cores=self.cores, profile=profile)

    def inputs(self, session: Session) -> dict[str, Array]:
        """Random inputs for it."""
        return random_inputs(session, self.batch, self.sizes, self.seed)


@dataclass(frozen=True, kw_only=True)
class NodeTime:
    """One executed node. name: of the node, or of the tensor that it gives. shapes: as computed.

    ms: the mean of the faster half of its runs, since other processes only ever add to a time.
    """

    name: str
    op: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    ms: float

    def to_json(self) -> list[Any]:
        """For storing; `from_json` reads it."""
        return [self.name, self.op, self.inputs, self.outputs, self.ms]

    @classmethod
    def from_json(cls, entry: list[Any]) -> "NodeTime":
        """Inverse of `to_json`."""
        name, op, inputs, outputs, ms = entry
        shapes = (tuple(tuple(shape) for shape in shapes) for shapes in (inputs, outputs))
        return cls(name=name, op=op, inputs=next(shapes), outputs=next(shapes), ms=ms)


def node_times(model: Path | bytes, place: Place, seconds: float = 0.25) -> tuple[NodeTime, ...]:
    """Run for so long, 8 to 100 times, and read the record. Raises ExportError."""
    with tempfile.TemporaryDirectory() as folder:
        session = place.open(model, Path(folder, "nodes"))
        inputs = place.inputs(session)
        with on_core(place.cores), garbage_collection_off():
            runs, start = 0, time.perf_counter()
            while runs < _FEWEST_RUNS or (
                runs < _MOST_RUNS and time.perf_counter() - start < seconds
            ):
                session.run(inputs)
                runs += 1
        events = json.loads(session.end_profiling().read_text(encoding="utf-8"))
    return tuple(_read(events))


def whole_ms(model: Path | bytes, place: Place, seconds: float = 0.5) -> float:
    """The lower quartile of the times of the whole graph, until its device has finished."""
    session = place.open(model)
    run = session.bind(place.inputs(session))
    with on_core(place.cores), garbage_collection_off():
        warm_up(run)
        times: list[float] = []
        start = time.perf_counter()
        while len(times) < _FEWEST_RUNS or time.perf_counter() - start < seconds:
            times.append(run_ms(run))
    return float(np.percentile(times, 25))


def is_layer(node: NodeTime) -> bool:
    """Whether it multiplies its input by a second one, a weight mostly."""
    named = node.op.endswith(("Conv", "Gemm", "MatMul"))
    return named and len(node.inputs) > 1 and len(node.inputs[1]) > 1


def work(node: NodeTime) -> int:
    """Multiply-accumulates of a layer, as computed; 0 of any other node."""
    if not is_layer(node):
        return 0
    output, weight = math.prod(node.outputs[0]), node.inputs[1]
    return output * (
        math.prod(weight[1:])
        if len(weight) > 2
        else math.prod(weight) // max(node.outputs[0][-1], 1)
    )


def elements(node: NodeTime) -> int:
    """What it reads and writes."""
    return sum(math.prod(shape) for shape in (*node.inputs, *node.outputs))


def _read(events: list[dict[str, Any]]) -> Iterator[NodeTime]:
    by_node: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            by_node[f"{event['args'].get('node_index', '')}:{event['name']}"].append(event)
    for runs in by_node.values():
        args = runs[-1]["args"]
        yield NodeTime(
            name=runs[-1]["name"].removesuffix("_kernel_time").removesuffix("_nchwc"),
            op=args["op_name"],
            inputs=_shapes(args.get("input_type_shape", [])),
            outputs=_shapes(args.get("output_type_shape", [])),
            ms=_typical([run["dur"] for run in runs]) / 1000,
        )


def _typical(times: list[int]) -> float:
    """Times are whole microseconds, so their mean says more than any one of them."""
    return float(np.mean(sorted(times)[: (len(times) + 1) // 2]))


def _shapes(entries: list[dict[str, list[int]]]) -> tuple[Shape, ...]:
    return tuple(tuple(shape) for entry in entries for shape in entry.values())
