"""What a run has shown: `report.json`, `report.html` and the summary on the terminal.

Enters: `Measurements`, plain values from the stages. Leaves: a `Report` with its verdicts.
"""

from pipeline.report.build import Report, build_report
from pipeline.report.environment import environment
from pipeline.report.html import render_html
from pipeline.report.measurements import (
    Accuracy,
    BeforeAfter,
    Difference,
    Fidelity,
    Latency,
    LatencySummary,
    Measurements,
    Provider,
    Surgery,
)
from pipeline.report.table import summary_table

__all__ = [
    "Accuracy",
    "BeforeAfter",
    "Difference",
    "Fidelity",
    "Latency",
    "LatencySummary",
    "Measurements",
    "Provider",
    "Report",
    "Surgery",
    "build_report",
    "environment",
    "render_html",
    "summary_table",
]
