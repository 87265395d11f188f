"""Several runs side by side: which can be compared, and which no other one beats."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import Accuracy, Difference, Fidelity, Provider, build_report
from pipeline.report.compare import compare, comparison_html

sys.path.insert(0, str(Path(__file__).parent))

from test_pipeline_report_pages import ENVIRONMENT, measured, run, stored, times


def test_runs_that_no_other_run_beats_are_on_the_front(tmp_path: Path) -> None:
    figures = {"fast": (0.88, 2.0), "good": (0.91, 3.5), "beaten": (0.87, 2.5), "even": (0.88, 2.0)}
    folders = [stored(tmp_path / n, measured(*values)) for n, values in figures.items()]
    page = tmp_path / "all.html"
    result = run(*folders, "--output", page)
    assert result.exit_code == 0, result.output
    on_front = {line.split()[0]: line.split()[-1] for line in result.stdout.splitlines()[1:5]}
    assert on_front == {"fast": "yes", "good": "yes", "beaten": "no", "even": "yes"}
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "Comparison of 4 runs" in text


def test_runs_that_were_measured_otherwise_are_left_out_with_the_reason() -> None:
    def report(p50: float = 3.0, **changes: Any) -> Any:
        return build_report(replace(measured(p50=p50), **changes))

    base = measured()
    assert base.latency is not None
    skipped = {"latency": "not here"}
    made_up = Fidelity(metric="top1 agreement", samples=96, value=0.9)
    data_free = {"accuracy": None, "skipped": {"accuracy": "no data"}, "fidelity": made_up}
    runs = [
        ("one", report()),
        ("untimed", report(latency=None, skipped=skipped)),
        ("gpu", report(latency=replace(base.latency, provider="cuda"))),
        ("free", report(**data_free)),
        ("slow", report(p50=5.0)),
    ]
    found = {entry.name: entry.left_out for entry in compare(runs).entries}
    assert found["one"] is None
    assert found["slow"] is None
    assert found["untimed"] == "no: latency was not measured"
    assert found["gpu"] == "no: timed on cuda, batch 1, 1 thread, Linux"
    assert found["free"] == "no: judged by top1 agreement (n=96)"
    assert [entry.name for entry in compare(runs).front] == ["one"]


def test_the_front_goes_by_the_speed_up_where_the_original_is_one() -> None:
    """The second run met a busy machine: both of its files took twice as long."""
    quiet, busy = measured(accuracy=0.9, p50=2.0), measured(accuracy=0.9, p50=3.8)
    busy = replace(busy, latency=replace(busy.latency, before=times(8.0), speedup_median=8 / 3.8,
                                         speedup_ci95=(2.0, 2.2)))  # fmt: skip
    runs = [("quiet", build_report(quiet)), ("busy", build_report(busy))]
    found = compare(runs)
    assert found.scaled
    assert {entry.name for entry in found.front} == {"quiet", "busy"}  # 2.00x and 2.11x overlap
    assert [round(entry.charted_ms, 2) for entry in found.entries] == [2.0, 1.9]
    other = replace(busy, environment=ENVIRONMENT | {"hashes": {"model": "sha256:cd"}})
    found = compare([runs[0], ("other", build_report(other))])
    assert not found.scaled
    assert [entry.name for entry in found.front] == ["quiet"]


def test_runs_on_other_data_or_another_processor_are_left_out() -> None:
    hashes = {"model": "sha256:ab", "data": "sha256:ef"}
    runs = [
        ("one", build_report(measured())),
        ("data", build_report(measured(environment=ENVIRONMENT | {"hashes": hashes}))),
        ("cpu", build_report(measured(environment=ENVIRONMENT | {"processor": "another"}))),
    ]
    found = {entry.name: entry.left_out for entry in compare(runs).entries}
    assert found["one"] is None
    assert found["data"] == "no: judged on other data"
    assert found["cpu"] == "no: timed on cpu, batch 1, 1 thread, Linux, another"


def test_lower_is_better_turns_the_front_around() -> None:
    def report(error: float, p50: float) -> Any:
        accuracy = Accuracy(metric="error", samples=10, before=1.0, after=error,
                            higher_is_better=False, in_points=False)  # fmt: skip
        return build_report(replace(measured(p50=p50), accuracy=accuracy))

    runs = [("worse", report(2.0, 3.0)), ("better", report(1.5, 3.0))]
    assert [entry.name for entry in compare(runs).front] == ["better"]


def test_the_same_files_timed_in_another_process_do_not_beat_each_other() -> None:
    """Narrow intervals, 1.4 % apart: by where the memory of each process lies."""
    base = measured()
    assert base.latency is not None

    def report(speedup: float) -> Any:
        narrow = (speedup - 0.001, speedup + 0.001)
        found = replace(base.latency, speedup_median=speedup, speedup_ci95=narrow)
        return build_report(replace(base, latency=found))

    runs = [("a", report(1.161)), ("b", report(1.175)), ("c", report(1.25))]
    assert [entry.name for entry in compare(runs).front] == ["c"]
    assert [entry.name for entry in compare(runs[:2]).front] == ["b", "a"]


def left_out(*runs: Any) -> list[str | None]:
    """For each run after a sound first one."""
    return [e.left_out for e in compare([("0", build_report(measured())), *runs]).entries[1:]]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"parity": Difference(max_abs_diff=0.1, tolerance=1e-4)}, "no: parity missed"),
        ({"surgery": None, "skipped": {"surgery": "no time"}}, "no: not proven"),
        ({"provider": Provider(requested="cuda", ran=("cpu",))}, "no: provider missed"),
    ],
)
def test_a_file_that_failed_its_proof_is_never_on_the_front(
    changes: dict[str, Any], why: str
) -> None:
    best = build_report(measured(accuracy=0.95, p50=1.0, **changes))
    assert left_out(("best", best)) == [why]
    sound = build_report(measured())
    first = compare([("best", best), ("sound", sound), ("same", sound)])
    assert {entry.name for entry in first.front} == {"sound", "same"}


def test_a_run_alone_beats_nobody_and_one_with_data_says_what_is_compared() -> None:
    made_up = Fidelity(metric="top1 agreement", samples=96, value=0.99)
    free = {"accuracy": None, "skipped": {"accuracy": "no data"}, "fidelity": made_up}
    runs = [("free", build_report(replace(measured(), **free))), ("a", build_report(measured()))]
    found = compare(runs)
    assert found.front == []
    assert [entry.left_out for entry in found.entries] == [
        "no: judged by top1 agreement (n=96)",
        None,
    ]
    assert "No other run" not in comparison_html(found)


def test_names_of_runs_that_lie_close_are_one_label_and_failed_ones_are_marked() -> None:
    runs = [
        (name, build_report(measured(accuracy=accuracy, p50=p50, max_accuracy_drop=limit)))
        for name, accuracy, p50, limit in (
            ("a", 0.9, 3.0, None), ("b", 0.9001, 3.005, None), ("far", 0.5, 1.0, 1.0),
        )
    ]  # fmt: skip
    page = comparison_html(compare(runs))
    assert ">a, b</text>" in page
    assert "far (failed)" in page


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({}, None),
        ({"input_size": [3, 4, 4]}, "no: takes 3x4x4"),
        ({"data": {"source": "b.npz"}}, "no: judged on other data"),
        ({"data": {}}, "no: judged on other data"),
        ({"gpu": "another"}, "no: timed on cpu, batch 1, 1 thread, Linux, another"),
    ],
)
def test_what_was_measured_elsewhere_or_on_something_else_is_left_out(
    environment: dict[str, Any], why: str | None
) -> None:
    assert left_out(("x", build_report(measured(environment=ENVIRONMENT | environment)))) == [why]


def test_factories_of_one_file_are_different_data() -> None:
    hashes = {"model": "sha256:ab", "data": "sha256:ef"}

    def report(source: str) -> Any:
        told = {"hashes": hashes, "data": {"source": source}}
        return build_report(measured(environment=ENVIRONMENT | told))

    runs = [("a", report("d.py:one")), ("b", report("d.py:two")), ("c", report("copy/d.py:one"))]
    found = [entry.left_out for entry in compare(runs).entries]
    assert found == [None, "no: judged on other data", None]


def test_fidelity_is_compared_among_runs_of_one_original_alone() -> None:
    made_up = Fidelity(metric="top1 agreement", samples=96, value=0.9)

    def report(**changes: Any) -> Any:
        free = {"accuracy": None, "skipped": {"accuracy": "no data"}, "fidelity": made_up}
        return build_report(replace(measured(environment=ENVIRONMENT | changes), **free))

    runs = [("a", report()), ("b", report(hashes={"model": "sha256:cd"})), ("c", report())]
    found = [entry.left_out for entry in compare(runs).entries]
    assert found == [None, "no: of another original", None]


def test_runs_of_unknown_originals_are_not_taken_for_runs_of_one() -> None:
    unknown = ENVIRONMENT | {"hashes": {}}
    runs = [(name, build_report(measured(environment=unknown))) for name in "ab"]
    assert not compare(runs).scaled
