"""The summary at the end of a run, for a terminal of 80 columns.

Enters: a `Report`. Leaves: a rich renderable.
"""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.report import format as fmt
from pipeline.report.build import MET, MISSED, Report

_STYLES = {MET: "green", MISSED: "bold red"}


def summary_table(report: Report) -> Group:
    """Before and after, the proofs, and one line for each verdict."""
    quantities = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    quantities.add_column("", no_wrap=True)
    for heading in ("before", "after"):
        quantities.add_column(heading, justify="right", no_wrap=True)
    quantities.add_column("kept / change")
    for row in fmt.rows(report):
        quantities.add_row(*(Text(cell) for cell in row))

    verdicts = Table.grid(padding=(0, 2, 0, 0))
    differences = {what.split(":")[0].lower(): text for what, text in fmt.proofs(report)}
    for check, verdict in report.verdict.items():
        style = _STYLES.get(verdict, "dim")
        verdicts.add_row(check, Text(verdict, style=style), Text(differences.get(check, "")))

    style = "bold red" if report.exit_code else "bold green"
    parts: list[RenderableType] = [quantities, "", verdicts, ""]
    plainly = fmt.without_data(report)
    if plainly is not None:
        parts += [Text(plainly), ""]
    return Group(*parts, Text(fmt.headline(report), style=style))
