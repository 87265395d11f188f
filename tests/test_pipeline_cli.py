import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner, Result

from exporters.errors import ExportError, ProviderError
from gbn.errors import GbnError, ProofFailed, UnreachableTarget
from pipeline.cli import main, prune
from pipeline.config import RunConfig
from pipeline.config_file import OPTION_KINDS
from pipeline.console import RunConsole
from pipeline.errors import CompressError, Interrupted, UsageError
from pipeline.report import BeforeAfter, Difference, Measurements, Provider, Report, build_report

COMPRESS = Path(sys.executable).with_name("compress")


def _report(target_flops: int = 60) -> Report:
    skipped = {"accuracy": "no --data", "latency": "not measured here"}
    return build_report(
        Measurements(
            flops=BeforeAfter(before=100, after=60),
            params=BeforeAfter(before=100, after=60),
            size_bytes=BeforeAfter(before=100, after=60),
            accuracy=None,
            surgery=Difference(max_abs_diff=0.0, tolerance=1e-4),
            parity=Difference(max_abs_diff=0.0, tolerance=1e-4),
            latency=None,
            provider=Provider(requested="cpu", ran=("cpu",)),
            skipped=skipped,
            target_flops=target_flops,
        )
    )


class Stub:
    """Stands in for the pipeline: remembers what it was asked, and answers or fails."""

    def __init__(self) -> None:
        self.configs: list[RunConfig] = []
        self.act: Callable[[RunConsole], Report] = lambda _console: _report()

    def __call__(self, config: RunConfig, console: RunConsole) -> Report:
        self.configs.append(config)
        return self.act(console)

    def fails(self, error: BaseException) -> None:
        def act(_console: RunConsole) -> Report:
            raise error

        self.act = act


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub()
    module = ModuleType("pipeline.run")
    module.run_compress = stub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipeline.run", module)
    return stub


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("model.pt").write_bytes(b"weights")
    return "model.pt"


