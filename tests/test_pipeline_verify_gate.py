"""`compress verify`: each gate where it must pass, where it must fail, and absurd options."""

import io
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
from lxml import etree
from rich.console import Console

from pipeline.deploy.checks import Check, GateResult
from pipeline.deploy.outputs import gate_table, junit_xml, markdown

sys.path.insert(0, str(Path(__file__).parent))
from cli_calls import refused, run
from tiny_onnx import write_chain, write_quarters

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is available")
SCHEMA = Path(__file__).with_name("junit.xsd")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gate")
    (folder / "text.onnx").write_text("hello")
    return {
        "folder": folder,
        "text": folder / "text.onnx",
        "small": write_chain(folder / "small.onnx"),
        "big": write_chain(folder / "big.onnx", depth=6, width=48),
        "other_size": write_chain(folder / "other_size.onnx", size=16),
        "other_output": write_chain(folder / "other_output.onnx", output_name="logits"),
        "fixed": write_chain(folder / "fixed.onnx", batch=2),
        "data": write_quarters(folder / "data.npz", wrong=10),
    }


# size


def test_a_size_limit_counts_the_bytes_on_disk(files: dict[str, Path]) -> None:
    size = files["small"].stat().st_size
    assert run("verify", files["small"], "--max-size", f"{size}B").exit_code == 0
    failed = run("verify", files["small"], "--max-size", f"{size - 1}B")
    assert failed.exit_code == 10
    assert f"{size:,} bytes" in failed.stdout


@pytest.mark.parametrize("text", ["0MB", "-5MB", "5", "nan", "MB", "5 miles", "1e3MB"])
def test_an_absurd_size_is_refused(files: dict[str, Path], text: str) -> None:
    assert "--max-size" in refused("verify", files["small"], "--max-size", text)


# parity


def test_parity_with_the_baseline(files: dict[str, Path]) -> None:
    asked = ("verify", files["small"], "--baseline")
    assert run(*asked, files["big"], "--parity-tolerance", "1e-5").exit_code == 0


def test_other_outputs_miss_parity(files: dict[str, Path], tmp_path: Path) -> None:
    # The same interface, outputs half as large.
    model = onnx.load(files["small"])
    pick = next(t for t in model.graph.initializer if t.name == "pick")
    values = onnx.numpy_helper.to_array(pick) / 2
    pick.CopyFrom(onnx.numpy_helper.from_array(values, "pick"))
    onnx.save(model, tmp_path / "half.onnx")
    result = run(
        *("verify", tmp_path / "half.onnx", "--baseline", files["small"]),
        *("--parity-tolerance", "0.4", "--json", tmp_path / "gate.json"),
    )
    assert result.exit_code == 11
    report = json.loads((tmp_path / "gate.json").read_text())
    assert report["parity"]["max_abs_diff"] == pytest.approx(0.5, rel=1e-4)
    assert report["verdict"]["parity"] == "missed"
    wider = ("--baseline", files["small"], "--parity-tolerance", "0.6")
    assert run("verify", tmp_path / "half.onnx", *wider).exit_code == 0


@pytest.mark.parametrize("text", ["0", "-1", "nan", "2"])
def test_an_absurd_tolerance_is_refused(files: dict[str, Path], text: str) -> None:
    asked = ("verify", files["small"], "--baseline", files["big"], "--parity-tolerance", text)
    assert "--parity-tolerance" in refused(*asked)


def test_parity_with_another_interface_is_refused(files: dict[str, Path]) -> None:
    asked = ("verify", files["small"], "--parity-tolerance", "1e-3", "--baseline")
    assert "outputs cannot be compared" in refused(*asked, files["other_output"])
    assert "'image' floats (N, 1, 16, 16)" in refused(*asked, files["other_size"])


# accuracy


def test_accuracy_limits_hold_at_the_limit_itself(files: dict[str, Path], tmp_path: Path) -> None:
    """Ten of forty labels are false, so 75 % are right, exactly."""
    asked = ("verify", files["small"], "--data", files["data"], "--mean", "0", "--std", "1")
    asked += ("--json", tmp_path / "gate.json")
    assert run(*asked, "--min-accuracy", "0.75").exit_code == 0
    assert run(*asked, "--min-accuracy", "75%").exit_code == 0
    failed = run(*asked, "--min-accuracy", "0.76")
    assert failed.exit_code == 12
    assert "75.00 % of 40" in failed.stdout
    report = json.loads((tmp_path / "gate.json").read_text())
    assert report["accuracy"] == {"metric": "top1", "samples": 40, "before": None, "after": 0.75}


