"""`report.html`: one page that needs no network and no other file.

Enters: a `Report`. Leaves: HTML text, every value escaped.
"""

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.report import format as fmt
from pipeline.report.build import Report

TEMPLATE = "report.html.j2"


def render_html(report: Report) -> str:
    """The whole page."""
    templates = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(TEMPLATE).render(
        report=report,
        headline=fmt.headline(report),
        rows=fmt.rows(report),
        proofs=fmt.proofs(report),
        without_data=fmt.without_data(report),
    )
