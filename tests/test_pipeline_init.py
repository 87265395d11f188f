"""`compress init`, the plan of a dry run, completion, and loggers."""

import csv
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from gbn.ticktock import Phase
from pipeline import forecast, loggers
from pipeline.cli import main
from pipeline.config_file import OPTION_KINDS, build_config, read_config_file
from pipeline.forecast import Forecast, Speed
from pipeline.recipes import RECIPES
from pipeline.starter import DEFAULTS, EXAMPLES

sys.path.insert(0, str(Path(__file__).parent))

from tiny_job import arguments, write_job


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [*map(str, args)])


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"weights")
    return tmp_path


def uncommented(text: str, *names: str) -> dict[str, Any]:
    """The file's values with these options no longer in comments."""
    for name in names:
        text, count = re.subn(rf"(?m)^# ({name.replace('_', '-')} = )", r"\1", text)
        assert count == 1, name
    return tomllib.loads(text)


def test_the_starter_names_every_option_with_a_value_that_is_taken(here: Path) -> None:
    assert run("init").exit_code == 0
    text = (here / "compress.toml").read_text()
    others = [name for name in OPTION_KINDS if name not in ("target_flops", "quiet")]
    assert set(uncommented(text, *others)) == {
        n.replace("_", "-") for n in [*others, "target_flops"]
    }
    written = here / "all.toml"
    written.write_text(re.sub(r"(?m)^# ([a-z-]+ = )", r"\1", text).replace("quiet = false", ""))
    config = build_config(*read_config_file(written))
    assert config.target.flops is not None
    assert config.data.mean == (0.485, 0.456, 0.406)
    assert config.constraints.freeze == ("head*",)


def test_the_starter_holds_what_the_model_says_of_its_inputs(here: Path) -> None:
    code = (
        "from torch import nn\n"
        "def make():\n"
        "    net = nn.Sequential(nn.Conv2d(3, 4, 1))\n"
        "    net.default_cfg = {'input_size': (3, 16, 24), 'mean': (.1, .2, .3),\n"
        "                       'std': (1, 1, 2)}\n"
        "    return net\n"
    )
    (here / "arch.py").write_text(code)
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 1)).state_dict(), "weights.pt")
    result = run("init", "--arch", "arch.py:make", "weights.pt")
    assert result.exit_code == 0, result.output
    text = (here / "compress.toml").read_text()
    found = uncommented(text, "mean", "std", "out")
    assert found["model"] == "weights.pt"
    assert found["arch"] == "arch.py:make"
    assert found["input-size"] == [3, 16, 24]
    assert (found["mean"], found["std"]) == ([0.1, 0.2, 0.3], [1.0, 1.0, 2.0])
    assert found["out"] == "weights-compressed"


def test_a_model_that_does_not_say_its_size_leaves_that_to_the_user(
    job: dict[str, Path], here: Path
) -> None:
    assert run("init", "--arch", f"{job['arch']}:Tiny", job["model"]).exit_code == 0
    text = (here / "compress.toml").read_text()
    assert "input-size" not in tomllib.loads(text)
    assert "The model does not say it: set it." in text
    given = run("init", "--force", "--arch", f"{job['arch']}:Tiny", "--input-size", "1,8,8",
                job["model"])  # fmt: skip
    assert given.exit_code == 0, given.output
    assert tomllib.loads((here / "compress.toml").read_text())["input-size"] == [1, 8, 8]


def test_a_model_is_never_overwritten_nor_a_link_nor_a_device_replaced(here: Path) -> None:
    model = here / "model.pt"
    model.write_bytes(b"PK\x03\x04\0weights")
    result = run("init", "--output", model, "--force")
    assert (result.exit_code, model.read_bytes()) == (2, b"PK\x03\x04\0weights")
    assert "is there and is no text" in result.stderr
    (here / "real.toml").write_text("")
    (here / "link.toml").symlink_to("real.toml")
    assert run("init", "--output", here / "link.toml").exit_code == 2
    assert run("init", "--output", here / "link.toml", "--force").exit_code == 0
    assert (here / "link.toml").is_symlink()
    assert "target-flops" in (here / "real.toml").read_text()
    result = run("init", "--output", "/dev/stdout")
    assert result.exit_code == 0
    assert Path("/dev/stdout").exists()


