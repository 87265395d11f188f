"""The main job from the command line, on a job small enough to run to its end."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import nn

import gbn
from pipeline.cli import main

sys.path.insert(0, str(Path(__file__).parent))

from tiny_job import arguments, make_images, write_job

REPORT_KEYS = {
    "target", "flops", "params", "size_bytes", "accuracy", "surgery", "parity", "latency",
    "groups", "stages", "environment", "verdict", "exit_code",
}  # fmt: skip


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="session")
def done(job: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """One finished run with `--json`."""
    out = tmp_path_factory.mktemp("runs") / "first"
    return out, compress(arguments(job, out, "--json", "-q"))


def compress(args: list[str]) -> Result:
    return CliRunner().invoke(main, args)


def test_json_run_prints_the_report_alone_and_it_is_the_file(done: tuple[Path, Result]) -> None:
    out, result = done
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report.keys() >= REPORT_KEYS
    assert report == json.loads((out / "report.json").read_text())
    made = hashlib.sha256((out / "model.onnx").read_bytes()).hexdigest()
    assert report["environment"]["hashes"]["result"] == f"sha256:{made}"
    finished = datetime.fromisoformat(report["environment"]["finished"])
    assert timedelta(0) <= datetime.now(UTC) - finished < timedelta(hours=2)


def test_target_is_met_by_less_than_one_more_pair_of_channels(done: tuple[Path, Result]) -> None:
    report = json.loads((done[0] / "report.json").read_text())
    # the coarsest step is two of the 24 inner channels, a twelfth of nearly all MACs
    assert 0.5 - 1 / 12 < report["flops"]["kept"] <= 0.5
    assert report["flops"]["kept"] == report["flops"]["after"] / report["flops"]["before"]
    # stem 8*8*9*16, inner and outer 8*8*9*16*24 each, head 16*4
    assert report["flops"]["before"] == 64 * 9 * 16 + 2 * 64 * 9 * 16 * 24 + 64


def test_surgery_parity_and_accuracy_are_reported_and_hold(done: tuple[Path, Result]) -> None:
    report = json.loads((done[0] / "report.json").read_text())
    assert report["surgery"]["max_abs_diff"] <= report["surgery"]["tolerance"] <= 1e-4
    assert 0 < report["parity"]["max_abs_diff"] <= 1e-4
    assert report["accuracy"]["samples"] == 160
    assert report["accuracy"]["before"] > 0.9
    assert report["accuracy"]["after"] > 0.9
    assert report["latency"]["speedup"]["ci95"][0] <= report["latency"]["speedup"]["median"]
    assert report["verdict"]["flops"] == "met"


def test_exported_file_has_the_original_names_and_a_dynamic_batch(
    done: tuple[Path, Result],
) -> None:
    proto = onnx.load(done[0] / "model.onnx")
    assert [i.name for i in proto.graph.input] == ["image"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    stored = {p.key: json.loads(p.value) for p in proto.metadata_props if p.key == "gbn_compress"}
    assert stored["gbn_compress"]["preprocessing"]["mean"] == [0.5]


def test_saved_program_and_replayed_plan_give_the_answers_of_the_onnx_file(
    done: tuple[Path, Result], job: dict[str, Path]
) -> None:
    out = done[0]
    images = torch.randn(5, 1, 8, 8)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(None, {"image": images.numpy()})[0]
    program = torch.export.load(out / "model.pt2").module()
    scope: dict[str, type[nn.Module]] = {}
    exec(job["arch"].read_text(), scope)
    fresh = gbn.apply_plan(scope["Tiny"](), gbn.PrunePlan.load(out / "plan.json"))
    fresh.load_state_dict(load_file(out / "weights.safetensors"))
    with torch.no_grad():
        np.testing.assert_allclose(program(images).numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(fresh.eval()(images).numpy(), expected, atol=1e-5)


def test_program_loads_in_a_process_with_torch_alone(done: tuple[Path, Result]) -> None:
    code = (
        "import sys, torch; p = torch.export.load(sys.argv[1]).module(); "
        "print(tuple(p(torch.zeros(3, 1, 8, 8)).shape)); "
        "assert not {'gbn', 'pipeline', 'exporters'} & set(sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(done[0] / "model.pt2")],
        capture_output=True, text=True, cwd="/", check=True,
    )  # fmt: skip
    assert out.stdout.strip() == "(3, 4)"


def test_two_runs_with_one_seed_make_one_plan(
    done: tuple[Path, Result], job: dict[str, Path], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    assert compress(arguments(job, again, "-q")).exit_code == 0
    assert (again / "plan.json").read_bytes() == (done[0] / "plan.json").read_bytes()


def test_a_page_that_cannot_be_drawn_costs_no_run_its_result(
    job: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_report: object) -> str:
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr("pipeline.run.render_html", fails)
    settings = tmp_path / os.fsdecode(b"no\xfftext.toml")  # no page can hold this as it is
    settings.write_text("seed = 3\n")
    extra = ("--epochs", "0", "--config", str(settings))
    result = compress(arguments(job, tmp_path / "out", *extra))
    assert result.exit_code == 0, result.output
    assert "all figures: report.json beside it" in result.stdout
    told = "report.html could not be drawn (RuntimeError: no font); the run is whole"
    assert told in result.stderr
    assert not (tmp_path / "out/report.html").exists()
    again = compress(["report", str(tmp_path / "out")])
    assert again.exit_code == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "no\ufffdtext.toml" in page
    assert "seed = 3" in page


def test_missed_accuracy_gate_gives_12(job: dict[str, Path], tmp_path: Path) -> None:
    args = arguments(job, tmp_path / "gate", "--max-accuracy-drop", "0", "-q")
    args[args.index("0.5")] = "0.03"
    args[args.index("--epochs") + 1] = "0"
    result = compress([*args, "--json"])
    report = json.loads(result.stdout)
    assert report["accuracy"]["after"] < report["accuracy"]["before"]
    assert result.exit_code == report["exit_code"] == 12


def test_dry_run_writes_nothing(job: dict[str, Path], tmp_path: Path) -> None:
    result = compress(arguments(job, tmp_path / "dry", "--dry-run"))
    assert result.exit_code == 0
    assert "target: keep 50.0 %" in result.output
    assert list(tmp_path.iterdir()) == []


def bad_inputs(job: dict[str, Path], tmp: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> (arguments, words that the error must hold)."""
    good = arguments(job, tmp / "out")

    def with_(option: str, value: str) -> list[str]:
        args = list(good)
        args[args.index(option) + 1] = value
        return args

    def model(path: Path) -> list[str]:
        return [str(path) if a == str(job["model"]) else a for a in good]

    (tmp / "empty.pt").touch()
    (tmp / "cut.pt").write_bytes(job["model"].read_bytes()[:900])
    other = torch.load(job["model"])
    other["extra.weight"] = other.pop("head.weight")
    torch.save(other, tmp / "other.pt")
    np.savez(tmp / "one.npz", **one_class())
    arch = good.index("--arch")
    return {
        "missing file": (model(tmp / "none.pt"), "does not exist"),
        "empty file": (model(tmp / "empty.pt"), "empty"),
        "truncated": (model(tmp / "cut.pt"), "cut.pt"),
        "no arch": (good[:arch] + good[arch + 2 :], "--arch"),
        "other keys": (model(tmp / "other.pt"), "head.weight"),
        "wrong size": (with_("--input-size", "3,8,8"), "input size"),
        "target 0": (with_("--target-flops", "0"), "keeps nothing"),
        "target negative": (with_("--target-flops", "-0.5"), "--target-flops"),
        "target above 1": (with_("--target-flops", "1.5"), "above 1"),
        "unreachable": (with_("--target-flops", "0.0001"), "smallest reachable is"),
        "no data": (with_("--data", str(tmp / "nowhere")), "no such folder"),
        "one class": (with_("--data", str(tmp / "one.npz")), "class"),
        "no such module": ([*good, "--freeze", "nothing.*"], "matches no module"),
        "out is a file": (with_("--out", str(tmp / "empty.pt")), "not a directory"),
    }


