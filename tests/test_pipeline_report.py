import hashlib
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.report import (
    Accuracy,
    BeforeAfter,
    Difference,
    Latency,
    LatencySummary,
    Measurements,
    Provider,
    build_report,
    environment,
    render_html,
    summary_table,
)
from pipeline.report.format import count

# Written down from the documented layout of report.json, not read from the code.
KEYS = {
    "target": {"flops_kept", "params_kept", "latency_ms"},
    "flops": {"before", "after", "kept"},
    "params": {"before", "after", "kept"},
    "size_bytes": {"before", "after"},
    "accuracy": {"metric", "samples", "before", "after"},
    "surgery": {"max_abs_diff", "tolerance"},
    "parity": {"max_abs_diff", "tolerance"},
    "latency": {"provider", "batch", "before", "after", "speedup"},
    "environment": {"versions", "device", "provider", "seed", "hashes"},
    "verdict": {"flops", "params", "surgery", "parity", "accuracy", "latency", "provider"},
}


def _measured(**changes: Any) -> Measurements:
    full = Measurements(
        flops=BeforeAfter(before=41_000_000, after=24_600_000),
        params=BeforeAfter(before=270_000, after=135_000),
        size_bytes=BeforeAfter(before=1_100_000, after=600_000),
        accuracy=Accuracy(metric="top-1", samples=1000, before=0.932, after=0.927),
        surgery=Difference(max_abs_diff=1e-6, tolerance=1e-4),
        parity=Difference(max_abs_diff=2e-6, tolerance=1e-4),
        latency=Latency(
            provider="cpu",
            batch=1,
            before=LatencySummary(p50_ms=4.0, p90_ms=4.4, p99_ms=5.0, n=200),
            after=LatencySummary(p50_ms=3.0, p90_ms=3.3, p99_ms=4.0, n=200),
            speedup_median=1.33,
            speedup_ci95=(1.30, 1.37),
        ),
        provider=Provider(requested="cpu", ran=("cpu",)),
        target_flops=24_600_000,
        max_accuracy_drop=0.5,
        groups=[
            {
                "name": "g0",
                "size_before": 16,
                "size_after": 16,
                "layers": ["conv1", "bn1"],
                "frozen": True,
                "reason": "<script>alert(1)</script>",
            }
        ],
        stages=[{"name": "trace", "seconds": 0.31, "groups": 1}],
        environment={
            "versions": {"torch": "2.15.0"},
            "device": "cpu",
            "provider": "cpu",
            "seed": 0,
            "hashes": {"model": "sha256:ab"},
            "command": "compress --target-flops 0.6 'a & b.pt'",
        },
    )
    return replace(full, **changes)


