"""Latency on sessions whose times are known, and on real ones."""

import json
import os
from collections.abc import Callable
from typing import cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters import timing
from exporters.cores import on_core, quiet_cores, usable_cores
from exporters.errors import ExportError
from exporters.intervals import Looks, fewest_values, median_interval
from exporters.latency import LatencySettings, Timed, compare_latency, measure_latency
from exporters.latency_limits import LatencyLimits, judge
from exporters.session import Session, open_session

INPUTS: dict[str, np.ndarray] = {"x": np.zeros((1, 3), np.float32)}


def doubling() -> Session:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        initializer=[numpy_helper.from_array(2 * np.eye(3, dtype=np.float32), "w")],
    )
    imports = [helper.make_opsetid("", 18)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return open_session(model.SerializeToString(), threads=1)


class Clock:
    """Time that passes only while a session of known latency runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms = 0.0
        self.calls: list[str] = []
        monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: self.now_ms * 1e6)
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now_ms / 1e3)

    def timed(self, name: str, latency_ms: Callable[[int], float], copies_ms: float = 0.0) -> Timed:
        clock = self

        class Fake:
            provider = "cpu"
            runs = 0

            def bind(self, _: dict[str, np.ndarray]) -> Callable[[], None]:
                def call() -> None:
                    clock.now_ms += latency_ms(self.runs)
                    clock.calls.append(name)
                    self.runs += 1

                return call

            def run(self, _: dict[str, np.ndarray]) -> list[np.ndarray]:
                clock.now_ms += latency_ms(0) + copies_ms
                return []

        return Timed(name=name, session=cast(Session, Fake()), inputs=INPUTS)


def test_a_speedup_is_measured_in_turns_of_random_order(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    # Runs slow down together half way, as on a machine that throttles: the ratio stays 2.
    found = compare_latency(
        clock.timed("b", lambda i: 10.0 if i < 60 else 30.0),
        clock.timed("a", lambda i: 5.0 if i < 80 else 15.0),
        LatencySettings(min_runs=50, min_seconds=0.5),
    )
    n = found.before.n
    assert n == found.after.n == len(found.measured.samples_ms) >= 50
    pairs = ["".join(clock.calls[-2 * n :][i : i + 2]) for i in range(0, 2 * n, 2)]
    assert set(pairs) == {"ab", "ba"}
    assert found.speedup_median == pytest.approx(2)
    assert found.speedup_ci95 == pytest.approx((2, 2))


def test_the_warm_up_lasts_until_times_are_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    timed = clock.timed("a", lambda i: max(100.0 - 5 * i, 20.0))
    assert timing.warm_up(timed.session.bind(INPUTS))
    # It gets faster up to the 16th run: ten equal runs follow, and ten that equal them.
    assert 30 <= len(clock.calls) <= 36
    slow = clock.timed("s", lambda _: 1000.0)
    assert timing.warm_up(slow.session.bind(INPUTS))
    assert clock.calls.count("s") == 3
    cooling = clock.timed("c", lambda i: 100 * 0.99**i)
    assert not timing.warm_up(cooling.session.bind(INPUTS))


def test_steady_runs_have_a_point_as_interval_and_no_warnings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    found = compare_latency(
        clock.timed("before", lambda _: 30.0), clock.timed("after", lambda _: 20.0)
    )
    assert found.speedup_median == pytest.approx(1.5)
    assert found.before.cv == pytest.approx(0, abs=1e-9)
    assert found.before.p50_ci95_ms == pytest.approx((30, 30))
    assert found.measured.warnings == ()
    # 3 s are spent at the least: 60 rounds of 50 ms.
    assert found.before.n in (60, 61)


def test_copies_are_measured_apart_from_the_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = measure_latency(
        [clock.timed("a", lambda _: 20.0, copies_ms=5.0)], LatencySettings(min_seconds=1)
    )
    assert found.stats[0].copies_ms == pytest.approx(5)
    assert found.stats[0].p50_ms == pytest.approx(20)


def test_noise_and_too_few_rounds_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = compare_latency(
        clock.timed("before", lambda i: 500.0 if i % 2 else 1500.0),
        clock.timed("after", lambda _: 1000.0),
    )
    # 10 s hold five rounds of 2 s; the times are 1000 +- 500.
    assert 2 <= found.before.n < 10
    warnings = found.measured.warnings
    assert "rounds fit into 10 s" in warnings[0]
    assert warnings[1].startswith("before: coefficient of variation")
    assert not any(w.startswith("after") for w in warnings)


def test_the_report_has_the_fixed_keys() -> None:
    settings = LatencySettings(min_runs=5, max_runs=5, min_seconds=0.001)
    timed = [Timed(name=name, session=doubling(), inputs=INPUTS) for name in ("a", "b")]
    report = json.loads(json.dumps(compare_latency(timed[0], timed[1], settings).to_dict()))
    assert (report["provider"], report["batch"]) == ("cpu", 1)
    for side in ("before", "after"):
        assert {"p50_ms", "p90_ms", "p99_ms", "n"} <= set(report[side])
        assert 0 < report[side]["p50_ms"] <= report[side]["p90_ms"] <= report[side]["p99_ms"]
        assert report[side]["n"] == 5
    assert set(report["speedup"]) == {"median", "ci95"}
    low, high = report["speedup"]["ci95"]
    assert low <= report["speedup"]["median"] <= high


def test_what_does_not_compare_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Clock(monkeypatch).timed("b", lambda _: 1.0)
    other = Clock(monkeypatch).timed("a", lambda _: 1.0)
    other.session.provider = "cuda"
    with pytest.raises(ExportError, match="different providers do not compare: cpu and cuda"):
        compare_latency(timed, other)
    with pytest.raises(ExportError, match=r"'x' is \(1, 3\), the stated batch is 8"):
        compare_latency(timed, timed, LatencySettings(batch=8))
    with pytest.raises(ExportError, match="min_runs <= max_runs"):
        LatencySettings(min_runs=10, max_runs=5)
    with pytest.raises(ExportError, match="min_seconds <= max_seconds"):
        LatencySettings(min_seconds=11)
    with pytest.raises(ExportError, match="inputs do not fit"):
        doubling().bind({"z": INPUTS["x"]})


def test_the_interval_agrees_with_order_statistics() -> None:
    """For n = 101 the exact 95 % interval of a median runs from rank 41 to rank 61."""
    values = np.random.default_rng(0).permutation(np.arange(1.0, 102.0))
    low, high = median_interval(values, np.random.default_rng(1))
    assert low == pytest.approx(41, abs=2)
    assert high == pytest.approx(61, abs=2)
    assert median_interval(values, np.random.default_rng(1)) == (low, high)
    wider = median_interval(values, np.random.default_rng(1), level=0.99)
    assert wider[0] < low
    assert wider[1] > high


def test_an_interval_needs_values_enough_to_be_that_sure() -> None:
    # Five values all on one side of the median: 2 * 0.5^5 = 6 %; six: 3 %.
    assert fewest_values(0.95) == 6
    assert fewest_values(0.5) == 2


def test_looks_grow_by_half_and_share_the_allowed_error() -> None:
    looks = Looks.plan(2, 10, error=0.05)
    assert looks.seconds == pytest.approx((2, 3, 4.5, 6.75, 10))
    assert looks.level == pytest.approx(0.99)
    assert Looks.plan(5, 5).seconds == (5,)


def noisy(n: int, slower: float, seed: int) -> np.ndarray:
    """(n, 2) ms of a busy machine: common drift, spikes in bouts, and a second column slower."""
    rng = np.random.default_rng(seed)
    drift = 1 + 0.2 * np.sin(np.linspace(0, 20, n))[:, None]
    bout = np.repeat(rng.random(-(-n // 25)) < 0.3, 25)[:n, None]
    spikes = bout * (rng.random((n, 2)) < 0.4) * rng.exponential(4.0, (n, 2))
    return (drift * np.array([1.0, 1 + slower]) * rng.normal(1, 0.02, (n, 2))) + spikes


def wrong_verdicts(slower: float, expected: str, runs: int) -> int:
    """How many of `runs` sequences of looks end with a verdict other than `expected`."""
    looks = Looks.plan(2, 20)
    wrong = 0
    for seed in range(runs):
        times = noisy(4000, slower, seed)
        rng = np.random.default_rng(seed)
        for seconds in looks.seconds:
            seen = times[: int(200 * seconds)]
            (verdict,) = judge(seen, LatencyLimits(max_regression=0.03), looks.level, rng)
            if verdict.decided:
                wrong += verdict.state != expected
                break
        else:
            wrong += 1
    return wrong


def test_equal_times_are_never_taken_for_a_regression_and_real_ones_always() -> None:
    assert wrong_verdicts(0.0, "pass", 40) == 0
    assert wrong_verdicts(0.10, "fail", 40) == 0


def test_at_the_limit_itself_repeated_looks_seldom_decide_against_it() -> None:
    """Exactly 3 % slower is allowed. All looks together may say otherwise in 5 % of the runs."""
    looks = Looks.plan(2, 20)
    failed = 0
    for seed in range(20):
        times = noisy(1600, 0.03, seed)
        rng = np.random.default_rng(seed)
        for seconds in looks.seconds:
            limits = LatencyLimits(max_regression=0.03)
            (verdict,) = judge(times[: int(80 * seconds)], limits, looks.level, rng)
            if verdict.decided:
                failed += verdict.state == "fail"
                break
    assert failed <= 2


@pytest.mark.parametrize(
    ("limits", "state"),
    [
        (LatencyLimits(max_ms=6.0), "pass"),
        (LatencyLimits(max_ms=4.0), "fail"),
        (LatencyLimits(min_speedup=1.9), "pass"),
        (LatencyLimits(min_speedup=2.1), "fail"),
        (LatencyLimits(max_regression=0.0), "pass"),
    ],
)
def test_each_limit_passes_and_fails_on_its_side(
    monkeypatch: pytest.MonkeyPatch, limits: LatencyLimits, state: str
) -> None:
    clock = Clock(monkeypatch)
    found = compare_latency(
        clock.timed("b", lambda _: 10.0), clock.timed("a", lambda _: 5.0), None, limits
    )
    assert [v.state for v in found.measured.verdicts] == [state]


def test_the_run_grows_while_a_limit_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    settings = LatencySettings(min_seconds=1, max_seconds=9)
    # Half of the runs are under the limit and half over it, so the interval holds the limit.
    timed = clock.timed("a", lambda i: 4.0 if i % 2 else 6.0)
    found = measure_latency([timed], settings, LatencyLimits(max_ms=5.0))
    assert [v.state for v in found.verdicts] == ["undecided"]
    assert found.seconds == pytest.approx(9, abs=0.1)
    easy = measure_latency([timed], settings, LatencyLimits(max_ms=50.0))
    assert [v.state for v in easy.verdicts] == ["pass"]
    assert easy.seconds == pytest.approx(1, abs=0.1)


def test_too_few_rounds_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Clock(monkeypatch).timed("a", lambda _: 4000.0)
    found = measure_latency([timed], LatencySettings(), LatencyLimits(max_ms=1.0))
    assert [v.state for v in found.verdicts] == ["undecided"]


def test_rounds_that_another_process_broke_are_left_out_of_the_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, preempted = Clock(monkeypatch), [0]
    monkeypatch.setattr(timing, "_times_preempted", lambda: preempted[0])

    def broken_every_third_time(i: int) -> float:
        if i % 3:
            return 10.0
        preempted[0] += 1
        return 50.0

    timed = clock.timed("a", broken_every_third_time), clock.timed("b", lambda _: 10.0)
    found = compare_latency(timed[0], timed[1], LatencySettings(min_seconds=3))
    assert found.measured.undisturbed_share == pytest.approx(2 / 3, abs=0.02)
    assert found.speedup_ci95 == pytest.approx((1, 1))
    assert found.before.p90_ms == 50.0


def test_where_nearly_all_rounds_are_broken_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, preempted = Clock(monkeypatch), [0]
    monkeypatch.setattr(timing, "_times_preempted", lambda: preempted[0])

    def always_broken(_: int) -> float:
        preempted[0] += 1
        return 50.0

    found = measure_latency([clock.timed("a", always_broken)], LatencySettings())
    assert found.undisturbed_share == 1


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_limits_that_nothing_can_meet_are_refused(value: float) -> None:
    for name in ("max_ms", "min_speedup"):
        with pytest.raises(ExportError, match=name):
            LatencyLimits(**{name: value})
    if value != 0.0:
        with pytest.raises(ExportError, match="max_regression"):
            LatencyLimits(max_regression=value)


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(ExportError, match=r"threads do not fit on the \d+ cores"):
        quiet_cores(usable_cores() + 1)
    with pytest.raises(ExportError, match="at least 1, got 0"):
        quiet_cores(0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no threads")
def test_the_calling_thread_stays_on_one_core_and_is_free_again_afterwards() -> None:
    allowed = os.sched_getaffinity(0)
    cores = quiet_cores(1)
    with pytest.raises(KeyError), on_core(cores):
        assert os.sched_getaffinity(0) == set(cores) <= allowed
        raise KeyError
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize("n", [1500, 1501, 1600, 3000, 6001])
def test_more_values_do_not_move_the_interval_of_skewed_times(n: int) -> None:
    """Many values are taken together first, which must not make another quantity of the median."""
    values = np.random.default_rng(0).exponential(1.0, n)
    low, high = median_interval(values, np.random.default_rng(1), 0.993)
    assert low < np.log(2) < high
    assert high - np.log(2) < 0.15
