"""The steps of the staircase: of which number a width must be a multiple to be fast.

Enters: where graphs run. Leaves: one power of two. It is measured, not looked up: small networks of
ordinary layers (a 1x1 convolution, a depthwise one, a 3x3 one), whose widths are odd multiples of
1, 2, 4 ..., take turns with round widths, and the smallest multiple counts whose
multiply-accumulates take hardly longer than those of the best.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporters.cores import on_core
from exporters.latency import LatencySettings, Timed, measure_latency
from exporters.node_times import Place
from exporters.time_cache import TimeCache

STEPS = (1, 2, 4, 8, 16, 32)
# Odd multiples of each step, about as wide as the round widths that they are held against.
_TRIED = {1: (83, 107), 2: (82, 106), 4: (84, 108), 8: (88, 104), 16: (80, 112), 32: (96, 96)}
_ROUND = (64, 96, 128)
_IMAGE = 20
_HARDLY = 0.93
"""A step whose speed is at least this share of the best one's is as good."""
_SECONDS = 1.2


def fast_step(place: Place, cache: TimeCache | None = None) -> int:
    """The smallest multiple at which widths are computed at full speed, 1 to 32."""
    cache = cache or TimeCache()
    key = ("width step", place.provider, place.threads)
    known = cache.get(*key)
    if known in STEPS:
        return int(known)
    speeds = _speeds(place)
    best = max(speeds.values())
    step = min(step for step, speed in speeds.items() if speed >= _HARDLY * best)
    cache.put(step, *key)
    return step


def _speeds(place: Place) -> dict[int, float]:
    """Step -> how fast widths of odd multiples of it are, 1 being the speed of round widths."""
    widths = {width for pair in _TRIED.values() for width in pair} | set(_ROUND)
    ordered = sorted(widths)
    timed = [
        Timed(
            name=str(width),
            session=place.open(probe(width)),
            inputs={"x": np.ones((place.batch, 16, _IMAGE, _IMAGE), np.float32)},
        )
        for width in ordered
    ]
    settings = LatencySettings(
        batch=place.batch, min_runs=20, min_seconds=_SECONDS, max_seconds=3 * _SECONDS
    )
    with on_core(place.cores):
        found = measure_latency(timed, settings)
    rows = found.samples_ms[found.undisturbed]
    ms = dict(zip(ordered, np.percentile(rows, 25, axis=0), strict=True))
    slope, offset = np.polyfit([_macs(w) for w in _ROUND], [ms[w] for w in _ROUND], 1)
    return {
        step: float(np.mean([(offset + slope * _macs(w)) / ms[w] for w in pair]))
        for step, pair in _TRIED.items()
    }


def _macs(width: int) -> int:
    """Of the probe, for each position of the image."""
    return width * (16 + 9 + width + 9 * width)


def probe(width: int) -> bytes:
    """16 channels -> `width`, then depthwise, 1x1 and 3x3 layers of that width, each with a ReLU;
    (N, 16, H, W) to (N, width)."""
    shapes = {
        "widen": (width, 16, 1, 1),
        "depthwise": (width, 1, 3, 3),
        "point": (width, width, 1, 1),
        "full": (width, width, 3, 3),
    }
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for name, shape in shapes.items():
        values = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"{name}.weight"))
        pads = [shape[2] // 2] * 4
        group = width if name == "depthwise" else 1
        nodes.append(
            helper.make_node("Conv", [last, f"{name}.weight"], [name], pads=pads, group=group)
        )
        nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"]))
        last = f"{name}.relu"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["y"]))
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16, _IMAGE, _IMAGE]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width]),
    ]
    graph = helper.make_graph(nodes, "probe", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content