def _text(measured: Measurements, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(summary_table(build_report(measured)))
    return console.export_text()


def test_the_json_has_the_documented_keys() -> None:
    content = json.loads(build_report(_measured()).to_json())
    others = {"precision", "groups", "stages", "exit_code", "fidelity", "data_free"}
    others |= {"layers", "history", "sensitivity"}
    assert set(content) == set(KEYS) | others
    for section, keys in KEYS.items():
        assert keys <= set(content[section]), section
    for when in ("before", "after"):
        assert {"p50_ms", "p90_ms", "p99_ms", "n", "cv", "quantiles_ms"} == set(
            content["latency"][when]
        )
    assert content["latency"]["speedup"] == {"median": 1.33, "ci95": [1.30, 1.37]}
    assert content["flops"]["kept"] == pytest.approx(0.6)
    assert content["target"]["flops_kept"] == pytest.approx(0.6)


def test_a_run_that_keeps_its_promises_exits_with_zero() -> None:
    report = build_report(_measured())
    assert report.exit_code == 0
    assert report.verdict == {
        "flops": "met",
        "params": "skipped: no target was asked",
        "surgery": "met",
        "parity": "met",
        "accuracy": "met",
        "latency": "skipped: no target was asked",
        "provider": "met",
    }


TOO_MANY = {"target_flops": 24_599_999}
TOO_LARGE = {"target_params": 134_999}
NOT_EQUAL = {"surgery": Difference(max_abs_diff=2e-4, tolerance=1e-4)}
NO_PARITY = {"parity": Difference(max_abs_diff=math.nan, tolerance=1e-4)}
TOO_WRONG = {"max_accuracy_drop": 0.4}
TOO_SLOW = {"target_latency_kept": 0.74}
ELSEWHERE = {"provider": Provider(requested="cuda", ran=("cpu",))}


@pytest.mark.parametrize(
    ("changes", "check", "exit_code"),
    [
        (TOO_MANY, "flops", 10),
        (TOO_LARGE, "params", 10),
        (NOT_EQUAL, "surgery", 11),
        (NO_PARITY, "parity", 11),
        (TOO_WRONG, "accuracy", 12),
        (TOO_SLOW, "latency", 13),
        (ELSEWHERE, "provider", 14),
    ],
)
def test_each_missed_check_has_its_exit_code(
    changes: dict[str, Any], check: str, exit_code: int
) -> None:
    report = build_report(_measured(**changes))
    missed = [name for name, verdict in report.verdict.items() if verdict == "missed"]
    assert (missed, report.exit_code) == ([check], exit_code)


def test_of_several_misses_all_are_listed_and_the_first_gives_the_exit_code() -> None:
    report = build_report(_measured(**ELSEWHERE, **TOO_SLOW, **TOO_WRONG, **NO_PARITY))
    missed = [name for name, verdict in report.verdict.items() if verdict == "missed"]
    assert missed == ["parity", "accuracy", "latency", "provider"]
    assert report.exit_code == 11


def test_a_drop_of_exactly_the_allowed_points_is_met() -> None:
    # In binary, (0.932 - 0.927) * 100 is a little more than 0.5.
    assert (0.932 - 0.927) * 100 > 0.5
    assert build_report(_measured(max_accuracy_drop=0.5)).verdict["accuracy"] == "met"


def test_latency_is_judged_by_what_was_asked() -> None:
    # 1.33 times as fast is 0.752 of the time; the median after is 3 ms
    assert build_report(_measured(target_latency_kept=0.752)).verdict["latency"] == "met"
    assert build_report(_measured(target_latency_kept=0.751)).verdict["latency"] == "missed"
    slack = {"latency_tolerance": 0.03}
    assert build_report(_measured(target_latency_kept=0.735, **slack)).verdict["latency"] == "met"
    assert build_report(_measured(target_latency_ms=3.0)).verdict["latency"] == "met"
    assert build_report(_measured(target_latency_ms=2.9)).verdict["latency"] == "missed"


def test_a_skipped_check_carries_its_reason_and_does_not_fail_when_not_asked() -> None:
    measured = _measured(
        accuracy=None, max_accuracy_drop=None, skipped={"accuracy": "no --data was given"}
    )
    report = build_report(measured)
    assert report.verdict["accuracy"] == "skipped: no --data was given"
    assert report.accuracy is None
    assert report.exit_code == 0


def test_a_check_that_was_asked_for_fails_when_skipped() -> None:
    report = build_report(_measured(accuracy=None, skipped={"accuracy": "no labels"}))
    assert report.exit_code == 12


def test_a_skipped_proof_fails() -> None:
    report = build_report(_measured(surgery=None, skipped={"surgery": "no time"}))
    assert report.exit_code == 11
    assert "not proven" in _text(_measured(surgery=None, skipped={"surgery": "no time"}))


def test_a_measurement_neither_there_nor_excused_is_refused() -> None:
    with pytest.raises(ValueError, match=r"neither measured nor skipped .*\['parity'\]"):
        _measured(parity=None)
    with pytest.raises(ValueError, match=r"skipped names no check: \['party'\]"):
        _measured(skipped={"party": "x"})
    with pytest.raises(ValueError, match=r"both measured and skipped: \['parity'\]"):
        _measured(skipped={"parity": "x"})


def test_a_baseline_without_counts_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing counted"):
        BeforeAfter(before=0, after=0)


def test_numbers_that_are_not_finite_become_null() -> None:
    content = json.loads(build_report(_measured(**NO_PARITY)).to_json())
    assert content["parity"] == {"max_abs_diff": None, "tolerance": 1e-4}


def test_the_summary_fits_80_columns_and_has_the_figures() -> None:
    text = _text(_measured(**TOO_WRONG))
    assert max(len(line) for line in text.splitlines()) <= 80
    flops = next(line for line in text.splitlines() if line.startswith("FLOPs"))
    assert flops.split() == ["FLOPs", "(MACs)", "41.0", "M", "24.6", "M", "60.0", "%"]
    for part in ("270 k", "135 k", "93.20 %", "-0.50 points", "1.33x [1.30, 1.37]", "n=200"):
        assert part in text
    for part in ("max |diff| 1.00e-06", "missed: accuracy (exit code 12)"):
        assert part in text


def test_the_summary_says_when_the_result_is_slower_or_not_clearly_faster() -> None:
    latency = _measured().latency
    assert latency is not None
    slow = replace(latency, speedup_median=0.9, speedup_ci95=(0.85, 0.95))
    unclear = replace(latency, speedup_median=1.0, speedup_ci95=(0.95, 1.05))
    assert "slower" in _text(_measured(latency=slow))
    assert "no clear change" in _text(_measured(latency=unclear))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12, "12 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_499, "999 kB"),
        (999_600, "1.00 MB"),
        (1_234_567, "1.23 MB"),
        (4_100_000_000, "4.10 GB"),
    ],
)
def test_counts_are_written_with_three_digits(value: int, text: str) -> None:
    assert count(value, "B") == text


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        values = dict(attrs)
        assert "src" not in values
        assert all((values.get(name) or "#").startswith("#") for name in ("href", "xlink:href"))
        if "id" in values:
            assert values["id"] not in self.ids
            self.ids.add(values["id"] or "")
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_self_contained_and_escaped() -> None:
    page = render_html(build_report(_measured()))
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a &amp; b.pt" in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_leads_with_the_verdict() -> None:
    page = render_html(build_report(_measured(**TOO_MANY)))
    at = [
        page.index(part) for part in ("Failed: FLOPs missed. Exit code 10.", ">Before and after<")
    ]
    assert at == sorted(at)