def test_the_drop_is_in_points_against_the_baseline(files: dict[str, Path], tmp_path: Path) -> None:
    # A baseline is right on all; the candidate scores class 0 too high, so loses what is not 0.
    model = onnx.load(files["small"])
    nothing = next(t for t in model.graph.initializer if t.name == "nothing")
    nothing.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(nothing), "nothing"))
    pick = next(t for t in model.graph.initializer if t.name == "pick")
    values = onnx.numpy_helper.to_array(pick).copy()
    values[:, 3] = 0
    pick.CopyFrom(onnx.numpy_helper.from_array(values, "pick"))
    onnx.save(model, tmp_path / "blind.onnx")
    data = write_quarters(tmp_path / "clean.npz")
    asked = ("verify", tmp_path / "blind.onnx", "--baseline", files["small"], "--data", data)
    assert run(*asked, "--max-accuracy-drop", "25").exit_code == 0
    failed = run(*asked, "--max-accuracy-drop", "24.9")
    assert failed.exit_code == 12
    assert "25.00 points" in failed.stdout


@pytest.mark.parametrize("text", ["0", "1.5", "-0.1", "nan", "740%"])
def test_an_absurd_accuracy_is_refused(files: dict[str, Path], text: str) -> None:
    asked = ("verify", files["small"], "--data", files["data"], "--min-accuracy", text)
    assert "--min-accuracy" in refused(*asked)


@pytest.mark.parametrize("text", ["-1", "nan", "101", "inf"])
def test_an_absurd_drop_is_refused(files: dict[str, Path], text: str) -> None:
    asked = ("verify", files["small"], "--data", files["data"], "--baseline", files["big"])
    assert "--max-accuracy-drop" in refused(*asked, "--max-accuracy-drop", text)


def test_accuracy_needs_data_and_data_needs_a_use(files: dict[str, Path]) -> None:
    assert "give --data" in refused("verify", files["small"], "--min-accuracy", "0.5")
    asked = ("verify", files["small"], "--data", files["data"], "--max-size", "5MB")
    assert "--data has no effect" in refused(*asked)
    missing = ("verify", files["small"], "--data", "nowhere.npz", "--min-accuracy", "0.5")
    assert "nowhere.npz" in refused(*missing)


def test_normalisation_written_into_the_file_is_used(tmp_path: Path) -> None:
    written = {"preprocessing": {"mean": [0.5], "std": [0.25]}}
    file = write_chain(tmp_path / "m.onnx", metadata={"gbn_compress": json.dumps(written)})
    bright = np.full((8, 8, 8), 255, np.uint8)
    np.savez(tmp_path / "d.npz", x_test=bright, y_test=np.array([0, 1] * 4))
    # uint8 images without any normalisation are refused.
    plain = write_chain(tmp_path / "plain.onnx")
    asked = ("--data", tmp_path / "d.npz", "--min-accuracy", "0.5")
    assert "--mean and --std" in refused("verify", plain, *asked)
    assert run("verify", file, *asked).exit_code == 0


# latency


QUICK = ("--max-seconds", "2")


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("--max-latency", "500ms", "1us"),
        ("--min-speedup", "1.05", "1000"),
        ("--max-latency-regression", "3%", None),
    ],
)
def test_latency_limits(
    files: dict[str, Path], option: str, good: str, bad: str | None, tmp_path: Path
) -> None:
    small = ("verify", files["small"], "--baseline", files["big"], *QUICK)
    passed = run(*small, option, good, "--json", tmp_path / "gate.json")
    assert passed.exit_code == 0, passed.output
    section = json.loads((tmp_path / "gate.json").read_text())["latency"][0]
    assert section["speedup"]["median"] > 1.05
    assert section["after"]["n"] == section["before"]["n"] >= 50
    swapped = ("verify", files["big"], "--baseline", files["small"], *QUICK)
    failed = run(*swapped, option, good) if bad is None else run(*small, option, bad)
    assert failed.exit_code == 13, failed.output


def test_a_latency_limit_needs_no_baseline(files: dict[str, Path]) -> None:
    result = run("verify", files["small"], "--max-latency", "0.5s", *QUICK)
    assert result.exit_code == 0, result.output