def _run(*args: str) -> Result:
    result = CliRunner().invoke(main, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def _error_line(result: Result) -> str:
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return str(lines[0])


@pytest.mark.parametrize(
    "args",
    [
        ("--target-flops", "0.6", "model.pt"),
        ("model.pt", "--target-flops", "0.6"),
        ("prune", "--target-flops", "0.6", "model.pt"),
        ("-q", "--target-flops=0.6", "model.pt"),
        ("--seed", "0", "model.pt", "--target-flops", "60%"),
    ],
)
def test_prune_is_the_default_command(stub: Stub, model: str, args: tuple[str, ...]) -> None:
    result = _run(*args)
    assert result.exit_code == 0, result.output
    (config,) = stub.configs
    assert config.model.path == Path(model)
    assert config.target.flops is not None
    assert config.target.flops.absolute(10) == 6
    assert "60.0 %" in result.stdout


def test_every_option_reaches_the_config(stub: Stub, model: str) -> None:
    args = "--target-flops 0.6 --target-params 25M --max-accuracy-drop 0.5 --data d:d --mean 0,0,0 "
    args += (
        "--std 1,1,1 --batch-size 4 --workers 0 --augment none --epochs 3 --lr 0.1 --no-distill "
    )
    args += "--seed 7 --channel-multiple 8 --freeze a --freeze b --min-channels 2 --provider cuda "
    args += "--opset 21 --out o --resume --device cpu --dry-run -v --json --arch timm:x "
    args += "--input-size 3,8,8 --trust-pickle --task t.py:make --recipe gbn-2019 --logger csv"
    assert _run(*args.split(), model).exit_code == 0
    (config,) = stub.configs
    assert config.target.params is not None
    assert config.target.params.count == 25_000_000
    assert config.target.max_accuracy_drop == 0.5
    assert (config.data.source, config.data.batch_size, config.data.workers) == ("d:d", 4, 0)
    assert (config.data.task, config.recovery.recipe) == ("t.py:make", "gbn-2019")
    assert (config.data.mean, config.data.std, config.data.augment) == (
        (0, 0, 0),
        (1, 1, 1),
        "none",
    )
    recovery = config.recovery
    assert (recovery.epochs, recovery.lr, recovery.distill, recovery.seed) == (3, 0.1, False, 7)
    assert config.constraints.freeze == ("a", "b")
    assert (config.constraints.channel_multiple, config.constraints.min_channels) == (8, 2)
    assert (config.deploy.provider, config.deploy.opset) == ("cuda", 21)
    assert (config.out, config.resume, config.device) == (Path("o"), True, "cpu")
    assert (config.dry_run, config.verbosity, config.json) == (True, 1, True)
    assert (config.model.arch, config.model.input_size) == ("timm:x", (3, 8, 8))
    assert config.model.trust_pickle
    assert config.logger == "csv"


def test_a_file_gives_options_and_the_command_line_wins(stub: Stub, model: str) -> None:
    Path("run.toml").write_text(
        f'model = "{model}"\ntarget-flops = 0.6\nseed = 3\nopset = 21\ndata = "d:d"\n'
        'freeze = ["a", "b"]\nmean = [0.5, 0.5]\nstd = [1, 1]\nno_distill = true\n'
    )
    result = _run("--config", "run.toml", "--seed", "5")
    assert result.exit_code == 0, result.stderr
    (config,) = stub.configs
    assert (config.recovery.seed, config.deploy.opset) == (5, 21)
    assert config.model.path == Path(model)
    assert config.constraints.freeze == ("a", "b")
    assert config.data.mean == (0.5, 0.5)
    assert not config.recovery.distill
    # the report repeats the file, since the command line does not show what it said
    assert config.settings is not None
    assert config.settings.described() == {
        "name": "run.toml",
        "sha256": hashlib.sha256(Path("run.toml").read_bytes()).hexdigest(),
        "content": Path("run.toml").read_text(),
    }


def test_the_file_as_it_was_byte_by_byte(stub: Stub, model: str) -> None:
    written = "\ufefftarget-flops = 0.6\r\nseed = 3\r\n".encode()
    Path("windows.toml").write_bytes(written)
    assert _run("--config", "windows.toml", model).exit_code == 0
    (config,) = stub.configs
    assert config.recovery.seed == 3
    assert config.settings is not None
    assert config.settings.described()["sha256"] == hashlib.sha256(written).hexdigest()


@pytest.mark.parametrize(
    ("text", "typed", "verbosity"),
    [("verbose = true", "-q", -1), ("quiet = true", "-v", 1), ("quiet = true", "--json", -1)],
)
def test_how_much_is_said_goes_by_the_command_line(
    stub: Stub, model: str, text: str, typed: str, verbosity: int
) -> None:
    Path("run.toml").write_text(f"target-flops = 0.6\n{text}\n")
    assert _run("--config", "run.toml", typed, model).exit_code == 0
    assert [config.verbosity for config in stub.configs] == [verbosity]


def test_an_error_in_the_file_is_one_line(stub: Stub, model: str) -> None:
    Path("run.toml").write_text("sede = 3\n")
    result = _run("--config", "run.toml", "--target-flops", "0.6", model)
    assert result.exit_code == 2
    assert "unknown key 'sede' in 'run.toml': did you mean 'seed'?" in _error_line(result)
    assert stub.configs == []


def test_the_file_knows_the_same_options_as_the_command_line() -> None:
    names = {param.name for param in prune.params} - {"config", "help_all", None}
    assert names == set(OPTION_KINDS)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--target-flop", "0.6", "model.pt"), "--target-flops"),
        (("--target-flops", "60", "model.pt"), "did you mean 0.6 or 25M?"),
        (("--target-flops", "0.6", "--data", "", "model.pt"), "--data is empty"),
        (("--target-flops", "0.6", "--out", "", "model.pt"), "--out is empty"),
        (("--target-flops", "-1", "model.pt"), "cannot read '-1'"),
        (("--target-flops", "0.6"), "no model"),
        (("model.pt",), "no target"),
        (("--target-flops", "0.6", "none.pt"), "MODEL: 'none.pt' does not exist"),
        (
            ("--target-flops", "0.6", "--data", "phtos", "model.pt"),
            "--data phtos: no such folder or file",
        ),
        (("--target-flops", "0.6", "model.pt", "more.pt"), "unexpected extra argument"),
        (("--target-flops", "0.6", "--epochs", "x", "model.pt"), "--epochs"),
        (("--target-flops", "0.6", "--provider", "tpu", "model.pt"), "'tpu' is not one of"),
        (("--target-flops",), "requires an argument"),
        (("--config", "no.toml"), "cannot read 'no.toml'"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    stub: Stub, model: str, args: tuple[str, ...], message: str
) -> None:
    assert model == "model.pt"
    result = _run(*args)
    assert result.exit_code == 2
    line = _error_line(result)
    assert line.startswith("compress: error: ")
    assert message in line
    assert stub.configs == []


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (UsageError("no such layer"), 2, "no such layer"),
        (CompressError("went wrong"), 1, "went wrong"),
        (GbnError("two\nlines"), 2, "two lines"),
        (ExportError("no export"), 2, "no export"),
        (UnreachableTarget("at best 70 %"), 10, "at best 70 %"),
        (ProofFailed("differs by 1"), 11, "differs by 1"),
        (ProviderError("cuda did not run"), 14, "cuda did not run"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.onnx"),
            2,
            "disk full while writing 'a.onnx': free some space",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x.npz"), 2, "'x.npz': Permission"),
        (EOFError("Ran out of input"), 2, "Ran out of input"),
    ],
)
def test_errors_of_a_run_are_one_line_with_their_exit_code(
    stub: Stub, model: str, error: Exception, exit_code: int, message: str
) -> None:
    stub.fails(error)
    result = _run("--target-flops", "0.6", model)
    assert result.exit_code == exit_code
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_verbose_adds_the_traceback(stub: Stub, model: str) -> None:
    stub.fails(UsageError("no such layer"))
    result = _run("-v", "--target-flops", "0.6", model)
    assert result.stderr.startswith("compress: error: no such layer\nTraceback")


