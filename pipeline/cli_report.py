"""`compress report`: pages of finished runs, one or several side by side.

Enters: run directories or `report.json` files. Leaves: an HTML page, and a table for several.
"""

import os
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

    from pipeline.console import RunConsole
    from pipeline.report.compare import compare, comparison_html, comparison_table
    from pipeline.report.html import render_html
    from pipeline.report.stored import read_report, report_file
    from pipeline.text_files import text_writer

    several = len(runs) > 1
    reports = [read_report(run) for run in runs]
    target = output or (COMPARISON if several else report_file(runs[0]).with_name("report.html"))
    write = text_writer(target, "--output")
    _require_page(target)
    console = RunConsole()
    if several:
        comparison = compare(list(zip(_names(runs), reports, strict=True)))
        console.result(comparison_table(comparison))
        page = comparison_html(comparison)
    else:
        page = render_html(reports[0])
    write(lambda: page)
    console.say(f"wrote {target}")
    return 0


def _require_page(target: Path) -> None:
    """A page has a page's ending, or it would take the place of a run's figures or its model."""
    from pipeline.errors import UsageError
    from pipeline.text_files import is_stream

    if target.suffix.lower() not in (".html", ".htm") and not is_stream(target):
        raise UsageError(f"--output: '{target}' is no name of a page: name an .html file")


def _names(runs: tuple[Path, ...]) -> list[str]:
    """The names of directories, and of files that are not called as runs call theirs.

    Whole paths where two of them are called the same.
    """
    folders = [run.parent if run.name == "report.json" else run for run in runs]
    names = [folder.resolve().name for folder in folders]
    chosen = [
        name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)
    ]
    # A name that is no UTF-8 cannot be written into a page.
    return [os.fsencode(name).decode("utf-8", "replace") for name in chosen]