def test_each_batch_size_is_a_check_of_its_own(files: dict[str, Path]) -> None:
    asked = ("verify", files["small"], "--max-latency", "500ms", *QUICK)
    result = run(*asked, "--batch-size", "1", "--batch-size", "3")
    assert result.exit_code == 0, result.output
    assert "latency at batch 1" in result.stdout
    assert "latency at batch 3" in result.stdout


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--max-latency", "0ms"),
        ("--max-latency", "5"),
        ("--max-latency", "-5ms"),
        ("--max-latency", "nan"),
        ("--min-speedup", "0"),
        ("--min-speedup", "-1"),
        ("--min-speedup", "inf"),
        ("--max-latency-regression", "-3%"),
        ("--max-latency-regression", "3"),
        ("--max-latency-regression", "nan%"),
    ],
)
def test_an_absurd_latency_limit_is_refused(files: dict[str, Path], option: str, text: str) -> None:
    asked = ("verify", files["small"], "--baseline", files["big"], option, text)
    assert option in refused(*asked)


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (("--batch-size", "0"), "--batch-size: 0 is below 1"),
        (("--batch-size", "2", "--batch-size", "2"), "given twice"),
        (("--threads", "0"), "--threads: 0 is below 1"),
        (("--threads", "4096"), "4096 threads do not fit"),
        (("--max-seconds", "0"), "--max-seconds"),
        (("--max-seconds", "nan"), "--max-seconds"),
        (("--on-undecided", "maybe"), "on-undecided"),
        (("--input-size", "big"), "--input-size"),
        (("--input-size", "1,9,9"), "does not fit"),
        (("--provider", "abacus"), "abacus"),
        (("--json", "nowhere/gate.json"), "--json: the folder of 'nowhere/gate.json' does not"),
        (("--junit", "."), "--junit: '.' is a directory"),
    ],
)
def test_absurd_ways_to_run_are_refused(
    files: dict[str, Path], extra: tuple[str, ...], text: str
) -> None:
    assert text in refused("verify", files["small"], "--max-latency", "5ms", *extra)


def test_a_fixed_batch_is_taken_and_another_refused(files: dict[str, Path]) -> None:
    asked = ("verify", files["fixed"], "--max-latency", "500ms", *QUICK)
    assert run(*asked).exit_code == 0
    assert "fixed batch of 2" in refused(*asked, "--batch-size", "3")


# files and provider


def test_files_that_are_no_models_are_refused(files: dict[str, Path]) -> None:
    limit = ("--max-size", "5MB")
    assert "is a directory" in refused("verify", files["folder"], *limit)
    assert "does not exist" in refused("verify", "none.onnx", *limit)
    assert "not a readable ONNX file" in refused("verify", files["text"], *limit)
    against = ("verify", files["small"], "--min-speedup", "1.3", "--baseline")
    assert "does not exist" in refused(*against, "none.onnx")
    assert "not a readable ONNX file" in refused(*against, files["text"])
    assert "cannot be compared" in refused(*against, files["other_size"])


def test_a_gate_without_limits_or_without_its_baseline_is_refused(files: dict[str, Path]) -> None:
    assert "nothing to verify" in refused("verify", files["small"])
    for option, value in (("--min-speedup", "2"), ("--max-latency-regression", "3%")):
        assert "give --baseline" in refused("verify", files["small"], option, value)


def test_the_provider_alone_can_be_verified(files: dict[str, Path]) -> None:
    assert run("verify", files["small"], "--provider", "cpu").exit_code == 0


@NO_GPU
def test_a_provider_that_does_not_run_fails_and_nothing_runs_instead(
    files: dict[str, Path], tmp_path: Path
) -> None:
    result = run(
        *("verify", files["small"], "--provider", "cuda", "--max-latency", "500ms"),
        *("--junit", tmp_path / "gate.xml"),
    )
    assert result.exit_code == 14
    assert "pip install" in result.stdout
    states = {
        case.get("name"): [child.tag for child in case]
        for case in ElementTree.parse(tmp_path / "gate.xml").iter("testcase")
    }
    assert states == {"latency": ["skipped"], "provider": ["failure"]}


@NO_GPU
def test_the_first_of_several_failures_gives_the_code(files: dict[str, Path]) -> None:
    asked = ("verify", files["small"], "--max-size", "10B")
    assert run(*asked, "--provider", "cuda").exit_code == 10
    both = run(*asked, "--max-latency", "1us", *QUICK)
    assert both.exit_code == 10
    assert "failed: size, latency (exit code 10)" in both.stdout


# outputs


def result_of(*states: str, undecided_passes: bool = False) -> GateResult:
    kinds = ("latency", "accuracy", "size", "parity", "provider")
    return GateResult(
        candidate=Path("new|er.onnx"),
        baseline=Path("old.onnx"),
        checks=tuple(
            Check(kind=kind, name=kind, state=state, measured="1 <b> & \x00", limit="2 | 3")
            for kind, state in zip(kinds, states, strict=False)
        ),
        undecided_passes=undecided_passes,
        warnings=("noisy",),
    )


