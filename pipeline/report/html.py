"""`report.html`: one page that needs no network and no other file.

Enters: a `Report`. Leaves: HTML text, every value escaped. The page's own script is named by its
hash in a content security policy, so nothing else can run in it or be loaded by it.
"""

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import format as fmt
from pipeline.report.build import Report
from pipeline.report.words import findings, gist, outcome

_FOLDER = "templates"


def render_html(report: Report) -> str:
    """The whole page."""
    from pipeline.report.charts import charts  # matplotlib takes a second to import

    state, line = outcome(report)
    return render(
        "report.html.j2",
        report=report,
        state=state,
        outcome=line,
        gist=gist(report),
        findings=findings(report),
        rows=fmt.rows(report),
        charts=charts(report),
        stages=[(stage, _details(stage)) for stage in report.stages],
        without_data=fmt.without_data(report),
    )


def render(template: str, **content: Any) -> str:
    """A page from a template of this package, with its style and script inside."""
    style, script = (_text(name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _templates()
        .get_template(template)
        .render(style=Markup(style), script=Markup(script), script_hash=digest, **content)
    )


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("pipeline.report", _FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _text(name: str) -> str:
    templates = _templates()
    assert templates.loader is not None
    return templates.loader.get_source(templates, name)[0]


def _details(stage: dict[str, Any]) -> str:
    """What a stage says of itself beside its name and time."""
    parts = []
    for key, value in stage.items():
        if key in ("name", "seconds") or value in (None, [], ""):
            continue
        if key == "flops_kept":
            parts.append(f"{fmt.percent(value)} of the FLOPs kept")
        elif isinstance(value, list):
            parts.append("; ".join(str(item) for item in value))
        else:
            parts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(parts)