def one_class() -> dict[str, np.ndarray]:
    x, y = make_images(8, 0)
    return {"x_train": x, "y_train": y * 0, "x_test": x, "y_test": y * 0}


BAD = [
    "missing file", "empty file", "truncated", "no arch", "other keys", "wrong size", "target 0",
    "target negative", "target above 1", "unreachable", "no data", "one class", "no such module",
    "out is a file",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_code_2_and_nothing_written(
    name: str, job: dict[str, Path], tmp_path: Path
) -> None:
    args, words = bad_inputs(job, tmp_path)[name]
    before = sorted(tmp_path.rglob("*"))
    result = compress([*args, "-q"])
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_device_that_is_not_there_is_refused(job: dict[str, Path], tmp_path: Path) -> None:
    result = compress(arguments(job, tmp_path / "out", "--device", "cuda:77"))
    assert result.exit_code == 2
    assert "--device cuda:77: not on this machine" in result.stderr
    assert not (tmp_path / "out").exists()


def test_full_target_removes_nothing_and_needs_no_surgery(
    job: dict[str, Path], tmp_path: Path
) -> None:
    args = arguments(job, tmp_path / "out", "--json", "-q")
    args[args.index("0.5")] = "1.0"
    args[args.index("--epochs") + 1] = "0"
    result = compress(args)
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert report["flops"]["kept"] == 1.0
    assert report["verdict"]["surgery"] == "skipped: nothing had to be removed"


def test_baseline_that_guesses_stops_the_run(job: dict[str, Path], tmp_path: Path) -> None:
    state = torch.load(job["model"])
    state["head.weight"].zero_()
    torch.save(state, tmp_path / "guess.pt")
    args = [
        str(tmp_path / "guess.pt") if a == str(job["model"]) else a
        for a in arguments(job, tmp_path / "out")
    ]
    result = compress(args)
    assert result.exit_code == 2
    assert "chance level" in result.stderr
    assert "--mean/--std" in result.stderr
    assert not (tmp_path / "out").exists()


def test_finished_directory_is_not_overwritten_without_resume(
    done: tuple[Path, Result], job: dict[str, Path]
) -> None:
    before = (done[0] / "report.json").read_bytes()
    result = compress(arguments(job, done[0]))
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    assert (done[0] / "report.json").read_bytes() == before


def run_and_die(args: list[str], when: str) -> None:
    """In a process of its own: SIGKILL as soon as the run says `when`."""
    from pipeline.console import RunConsole
    from pipeline.rundir import RunDirectory

    torch.set_num_threads(1)  # as in the run that it is compared with

    def dying(own: str) -> object:
        original = getattr(RunConsole, own)

        def method(self: RunConsole, line: str, *rest: object, **more: object) -> object:
            if line.startswith(when):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, line, *rest, **more)

        return method

    for own in ("stage", "say", "progress"):
        setattr(RunConsole, own, dying(own))
    if when == "half of a phase":
        original = RunDirectory.save_stage

        def save_and_die(self: RunDirectory, name: str, payload: dict[str, object]) -> Path:
            saved = original(self, name, payload)
            if payload["step"]:
                os.kill(os.getpid(), signal.SIGKILL)
            return saved

        RunDirectory.save_stage = save_and_die
    main(args)


