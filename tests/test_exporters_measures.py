"""Parity, accuracy and latency, on y = 2 x for x (N, 3) and on sessions with known answers."""

import json
import math
from collections.abc import Callable
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from exporters import latency
from exporters.accuracy import top1
from exporters.errors import ExportError
from exporters.latency import (
    LatencyComparison,
    LatencySettings,
    bootstrap_median_ci95,
    compare_latency,
)
from exporters.parity import check_parity
from exporters.session import Session, open_session


def doubling(batch: int | str = "batch", op: str = "MatMul") -> Session:
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        initializer=[numpy_helper.from_array(2 * np.eye(3, dtype=np.float32), "w")],
    )
    imports = [helper.make_opsetid("", 18)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return open_session(model.SerializeToString(), threads=1)


BATCHES = [torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[4.0, 5.0, 0.0], [0.5, 0.0, -1.0]])]


def test_equal_networks_have_parity() -> None:
    parity = check_parity(lambda x: 2 * x, doubling(), BATCHES)
    assert (parity.max_abs_diff, parity.output_scale, parity.batches) == (0.0, 10.0, 2)
    assert parity.ok
    assert check_parity(lambda x: {"logits": [2 * x]}, doubling(batch=2), BATCHES).ok


def test_the_difference_is_relative_to_the_scale_of_the_output() -> None:
    # 0.06 off on outputs up to 6.06 in the first batch, up to 10.06 in the second.
    parity = check_parity(lambda x: 2 * x + 0.06, doubling(), BATCHES, tolerance=0.009)
    assert parity.max_abs_diff == pytest.approx(0.06 / 6.06, rel=1e-4)
    assert not parity.ok
    assert check_parity(lambda x: 2 * x + 0.06, doubling(), BATCHES, tolerance=0.01).ok


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_an_output_that_is_not_finite_has_no_parity(broken: float) -> None:
    parity = check_parity(lambda x: x * broken, doubling(), BATCHES)
    assert parity.max_abs_diff == math.inf
    assert not parity.ok
    assert not check_parity(lambda x: 2 * x, doubling(), [torch.full((1, 3), broken)]).ok


def test_outputs_that_are_all_zero_prove_nothing() -> None:
    parity = check_parity(lambda x: 2 * x, doubling(), [torch.zeros(2, 3)])
    assert (parity.max_abs_diff, parity.ok) == (0.0, False)


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        (lambda x: x[:, :2], r"gives \[\(1, 2\)\], the ONNX file \[\(1, 3\)\]"),
        (lambda x: (x, x), r"gives \[\(1, 3\), \(1, 3\)\], the ONNX file"),
        (lambda _: "text", "gives a str, not tensors"),
        (nn.Linear(3, 3), "in training mode"),
    ],
)
def test_networks_that_cannot_be_compared_are_refused(
    reference: Callable[[Tensor], object], text: str
) -> None:
    with pytest.raises(ExportError, match=text):
        check_parity(reference, doubling(), BATCHES)


def test_parity_and_accuracy_need_batches() -> None:
    with pytest.raises(ExportError, match="no batches"):
        check_parity(lambda x: x, doubling(), [])
    with pytest.raises(ExportError, match="no samples"):
        top1(doubling(), [])


@pytest.mark.parametrize("batch", ["batch", 2])
def test_top1_counts_the_samples_whose_best_score_is_at_the_label(batch: int | str) -> None:
    batches = [
        (torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), torch.tensor([0, 1, 0])),
        (torch.tensor([[0, 3.0, 2]]), torch.tensor([1])),
        (torch.tensor([[math.nan, 0.0, 0.0]]), torch.tensor([0])),
    ]
    accuracy = top1(doubling(batch), batches)
    assert (accuracy.metric, accuracy.samples, accuracy.value) == ("top1", 5, 3 / 5)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (torch.tensor([0, 3]), "labels run from 0 to 3, the model has classes 0 to 2"),
        (torch.tensor([-1, 0]), "labels run from -1 to 0"),
        (torch.tensor([0]), "needs 2 integer labels"),
        (torch.tensor([0.0, 1.0]), r"needs 2 integer labels, got float32"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Tensor, text: str) -> None:
    with pytest.raises(ExportError, match=text):
        top1(doubling(), [(torch.rand(2, 3), labels)])