ALL_STATES = ("undecided", "missed", "skipped", "met")


def test_undecided_counts_as_asked() -> None:
    assert result_of("undecided").exit_code == 13
    assert "latency (undecided)" in result_of("undecided").headline
    passing = result_of("undecided", undecided_passes=True)
    assert passing.exit_code == 0
    assert "undecided let pass: latency" in passing.headline


def test_codes_follow_their_own_order_and_not_that_of_the_checks() -> None:
    assert result_of("missed", "missed").exit_code == 12
    assert result_of("missed", "met", "missed").exit_code == 10
    assert result_of("met", "met", "met", "met", "missed").exit_code == 14
    assert result_of("met", "skipped").exit_code == 0


@pytest.mark.parametrize("passes", [True, False])
def test_junit_is_valid_and_counts_what_it_holds(passes: bool) -> None:
    text = junit_xml(result_of(*ALL_STATES, undecided_passes=passes))
    document = etree.fromstring(text.encode())
    etree.XMLSchema(etree.parse(str(SCHEMA))).assertValid(document)
    suite = document[0]
    assert suite.get("tests") == "4"
    assert suite.get("failures") == str(len(suite.findall("testcase/failure")))
    assert suite.get("skipped") == str(len(suite.findall("testcase/skipped")))
    assert len(suite.findall("testcase/failure")) == (1 if passes else 2)


def test_the_schema_refuses_what_is_no_junit() -> None:
    schema = etree.XMLSchema(etree.parse(str(SCHEMA)))
    text = junit_xml(result_of(*ALL_STATES))
    for wrong in (
        text.replace(' tests="4"', ""),
        text.replace('tests="4"', 'tests="four"'),
        text.replace("<failure", "<fault").replace("</failure", "</fault"),
    ):
        assert not schema.validate(etree.fromstring(wrong.encode()))


def test_markdown_is_one_table_whose_cells_hold_no_bars() -> None:
    lines = markdown(result_of(*ALL_STATES)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(ALL_STATES)
    assert {line.replace("\\|", "").count("|") for line in table} == {5}
    assert lines[0].startswith("### ❌")
    assert "- noisy" in lines


def test_json_on_standard_output_stands_alone(files: dict[str, Path]) -> None:
    result = run("verify", files["small"], "--max-size", "5MB", "--json", "-")
    report = json.loads(result.stdout)
    assert report["verdict"] == {"size": "met", "provider": "met"}
    assert report["exit_code"] == 0
    assert report["environment"]["hashes"]["candidate"].startswith("sha256:")


def test_the_table_names_every_check() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(gate_table(result_of(*ALL_STATES)))
    text = console.export_text()
    assert all(name in text for name in ("latency", "accuracy", "size", "parity"))


# bench


def test_bench_tells_latency_throughput_and_memory(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    asked = ("bench", files["big"], files["small"], "--max-seconds", "1")
    result = run(*asked, "--batch-size", "1", "--batch-size", "4", "--json", out)
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert [(Path(r["file"]).name, r["batch"]) for r in rows] == [
        ("big.onnx", 1), ("small.onnx", 1), ("big.onnx", 4), ("small.onnx", 4),
    ]  # fmt: skip
    for row in rows:
        stats = row["stats"]
        assert 0 < stats["p50_ms"] <= stats["p90_ms"] <= stats["p99_ms"]
        assert row["throughput"] == pytest.approx(1000 * row["batch"] / stats["p50_ms"])
    assert rows[1]["speedup"] > 1
    assert rows[0]["speedup"] == 1


@NO_GPU
def test_bench_refuses_a_provider_that_does_not_run(files: dict[str, Path]) -> None:
    result = run("bench", files["small"], "--provider", "cuda")
    assert result.exit_code == 14
    assert len(result.stderr.strip().splitlines()) == 1


def test_bench_refuses_files_that_are_no_models(files: dict[str, Path]) -> None:
    assert "does not exist" in refused("bench", "none.onnx")
    assert "is a directory" in refused("bench", files["folder"])
    assert "not a readable ONNX file" in refused("bench", files["text"])
    assert "--threads" in refused("bench", files["small"], "--threads", "0")


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_the_help_leads_with_an_example_and_fits_a_screen(command: str) -> None:
    lines = run(command, "--help").stdout.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    example = next(i for i, line in enumerate(lines) if "Example" in line)
    options = next(i for i, line in enumerate(lines) if line.startswith("Options"))
    assert example < options