def test_our_own_bugs_are_not_hidden(stub: Stub, model: str) -> None:
    stub.fails(KeyError("bug"))
    with pytest.raises(KeyError, match="bug"):
        _run("--target-flops", "0.6", model)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("stopped")])
def test_an_interrupted_run_says_how_to_resume(
    stub: Stub, model: str, error: BaseException
) -> None:
    stub.fails(error)
    early = _run("--target-flops", "0.6", model)
    Path("model-compressed").mkdir()
    late = _run("--target-flops", "0.6", model)
    assert (early.exit_code, late.exit_code) == (130, 130)
    assert "interrupted: nothing was written" in early.stderr
    assert "stages are in 'model-compressed': repeat the command with --resume" in late.stderr


def test_sigterm_is_an_interruption_and_the_handler_is_restored(stub: Stub, model: str) -> None:
    def act(_console: RunConsole) -> Report:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError("not interrupted")

    stub.act = act
    before = signal.getsignal(signal.SIGTERM)
    result = _run("--target-flops", "0.6", model)
    assert result.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_missed_target_gives_the_reports_exit_code(stub: Stub, model: str) -> None:
    stub.act = lambda _console: _report(target_flops=50)
    result = _run("--target-flops", "0.5", model)
    assert result.exit_code == 10
    assert "missed: flops (exit code 10)" in result.stdout


def test_json_has_standard_output_for_itself(stub: Stub, model: str) -> None:
    def act(console: RunConsole) -> Report:
        print("a library talks")
        console.stage("export")
        with console.progress("tock 1/1", total=2) as advance:
            advance(2)
        return _report()

    stub.act = act
    result = _run("--json", "--target-flops", "0.6", model)
    assert json.loads(result.stdout)["exit_code"] == 0
    for line in ("a library talks", "== export", "tock 1/1: 2/2"):
        assert line in result.stderr