def test_the_next_command_can_be_pasted_and_names_what_is_to_be_set(here: Path) -> None:
    (here / "a dir").mkdir()
    result = run("init", "--output", "a dir/ü.toml")
    assert "set model, look it over, then: compress --config 'a dir/ü.toml' --dry" in result.stdout
    text = (here / "a dir/ü.toml").read_text()
    assert text.startswith("# Settings of a run: compress --config 'a dir/ü.toml'\n")


def test_a_file_that_is_there_is_kept_unless_forced(here: Path) -> None:
    (here / "compress.toml").write_text("mine")
    refused = run("init")
    assert refused.exit_code == 2
    assert "--force overwrites it" in refused.stderr
    assert (here / "compress.toml").read_text() == "mine"
    assert run("init", "--force").exit_code == 0
    assert (here / "compress.toml").read_text() != "mine"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--arch", "timm:x"], "give MODEL"),
        (["--output", "."], "is a directory"),
        (["--output", "none/x.toml"], "does not exist"),
        (["absent.pt"], "does not exist"),
        (["--input-size", "1,8,8"], "give MODEL"),
    ],
)
def test_what_cannot_be_written_or_read_is_refused_in_one_line(
    here: Path, args: list[str], message: str
) -> None:
    result = run("init", *args)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not (here / "compress.toml").exists()


def test_a_dry_run_tells_the_plan_and_its_time_and_writes_nothing(
    job: dict[str, Path], tmp_path: Path
) -> None:
    result = run(*arguments(job, tmp_path / "dry", "--dry-run"))
    assert result.exit_code == 0, result.output
    # 512 images in batches of 64, two passes: 16 batches in all
    batches = re.findall(r"(tick|tock|finetune): \d+ x, (\d+) batches of 64 in all", result.stdout)
    assert sum(int(count) for _, count in batches) == 16
    assert re.search(r"estimate: \d+ s of scoring, refits and training on this", result.stdout)
    assert not (tmp_path / "dry").exists()


def test_a_dry_run_as_json_is_the_plan_alone(job: dict[str, Path], tmp_path: Path) -> None:
    result = run(*arguments(job, tmp_path / "dry", "--dry-run", "--json"))
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)["dry_run"]
    assert plan["batch_size"] == 64
    assert sum(phase["batches"] for phase in plan["phases"]) == 16
    assert plan["seconds"] == pytest.approx(sum(phase["seconds"] for phase in plan["phases"]))
    assert not (tmp_path / "dry").exists()


def test_a_dry_run_takes_batches_in_the_parts_that_training_does(
    job: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def timed(_baseline: Any, images: Any, part: int | None, *, teacher: bool) -> float:
        asked.append((len(images), part, teacher))
        return 1.0

    monkeypatch.setattr(forecast, "_step_seconds", timed)
    for extra in ((), ("--accumulate", "4"), ("--no-distill",)):
        assert run(*arguments(job, tmp_path / "dry", "--dry-run", *extra)).exit_code == 0
    assert asked[1::2] == [(64, 64, True), (64, 16, True), (64, 64, False)]
    assert asked[::2] == [(64, 16, False)] * 3  # scores are taken on 16 at a time


@pytest.mark.usefixtures("few_images")
def test_a_dry_run_without_data_counts_the_images_that_it_would_make(
    job: dict[str, Path], tmp_path: Path
) -> None:
    args = ["--target-flops", "0.5", str(job["model"]), "--arch", f"{job['arch']}:Tiny"]
    out = tmp_path / "dry"
    result = run(*args, "--input-size", "1,8,8", "--dry-run", "--epochs", "1", "--out", out)
    assert result.exit_code == 0, result.output
    assert "images: 96 made from the network" in result.stdout
    assert not out.exists()


def test_phases_cost_less_once_channels_are_gone() -> None:
    tick, tock = Phase(kind="tick", batches=10, keep=0.0), Phase(kind="tock", batches=10)
    speed = Speed(score=0.5, train=1.0, load=0.25, refit=3.0)
    first, then = forecast._planned((tick, tock), speed, 0.5)
    assert (first.seconds, first.refits) == (10 * (0.5 + 0.25) + 3, True)
    # 3/4 of a training step is the network's own
    assert (then.seconds, then.refits) == (10 * (0.75 / 2 + 0.25 + 0.25), False)
    assert Forecast(phases=(first, then), batch_size=1, images=(96, 3.0)).seconds == 22.25


def complete(words: str, place: int) -> list[str]:
    return [value for _, value in completions(words, place)]


def complete_kinds(words: str, place: int) -> list[str]:
    return [kind for kind, _ in completions(words, place)]


def completions(words: str, place: int) -> list[tuple[str, str]]:
    """(kind, value) of each, as the shell's script gets them."""
    result = CliRunner().invoke(
        main,
        [],
        prog_name="compress",
        env={
            "COMP_WORDS": words,
            "COMP_CWORD": str(place),
            "_COMPRESS_COMPLETE": "bash_complete",
        },
    )
    found = [line.partition(",") for line in result.stdout.splitlines()]
    return [(kind, value) for kind, _, value in found]


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("compress mo", 1),
        ("compress verify mo", 2),
        ("compress verify a.onnx --baseline b", 4),
        ("compress --data di", 2),
        ("compress --arch a", 2),
        ("compress --out a", 2),
        ("compress bench a.onnx b", 3),
    ],
)
def test_completion_leaves_files_to_the_shell(words: str, place: int) -> None:
    kinds = complete_kinds(words, place)
    assert "file" in kinds