def test_the_page_renders_without_optional_measurements() -> None:
    reasons = dict.fromkeys(("accuracy", "latency", "provider"), "no --data")
    bare = _measured(
        accuracy=None,
        latency=None,
        provider=None,
        skipped=reasons,
        groups=(),
        stages=(),
        environment={},
        max_accuracy_drop=None,
    )
    page = render_html(build_report(bare))
    assert "Not judged: no --data." in page
    assert "None were recorded." in page


def test_the_environment_names_versions_seed_and_hashes(tmp_path: Path) -> None:
    model = tmp_path / "model.pt"
    model.write_bytes(b"weights")
    found = environment(seed=3, device="cpu", provider="cpu", inputs={"model": model})
    assert found["seed"] == 3
    assert found["hashes"]["model"] == f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    assert {"python", "torch", "onnx", "numpy"} <= set(found["versions"])
    assert found["cpu_count"] >= 1


@pytest.mark.parametrize(
    ("device", "provider", "ran_on", "trained_on"),
    [
        ("cpu", "cpu", None, None),
        ("cpu", "cuda", "GPU 0", None),
        ("cpu,tensorrt", "cpu,tensorrt", "GPU 0", None),  # as compress bench
        ("cuda:1", "cpu", None, "GPU 1"),
        ("cuda:1", "cuda", "GPU 0", "GPU 1"),  # onnxruntime takes the first
        ("mps", "cpu", None, None),
    ],
)
def test_the_environment_names_the_gpus_that_took_part(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    provider: str,
    ran_on: str | None,
    trained_on: str | None,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", "GPU {}".format)
    found = environment(seed=0, device=device, provider=provider, inputs={})
    assert (found["gpu"], found["training_gpu"]) == (ran_on, trained_on)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = environment(seed=0, device=device, provider=provider, inputs={})
    assert (found["gpu"], found["training_gpu"]) == (None, None)


@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ({}, "compress model.pt --seed 1"),
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"},
            "torchrun --standalone --nproc-per-node 4 -m pipeline.cli model.pt --seed 1",
        ),
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            "torchrun --nnodes 2 --nproc-per-node 2 -m pipeline.cli model.pt --seed 1",
        ),
    ],
)
def test_the_command_starts_as_many_processes_as_the_run_had(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], command: str
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["compress", "model.pt", "--seed", "1"])
    assert environment(seed=0, device="cpu", provider="cpu", inputs={})["command"] == command


def test_the_hash_of_a_directory_follows_names_and_sizes(tmp_path: Path) -> None:
    def digest() -> str:
        found = environment(seed=0, device="cpu", provider="cpu", inputs={"data": tmp_path})
        hashed: str = found["hashes"]["data"]
        return hashed

    (tmp_path / "a.png").write_bytes(b"1")
    first = digest()
    assert first.startswith("sha256-of-names-and-sizes:")
    (tmp_path / "a.png").write_bytes(b"12")
    assert digest() != first


def test_the_summary_tells_a_precision_other_than_fp32() -> None:
    assert "Precision" not in _text(_measured())
    int8 = {"kind": "int8", "num_layers": 7, "float_layers": ["conv1", "head"]}
    text = _text(_measured(precision=int8))
    assert "int8" in text
    assert "2 of 7 layers in float" in text
    assert "fp16" in _text(_measured(precision={"kind": "fp16"}))
