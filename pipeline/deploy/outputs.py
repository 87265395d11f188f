"""A gate's outcome for machines and people: JUnit XML, Markdown, a table for the terminal.

Enters: a `GateResult`. Leaves: text, or a rich renderable.
"""

import socket
from datetime import UTC, datetime
from xml.etree import ElementTree

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline.deploy.checks import MET, MISSED, SKIPPED, UNDECIDED, Check, GateResult
from pipeline.report.format import NOT_XML

_STYLES = {MET: "green", MISSED: "bold red", UNDECIDED: "yellow", SKIPPED: "dim"}
_MARKS = {MET: "✅ met", MISSED: "❌ missed", UNDECIDED: "❔ undecided", SKIPPED: "⏭ skipped"}
_COLUMNS = ("check", "measured", "limit", "verdict")


def junit_xml(result: GateResult) -> str:
    """A test suite with one test case for each check.

    Undecided checks are failures or skipped, as the gate counts them.
    """
    checks = result.checks
    suite = ElementTree.Element(
        "testsuite",
        {
            "name": "compress verify",
            "package": "compress",
            "id": "0",
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
            "hostname": _xml(socket.gethostname()) or "localhost",
            "tests": str(len(checks)),
            "failures": str(sum(result.fails(check) for check in checks)),
            "errors": "0",
            "skipped": str(sum(_is_skipped(result, check) for check in checks)),
            "time": f"{sum(check.seconds for check in checks):.3f}",
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (
        ("candidate", str(result.candidate)),
        ("baseline", str(result.baseline or "")),
        ("exit_code", str(result.exit_code)),
    ):
        ElementTree.SubElement(properties, "property", {"name": name, "value": _xml(value)})
    for check in checks:
        _add_case(suite, result, check)
    ElementTree.SubElement(suite, "system-out").text = _xml(result.headline)
    ElementTree.SubElement(suite, "system-err").text = _xml("\n".join(result.warnings))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _is_skipped(result: GateResult, check: Check) -> bool:
    return check.state != MET and not result.fails(check)


def _add_case(suite: ElementTree.Element, result: GateResult, check: Check) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        {
            "name": check.name,
            "classname": f"compress.verify.{check.kind}",
            "time": f"{check.seconds:.3f}",
        },
    )
    message = _xml(f"{check.name}: {check.measured}, limit: {check.limit}{_because(check)}")
    if result.fails(check):
        failure = ElementTree.SubElement(case, "failure", {"message": message, "type": check.state})
        failure.text = message
    elif check.state != MET:
        ElementTree.SubElement(case, "skipped", {"message": message})


def _because(check: Check) -> str:
    return f" ({check.reason})" if check.reason else ""


def _xml(text: str) -> str:
    return NOT_XML.sub("?", text)


def markdown(result: GateResult) -> str:
    """A heading, a table and the warnings, fit for a pull request or a CI summary."""
    against = f" against `{result.baseline.name}`" if result.baseline is not None else ""
    mark = "❌" if result.exit_code else "✅"
    lines = [
        f"### {mark} `{result.candidate.name}`{against}",
        "",
        _row(_COLUMNS),
        _row(["---"] * len(_COLUMNS)),
    ]
    for check in result.checks:
        cells = (check.name, check.measured, check.limit, _MARKS[check.state] + _because(check))
        lines.append(_row(cells))
    lines += ["", result.headline]
    if result.warnings:
        lines += ["", *(f"- {_cell(warning)}" for warning in result.warnings)]
    return "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def gate_table(result: GateResult) -> Group:
    """For the terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in _COLUMNS:
        table.add_column(heading, overflow="fold")
    for check in result.checks:
        verdict = Text(check.state + _because(check), style=_STYLES[check.state])
        table.add_row(Text(check.name), Text(check.measured), Text(check.limit), verdict)
    style = "bold red" if result.exit_code else "bold green"
    return Group(table, "", Text(result.headline, style=style))