def test_quiet_shows_the_result_and_warnings_alone(stub: Stub, model: str) -> None:
    def act(console: RunConsole) -> Report:
        console.stage("export")
        console.say("a line")
        console.detail("a detail")
        console.warn("blocks[0] stays")
        with console.progress("tock 1/1", total=2) as advance:
            advance(2)
        return _report()

    stub.act = act
    quiet = _run("-q", "--target-flops", "0.6", model)
    assert "all met: flops" in quiet.stdout
    assert quiet.stderr == "warning: blocks[0] stays\n"
    for line in ("export", "a line", "tock"):
        assert line not in quiet.stdout
    normal = _run("--target-flops", "0.6", model)
    assert "a line" in normal.stdout
    assert "a detail" not in normal.stdout
    assert "a detail" in _run("-v", "--target-flops", "0.6", model).stdout


def test_a_terminal_gets_a_bar_with_rate_and_remaining_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("TERM", "xterm")
    console = RunConsole()
    with console.progress("tock 2/3 [a]", total=4) as advance:
        advance(1)
        time.sleep(0.2)
        advance(1)
    shown = capsys.readouterr().out
    for part in ("tock 2/3 [a]", "2/4", "/s", "0:00"):
        assert part in shown


@pytest.mark.parametrize(
    "args", [("--help",), ("prune", "--help"), (), ("--help-all",), ("prune", "--help-all")]
)
def test_help_leads_with_an_example_and_lists_options_in_sections(args: tuple[str, ...]) -> None:
    result = _run(*args)
    assert result.exit_code == 0
    assert result.stdout.index("compress --target-flops 0.6 model.pt") < result.stdout.index(
        "--out"
    )
    found = re.findall(r"^([A-Z]\w+)$", result.stdout, re.MULTILINE)
    sections = ["Model", "Target", "Data", "Recovery", "Constraints", "Deployment", "Run"]
    assert found == sections
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_help_fits_one_screen_and_help_all_has_every_option() -> None:
    short, whole = _run("--help").stdout, _run("--help-all").stdout
    assert len(short.splitlines()) <= 40
    for param in prune.params:
        if isinstance(param, click.Option):
            assert param.opts[-1] in whole
            assert param.help
    assert "--help-all" in short and "--recipe" not in short


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("prune", "--help")])
def test_help_and_version_answer_at_once(args: tuple[str, ...]) -> None:
    started = time.monotonic()
    done = subprocess.run([COMPRESS, *args], capture_output=True, text=True, check=True)
    # Half a second is the promise; a busy machine gets twice that.
    assert time.monotonic() - started < 1.0
    assert done.stderr == ""


def test_the_command_line_loads_no_heavy_package() -> None:
    code = (
        "import sys, pipeline.cli; print(sorted({'torch','onnx','timm','rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_the_installed_one() -> None:
    assert re.fullmatch(r"compress, version \d+\.\d+\.\d+\n", _run("--version").stdout)


def test_a_bad_argument_is_a_failed_process_without_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [COMPRESS, "--target-flops", "0.6", "no.pt"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr == "compress: error: MODEL: 'no.pt' does not exist\n"
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_command_is_told_from_a_model(tmp_path: Path) -> None:
    result = _run("reprot", str(tmp_path))
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "no command and no model 'reprot': did you mean report?" in line


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (("--target-flops", "0.6"), "keep at most 60 % of the FLOPs (remove at least 40 %)"),
        (("--target-params", "25M"), "keep at most 25,000,000 parameters"),
        (("--target-latency", "0.5x"), "at most 0.5 times the time"),
        (("--target-latency", "4ms", "--target-flops", "60%"), "40 %), at most 4 ms a run"),
    ],
)
@pytest.mark.usefixtures("stub")
def test_the_first_line_says_what_is_kept_and_what_goes(
    model: str, target: tuple[str, ...], told: str
) -> None:
    first = _run(*target, model).stdout.splitlines()[0]
    assert first.startswith("asked: ")
    assert told in first
