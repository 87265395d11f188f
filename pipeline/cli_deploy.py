"""The commands for finished ONNX files: `compress verify` and `compress bench`.

Enters: their arguments. Leaves: a table on standard output, files where asked, and an exit code.
Heavy packages are imported when a command begins.
"""

from pathlib import Path
from typing import Any

import click

from pipeline.cli_errors import RunState, terminated_as_interrupted
from pipeline.config import PROVIDERS
from pipeline.errors import UsageError
from pipeline.text_files import Write, is_stream, text_writer

FILE: dict[str, Any] = {"type": click.Path()}  # text; shells complete files

VERIFY_HELP = """\
Hold an ONNX file against limits, fail where one is missed: a gate for CI.

\b
Examples:
  compress verify small.onnx --max-size 5MB --max-latency 5ms
  compress verify new.onnx --baseline old.onnx --max-latency-regression 3%
  compress verify new.onnx --baseline old.onnx --data photos/ \\
      --max-accuracy-drop 0.5 --junit gate.xml --markdown gate.md

\b
Exit codes, the first of: 2 usage, 10 size, 11 parity, 12 accuracy,
  13 latency, 14 provider. Latency is that of the median run.
"""

BENCH_HELP = """\
Latency of ONNX files that take turns, so that noise hits all alike.

\b
Example:
  compress bench big.onnx small.onnx --batch-size 1 --batch-size 8
"""

PROVIDER = click.Choice(PROVIDERS)
INPUT_HELP = "Sizes that the file leaves open; repeatable NAME:C,H,W."
UNDECIDED = click.Choice(("pass", "fail"))


def _runtime_options(command: Any) -> Any:
    """Options that both commands share."""
    for option in reversed(
        (
            click.option("--batch-size", type=int, multiple=True, metavar="N", help="Repeatable."),
            click.option(
                "--threads", type=int, metavar="N", help="On cores of their own. Default: 1."
            ),
            click.option("--input-size", multiple=True, metavar="SHAPE", help=INPUT_HELP),
            click.option("--seed", type=int, default=0, metavar="N", help="Of inputs and order."),
            click.option("-v", "--verbose", is_flag=True, help="Tracebacks of errors."),
            click.option(
                "--json",
                **FILE,
                metavar="FILE",
                help="All figures; - prints them.",
            ),
        )
    ):
        command = option(command)
    return command


@click.command("verify", help=VERIFY_HELP, short_help="A gate for CI.")
@click.argument("candidate", **FILE)
@click.option("--baseline", **FILE, metavar="FILE", help="What is compared with.")
@click.option("--max-size", metavar="SIZE", help="With unit: 5MB, 4MiB.")
@click.option("--parity-tolerance", type=float, metavar="X", help="Of outputs, against baseline's.")
@click.option("--min-accuracy", metavar="SHARE", help="0.74 or 74%.")
@click.option(
    "--max-accuracy-drop", type=float, metavar="X", help="Points: 0.5 allows 93 to 92.5 %."
)
@click.option("--max-latency", metavar="TIME", help="With unit: 5ms, 800us.")
@click.option("--min-speedup", metavar="X", help="1.3: baseline takes 1.3 times as long.")
@click.option("--max-latency-regression", metavar="X%", help="3%: at most 3 % slower.")
@click.option("--max-seconds", type=float, metavar="S", help="For undecided latency. Default: 20.")
@click.option(
    "--on-undecided", type=UNDECIDED, default="fail", help="What it then counts as. Default: fail."
)
@click.option("--data", **FILE, metavar="SOURCE", help="Labelled images, as to compress.")
@click.option("--mean", metavar="X,Y,Z", help="Default: written in the file by compress.")
@click.option("--std", metavar="X,Y,Z", help="The same.")
@click.option("--provider", type=PROVIDER, metavar="NAME", help=f"{', '.join(PROVIDERS)}.")
@_runtime_options
@click.option("--junit", **FILE, metavar="FILE", help="JUnit XML for test reports.")
@click.option("--markdown", **FILE, metavar="FILE", help="A table for the CI summary.")
@click.pass_obj
def verify(state: RunState, /, **options: Any) -> int:
    """Measure, judge, print; returns the exit code."""
    state.verbose = bool(options["verbose"])

    from pipeline.deploy.config import verify_config

    config = verify_config(options)
    writers = _targets(options, "json", "junit", "markdown")

    from pipeline.console import RunConsole
    from pipeline.deploy.gate import run_gate
    from pipeline.deploy.outputs import gate_table, junit_xml, markdown

    to_stdout = options["json"] == "-"
    console = RunConsole(json=to_stdout)
    with terminated_as_interrupted():
        result = run_gate(config, console)
    texts = (result.to_json, lambda: junit_xml(result), lambda: markdown(result))
    for write, text in zip(writers, texts, strict=True):
        write(text)
    for warning in result.warnings:
        console.warn(warning)
    console.result(gate_table(result))
    return result.exit_code


@click.command("bench", help=BENCH_HELP, short_help="Latency of files that take turns.")
@click.argument("models", nargs=-1, required=True, **FILE)
@click.option("--provider", type=PROVIDER, multiple=True, metavar="NAME", help="Repeatable; cpu.")
@click.option("--max-seconds", type=float, metavar="S", help="Of measuring in all. Default: 5.")
@_runtime_options
@click.pass_obj
def bench(state: RunState, /, **options: Any) -> int:
    """Measure and print."""
    state.verbose = bool(options["verbose"])

    from pipeline.deploy.config import bench_config

    config = bench_config(options)
    (write,) = _targets(options, "json")

    from pipeline.console import RunConsole
    from pipeline.deploy.bench import bench_table, run_bench

    console = RunConsole(json=options["json"] == "-")
    with terminated_as_interrupted():
        result = run_bench(config)
    write(result.to_json)
    for warning in result.warnings:
        console.warn(warning)
    console.result(bench_table(result))
    return 0


def _targets(options: dict[str, Any], *names: str) -> list[Write]:
    """What writes a text where each of these options says, nowhere where it is not given.

    Refused before any measuring: a place that cannot be written, or that two options name.
    """
    taken: dict[Path, str] = {}
    for name in names:
        path = options[name]
        if path == "-" and name != "json":
            raise UsageError(f"--{name}: '-' is for --json alone: name a file")
        if path in (None, "-") or is_stream(Path(path)):
            continue
        other = taken.setdefault(Path(path).resolve(), name)
        if other != name:
            raise UsageError(f"--{other} and --{name} name the same file '{path}'")
    return [_writer(options[name], name) for name in names]


def _writer(path: str | None, option: str) -> Write:
    if path is None:
        return lambda _text: None
    if path == "-":
        return lambda text: click.echo(text(), nl=False)
    return text_writer(Path(path), f"--{option}")
