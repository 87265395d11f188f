"""`compress report`: pages of finished runs, one or several side by side.

Enters: run directories or `report.json` files. Leaves: an HTML page, and a table for several.
"""

from pathlib import Path

import click

from pipeline.cli_errors import RunState

REPORT_HELP = """\
Make the page of a finished RUN again, or of several RUNs side by side.

\b
Examples:
  compress report model-compressed/
      writes model-compressed/report.html from its report.json
  compress report run-a/ run-b/ run-c/ --output comparison.html
      accuracy against latency, with the runs that no other one beats

A RUN is a run's directory or its report.json.
"""
COMPARISON = Path("comparison.html")


@click.command("report", help=REPORT_HELP, short_help="Pages of finished runs.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"Default: report.html beside report.json; for several runs {COMPARISON}.",
)
@click.option("-v", "--verbose", is_flag=True, help="Tracebacks of errors.")
@click.pass_obj
def report(state: RunState, /, runs: tuple[Path, ...], output: Path | None, verbose: bool) -> int:
    """Read, render, write."""
    state.verbose = verbose

    from pipeline.atomic import write_atomic
    from pipeline.console import RunConsole
    from pipeline.report.compare import compare, comparison_html, comparison_table
    from pipeline.report.html import render_html
    from pipeline.report.stored import read_report, report_file

    several = len(runs) > 1
    reports = [read_report(run) for run in runs]
    target = output or (COMPARISON if several else report_file(runs[0]).with_name("report.html"))
    _require_writable(target)
    console = RunConsole()
    if several:
        comparison = compare(list(zip(_names(runs), reports, strict=True)))
        console.result(comparison_table(comparison))
        page = comparison_html(comparison)
    else:
        page = render_html(reports[0])
    write_atomic(target, lambda to: to.write_text(page, encoding="utf-8"))
    console.say(f"wrote {target}")
    return 0


def _require_writable(target: Path) -> None:
    from pipeline.errors import UsageError

    if target.is_dir():
        raise UsageError(f"--output: '{target}' is a directory: name a file in it")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"--output: the folder of '{target}' does not exist: make it first")


def _names(runs: tuple[Path, ...]) -> list[str]:
    """The directories' names; whole paths where two of them are called the same."""
    folders = [run if run.is_dir() else run.parent for run in runs]
    names = [folder.resolve().name for folder in folders]
    return [
        name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)
    ]
