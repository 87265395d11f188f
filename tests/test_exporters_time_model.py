"""From times of nodes to a formula, against formulas that the times were made of."""

import numpy as np
import pytest

import exporters
from exporters.node_times import NodeTime, Place, node_times, work
from exporters.spread_times import spread
from exporters.time_model import Sample, fit_times
from exporters.width_steps import fast_step, probe

RNG = np.random.default_rng(0)
WIDTHS = [RNG.integers(4, 65, 3) for _ in range(12)]


def up(width: int, block: int) -> int:
    return -(-width // block) * block


def conv(name: str, widths, block: int, image: int = 8) -> NodeTime:
    """A convolution from width 0 to width 1 whose kernel computes in blocks."""
    a, b = (up(int(w), block) for w in widths[:2])
    ms = 0.01 + 0.001 * a + 0.002 * b + 0.0005 * a * b
    return NodeTime(
        name=name,
        op="Conv",
        inputs=((1, a, image, image), (b, a, 3, 3)),
        outputs=((1, b, image, image),),
        ms=ms,
    )


def total(fit, widths) -> float:
    """Milliseconds, computed here from the terms."""
    return sum(
        t.ms * np.prod([up(int(widths[w]), s) for w, s in zip(t.widths, t.steps, strict=True)])
        for t in fit.terms
    )


@pytest.mark.parametrize("block", [1, 8, 16])
def test_times_of_blocked_kernels_are_found_again(block):
    fit = fit_times([Sample(widths=w, nodes=(conv("x", w, block),)) for w in WIDTHS])
    for widths in ([33, 40, 7], [48, 16, 9], [5, 61, 30]):
        expected = conv("x", widths, block).ms
        assert total(fit, widths) == pytest.approx(expected, rel=0.02)
    assert fit.typical_error < 0.01
    assert set(fit.steps.values()) == {block}


def test_layers_of_one_kind_share_their_points():
    """Each is measured at three widths only, which alone would not settle four coefficients."""
    samples = []
    for number, widths in enumerate(WIDTHS):
        swapped = np.array([widths[1], widths[2], widths[0]])
        nodes = (conv("x", widths, 1), conv("y", swapped, 1), conv("z", swapped[::-1], 1))
        samples.append(Sample(widths=widths, nodes=nodes))
        if number == 3:
            break
    fit = fit_times(samples)
    x, y, z = 50, 20, 35
    expected = conv("x", [x, y], 1).ms + conv("y", [y, z], 1).ms + conv("z", [x, z], 1).ms
    assert total(fit, [x, y, z]) == pytest.approx(expected, rel=0.02)


def test_what_no_width_explains_is_a_constant_and_what_is_rare_is_left_out():
    odd = NodeTime(name="odd", op="Mystery", inputs=((3,),), outputs=((3,),), ms=0.5)
    rare = NodeTime(name="rare", op="Reorder", inputs=((3,),), outputs=((3,),), ms=9.0)
    samples = [
        Sample(widths=w, nodes=(odd, rare) if number == 0 else (odd,))
        for number, w in enumerate(WIDTHS)
    ]
    fit = fit_times(samples)
    assert total(fit, [4, 4, 4]) == pytest.approx(0.5)


def test_samples_without_a_common_node_are_refused():
    with pytest.raises(exporters.ExportError, match="no node ran at most of the widths"):
        fit_times([Sample(widths=w, nodes=()) for w in WIDTHS])


def test_executed_nodes_are_read_with_the_sizes_that_they_compute():
    nodes = node_times(probe(24), Place(provider="cpu", threads=1), seconds=0.02)
    assert all(node.ms >= 0 for node in nodes)
    full = next(
        n for n in nodes if "Conv" in n.op and n.inputs[1][2:] == (3, 3) and n.inputs[1][1] > 1
    )
    assert full.outputs[0][0] == 1 and full.outputs[0][1] >= 24
    assert NodeTime.from_json(full.to_json()) == full


def test_whole_times_are_spread_over_nodes_by_what_they_do():
    """Priced here: 0.01 ms a start, 1e-6 an element, 1e-7 a multiply-accumulate."""

    def priced(widths) -> tuple[tuple[NodeTime, ...], float]:
        layer, total = conv("x", widths, 1), 0.0
        pool = NodeTime(name="p", op="Pool", inputs=layer.outputs, outputs=((1, 4, 1, 1),), ms=0.0)
        for node in (layer, pool):
            total += 0.01 + 1e-6 * sum(np.prod(s) for s in (*node.inputs, *node.outputs))
        return (layer, pool), total + 1e-7 * 64 * 9 * widths[0] * widths[1]

    graphs = [priced(widths) for widths in WIDTHS]
    found = spread([nodes for nodes, _ in graphs], [ms for _, ms in graphs])
    for nodes, (before, ms) in zip(found, graphs, strict=True):
        assert sum(node.ms for node in nodes) == pytest.approx(ms, rel=1e-6)
        assert [node.name for node in nodes] == [node.name for node in before]
    layer = found[0][0]
    a, b = WIDTHS[0][:2]
    expected = 0.01 + 1e-6 * (64 * a + 9 * a * b + 64 * b) + 1e-7 * 64 * 9 * a * b
    assert layer.ms == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "macs"),
    [
        ("Conv", ((1, 8, 4, 4), (6, 8, 3, 3)), ((1, 6, 4, 4),), 16 * 6 * 72),
        ("FusedConv", ((1, 8, 4, 4), (8, 1, 3, 3)), ((1, 8, 4, 4),), 16 * 8 * 9),
        ("Gemm", ((2, 10), (5, 10)), ((2, 5),), 2 * 50),
        ("MatMul", ((1, 7, 10), (10, 5)), ((1, 7, 5),), 7 * 50),
        ("Add", ((1, 8, 4, 4), (1, 8, 4, 4)), ((1, 8, 4, 4),), 0),
    ],
)
def test_the_work_of_a_node_by_hand(op, inputs, outputs, macs):
    assert work(NodeTime(name="n", op=op, inputs=inputs, outputs=outputs, ms=1.0)) == macs


class Remembered:
    def __init__(self, value=None):
        self.value = value

    def get(self, *_key):
        return self.value

    def put(self, value, *_key):
        self.value = value


def test_the_smallest_step_that_is_hardly_slower_counts(monkeypatch):
    found = {1: 0.5, 2: 0.55, 4: 0.9, 8: 0.95, 16: 1.0, 32: 0.99}
    monkeypatch.setattr("exporters.width_steps._speeds", lambda _place: found)
    cache = Remembered()
    assert fast_step(Place(provider="cpu", threads=1), cache) == 8
    assert cache.value == 8


def test_a_known_step_is_not_measured_again(monkeypatch):
    monkeypatch.setattr("exporters.width_steps._speeds", lambda _place: pytest.fail("measured"))
    assert fast_step(Place(provider="cpu", threads=1), Remembered(4)) == 4


def test_times_are_kept_between_runs_and_damage_counts_as_nothing(tmp_path):
    from exporters.time_cache import TimeCache

    cache = TimeCache(tmp_path)
    cache.put([1.5], "nodes", 3)
    assert TimeCache(tmp_path).get("nodes", 3) == [1.5]
    assert cache.get("nodes", 4) is None
    for file in tmp_path.iterdir():
        file.write_text("{")
    assert cache.get("nodes", 3) is None