def test_run_killed_in_every_stage_resumes_to_a_valid_result(
    job: dict[str, Path], done: tuple[Path, Result], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.run"])
    out = tmp_path / "killed"
    args = arguments(job, out, "--resume")
    moments = [
        "baseline",
        "tick 2",
        "finetune 1",
        "half of a phase",
        "export",
        "verify",
        "accuracy",
    ]
    for moment in moments:
        process = context.Process(target=run_and_die, args=(args, moment))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, moment
    result = compress([*args, "--json"])
    assert result.exit_code == 0, result.output
    assert "resumed after" in result.stderr
    report = json.loads(result.stdout)
    assert report["flops"]["kept"] <= 0.5
    assert report["accuracy"]["after"] > 0.9
    for same in ("plan.json", "weights.safetensors"):  # as if it had never been killed
        assert (out / same).read_bytes() == (done[0] / same).read_bytes()
    assert not [path for path in out.rglob("*") if path.name.startswith(".tmp")]


def test_the_report_tells_the_way_from_the_given_network_to_the_last_phase(
    done: tuple[Path, Result],
) -> None:
    report = json.loads((done[0] / "report.json").read_text())
    history = report["history"]
    assert (history["metric"], history["in_points"]) == ("top1", True)
    first, *others = history["points"]
    assert (first["kind"], first["flops_kept"]) == ("given", 1.0)
    phases = [s["name"] for s in report["stages"] if s["name"].split()[0] in ("tick", "tock")]
    assert [p["name"] for p in others if p["kind"] != "finetune"] == phases
    kept = [point["flops_kept"] for point in history["points"]]
    assert kept == sorted(kept, reverse=True)
    assert first["value"] > 0.9
    assert others[-1]["value"] > 0.9
    assert history["samples"] == 128


def test_the_report_tells_each_layers_width_and_the_whole_distribution_of_times(
    done: tuple[Path, Result],
) -> None:
    report = json.loads((done[0] / "report.json").read_text())
    widths = {row["name"]: (row["before"], row["after"]) for row in report["layers"]}
    assert {name: before for name, (before, _) in widths.items()} == {
        "stem": 16, "inner": 24, "outer": 16, "head": 4,
    }  # fmt: skip
    assert widths["stem"][1] == widths["outer"][1]
    assert widths["inner"][1] < 24
    assert widths["head"][1] == 4
    for when in ("before", "after"):
        times = report["latency"][when]
        assert len(times["quantiles_ms"]) == 101
        assert times["quantiles_ms"] == sorted(times["quantiles_ms"])
        assert times["quantiles_ms"][50] == pytest.approx(times["p50_ms"], rel=1e-4)