def test_completion_knows_commands_options_and_values() -> None:
    assert {"--target-flops", "--target-params"} <= set(complete("compress --tar", 1))
    assert complete("compress --device c", 2) == ["cpu", "cuda", "cuda:0"]
    assert "prune" not in complete("compress ", 1)
    assert set(complete("compress in", 1)) >= {"init", "inspect"}
    assert complete("compress model.pt --provider t", 3) == ["tensorrt"]
    assert complete("compress inspect --fr", 2) == ["--freeze"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_printed(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_COMPRESS_COMPLETE" in result.stdout
    if shell == "bash":
        checked = subprocess.run(
            ["bash", "-n"], input=result.stdout, text=True, check=False, capture_output=True
        )
        assert checked.returncode == 0, checked.stderr
    assert run("completion", "tcsh").exit_code == 2


def test_the_csv_logger_holds_losses_and_checkups(job: dict[str, Path], tmp_path: Path) -> None:
    result = run(*arguments(job, tmp_path / "out", "--logger", "csv"))
    assert result.exit_code == 0, result.output
    (file,) = (tmp_path / "out" / "logs").rglob("metrics.csv")
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    losses = [float(row["loss"]) for row in rows if row.get("loss")]
    checked = [float(row["top1"]) for row in rows if row.get("top1")]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert checked == pytest.approx([p["value"] for p in report["history"]["points"][1:]])
    assert losses
    assert all(loss > 0 for loss in losses)


def test_the_tensorboard_logger_writes_its_events(job: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    out = tmp_path / "out"
    assert run(*arguments(job, out, "--logger", "tensorboard", "--epochs", "1")).exit_code == 0
    assert list((out / "logs").rglob("events.out.tfevents.*"))


def test_a_missing_logger_is_named_with_the_command_that_installs_it(
    job: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda _name: None)
    result = run(*arguments(job, tmp_path / "out", "--logger", "tensorboard"))
    assert result.exit_code == 2
    assert "pip install tensorboard" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command", ["", "inspect", "verify", "bench", "report", "init", "completion"]
)
def test_the_help_of_each_command_fits_a_screen_and_leads_with_an_example(command: str) -> None:
    lines = run(*command.split(), "--help").stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    example = next(n for n, line in enumerate(lines) if "Example" in line)
    assert example < next(n for n, line in enumerate(lines) if re.match("Options|Model", line))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", sorted(DEFAULTS.keys() - {"lr"}))
def test_what_is_shown_as_a_default_is_what_a_run_takes(name: str) -> None:
    least = {"model": "model.pt", "target_flops": 0.6}
    assert build_config({**least, name: DEFAULTS[name]}) == build_config(least)


def test_the_learning_rate_that_is_shown_is_that_of_the_recipe() -> None:
    assert DEFAULTS["lr"] == RECIPES[DEFAULTS["recipe"]].peak_lr


def test_what_is_no_default_is_called_an_example(here: Path) -> None:
    assert DEFAULTS.keys() | EXAMPLES.keys() == OPTION_KINDS.keys()
    assert run("init").exit_code == 0
    lines = (here / "compress.toml").read_text().splitlines()
    said = {
        line.split(" = ")[0].removeprefix("# ") for line in lines if line.endswith("# an example")
    }
    assert said == {n.replace("_", "-") for n in EXAMPLES.keys() - {"target_flops"}}
