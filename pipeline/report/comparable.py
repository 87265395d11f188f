"""Which runs may be compared with which: judged alike, timed alike, of files that are sound.

Enters: reports. Leaves: `Quality`, and the reason why a run is left out, in a few words.
"""

from dataclasses import dataclass

from pipeline.report import format as fmt
from pipeline.report.build import MISSED, Report

SAME_FILE_SPREAD = 0.02
"""How far a speed-up of the same two files is off in another process, by where their memory lies;
no interval from within one process knows of it."""
_SOUND = ("surgery", "parity", "provider")
_UNSOUND_CODES = (11, 14)  # a proof or the provider missed, or not there


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How good a file is: its accuracy, or its fidelity to the original where no data was."""

    metric: str
    value: float
    higher_is_better: bool
    in_points: bool

    @classmethod
    def of(cls, report: Report) -> "Quality | None":
        """None where neither was measured."""
        accuracy, fidelity = report.accuracy, report.fidelity
        if accuracy is not None:
            return cls(
                metric=f"{accuracy['metric']} (n={accuracy['samples']})",
                value=accuracy["after"],
                higher_is_better=accuracy.get("higher_is_better", True),
                in_points=accuracy.get("in_points", True),
            )
        if fidelity is not None and fidelity["value"] is not None:
            share = "error" not in fidelity["metric"]
            return cls(
                metric=f"{fidelity['metric']} (n={fidelity['samples']})",
                value=fidelity["value"],
                higher_is_better=share,
                in_points=share,
            )
        return None

    @property
    def text(self) -> str:
        """With its unit."""
        return f"{100 * self.value:.2f} %" if self.in_points else f"{self.value:.4g}"

    @property
    def label(self) -> str:
        """The metric, and which way is better where that is not the usual one."""
        return f"{self.metric}{fmt.direction(self.higher_is_better)}"


def unsound(report: Report) -> str | None:
    """Why nobody should deploy the file, whatever its figures; None where it is sound."""
    missed = [check for check in _SOUND if report.verdict.get(check) == MISSED]
    if missed:
        return f"no: {', '.join(missed)} missed"
    return "no: not proven" if report.exit_code in _UNSOUND_CODES else None


def measured_first(reports: list[Report]) -> Report | None:
    """The run that others are held against: the first sound one that has both figures.

    One with an accuracy comes before those without data.
    """
    whole = [r for r in reports if Quality.of(r) is not None and r.latency is not None]
    sound = [report for report in whole if unsound(report) is None]
    judged = [report for report in sound if report.accuracy is not None]
    return next(iter([*judged, *sound]), None)


def left_out(report: Report, first: Report | None) -> str | None:
    """Why a run cannot be compared with `first`; None where it can."""
    quality = Quality.of(report)
    if quality is None:
        return "no: accuracy was not measured"
    if report.latency is None:
        return "no: latency was not measured"
    not_sound = unsound(report)
    if not_sound is not None or first is None:
        return not_sound
    wanted = Quality.of(first)
    if wanted is not None and quality.metric != wanted.metric:
        return f"no: judged by {quality.metric}"
    if report.accuracy is None:
        # fidelity is to a run's own original, on images made from that one
        if original(report) is None or original(report) != original(first):
            return "no: of another original"
    elif _data(report) is None or _data(report) != _data(first):
        return "no: judged on other data"
    if _input_size(report) != _input_size(first):
        return f"no: takes {_input_size(report)}"
    if timed_on(report) != timed_on(first):
        return f"no: timed on {timed_on(report)}"
    return None


def timed_on(report: Report) -> str:
    """Provider, batch, threads and machine of a report with latency."""
    latency = report.latency
    assert latency is not None
    where = report.environment
    machine = [where[key] for key in ("platform", "processor", "gpu") if where.get(key)]
    return ", ".join([fmt.timed_on(latency), *(machine or ["an unnamed machine"])])


def original(report: Report) -> str | None:
    """The hash of the model that was compressed; None where it was not recorded."""
    return _hash(report, "model")


def _data(report: Report) -> str | None:
    """What tells data apart: the content behind it, and which callable of a file gives it."""
    source = (report.environment.get("data") or {}).get("source")
    found = _hash(report, "data")
    if found is None:
        return None if source is None else str(source)
    _, in_code, name = str(source).rpartition(".py:")
    return f"{found} {name}" if in_code else found


def _hash(report: Report, role: str) -> str | None:
    found = (report.environment.get("hashes") or {}).get(role)
    return None if found is None else str(found)


def _input_size(report: Report) -> str:
    size = report.environment.get("input_size") or ()
    return "x".join(map(str, size)) if isinstance(size, list | tuple) else str(size)