def test_an_output_that_is_not_class_scores_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["map"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 2, 2])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["n", 3, 2, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = open_session(model.SerializeToString())
    with pytest.raises(ExportError, match=r"\(N, classes\), 'map' is \(1, 3, 2, 2\)"):
        top1(session, [(torch.rand(1, 3, 2, 2), torch.tensor([0]))])


class Clock:
    """Time that passes only while a session of known latency runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms = 0.0
        self.calls: list[str] = []
        monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: self.now_ms * 1e6)
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now_ms / 1e3)

    def session(self, name: str, latency_ms: Callable[[int], float]) -> Session:
        clock = self

        class Timed:
            provider = "cpu"
            runs = 0

            def run(self, _: dict[str, np.ndarray]) -> list[np.ndarray]:
                clock.now_ms += latency_ms(self.runs)
                clock.calls.append(name)
                self.runs += 1
                return []

        return cast(Session, Timed())


INPUTS: dict[str, np.ndarray] = {"x": np.zeros((1, 3), np.float32)}


def test_a_speedup_is_measured_in_alternation_after_a_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    # Runs slow down together half way, as on a machine that throttles: the ratio stays 2.
    before = clock.session("b", lambda i: 10.0 if i < 60 else 30.0)
    after = clock.session("a", lambda i: 5.0 if i < 60 else 15.0)
    settings = LatencySettings(min_runs=50, min_seconds=0.5)
    found = compare_latency(before, after, INPUTS, settings)
    # 200 ms of warm-up each: 20 runs of 10 ms, 40 runs of 5 ms.
    assert clock.calls[:60] == ["b"] * 20 + ["a"] * 40
    pairs = ["".join(clock.calls[i : i + 2]) for i in range(60, len(clock.calls), 2)]
    assert set(pairs) == {"ab", "ba"}
    assert len(pairs) == found.before.n == found.after.n == 50
    assert found.before.p50_ms == 10.0
    assert len(found.samples_before_ms) == len(found.samples_after_ms) == 50


def test_the_interval_holds_the_ratio_of_steady_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = compare_latency(
        clock.session("b", lambda _: 30.0), clock.session("a", lambda _: 20.0), INPUTS
    )
    assert found.speedup_median == pytest.approx(1.5)
    assert found.speedup_ci95 == pytest.approx((1.5, 1.5))
    assert found.before.cv == pytest.approx(0, abs=1e-9)
    assert found.warnings == ()
    # 3 s are spent at the least: 60 pairs of 50 ms.
    assert found.before.n == 60


def test_noise_and_too_few_pairs_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    before = clock.session("b", lambda i: 500.0 if i % 2 else 1500.0)
    found = compare_latency(before, clock.session("a", lambda _: 1000.0), INPUTS)
    # 10 s hold five pairs of 2 s; their times are 1000 +- 500.
    assert found.before.n < 50
    assert "pairs fit into 10 s" in found.warnings[0]
    assert found.warnings[1].startswith("before: coefficient of variation")
    assert not any(w.startswith("after") for w in found.warnings)


def test_the_report_has_the_fixed_keys() -> None:
    settings = LatencySettings(min_runs=5, max_runs=5, min_seconds=0)
    found: LatencyComparison = compare_latency(doubling(), doubling(), INPUTS, settings)
    report = json.loads(json.dumps(found.to_dict()))
    assert (report["provider"], report["batch"]) == ("cpu", 1)
    for side in ("before", "after"):
        assert {"p50_ms", "p90_ms", "p99_ms", "n"} <= set(report[side])
        assert 0 < report[side]["p50_ms"] <= report[side]["p90_ms"] <= report[side]["p99_ms"]
        assert report[side]["n"] == 5
    assert set(report["speedup"]) == {"median", "ci95"}
    low, high = report["speedup"]["ci95"]
    assert low <= report["speedup"]["median"] <= high


def test_the_bootstrap_interval_agrees_with_order_statistics() -> None:
    """For n = 101 the exact 95 % interval of a median runs from rank 41 to rank 61."""
    values = np.random.default_rng(0).permutation(np.arange(1.0, 102.0))
    low, high = bootstrap_median_ci95(values, np.random.default_rng(1))
    assert low == pytest.approx(41, abs=2)
    assert high == pytest.approx(61, abs=2)
    assert bootstrap_median_ci95(values, np.random.default_rng(1)) == (low, high)


def test_what_does_not_compare_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Clock(monkeypatch).session("b", lambda _: 1.0)
    other = Clock(monkeypatch).session("a", lambda _: 1.0)
    other.provider = "cuda"
    with pytest.raises(ExportError, match="different providers do not compare: cpu and cuda"):
        compare_latency(session, other, INPUTS)
    with pytest.raises(ExportError, match=r"'x' is \(1, 3\), the stated batch is 8"):
        compare_latency(session, session, INPUTS, LatencySettings(batch=8))
    with pytest.raises(ExportError, match="min_runs <= max_runs"):
        LatencySettings(min_runs=10, max_runs=5)
    with pytest.raises(ExportError, match="min_seconds <= max_seconds"):
        LatencySettings(min_seconds=11)
