"""Reports of finished runs, read back.

Enters: a run's directory, or a `report.json`. Leaves: a `Report`. Refused, with `UsageError`: what
is not there, is no JSON, or lacks what `report.schema.json` promises.
"""

import json
import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.report.build import MISSED, Report
from pipeline.report.format import NOT_XML

# Sections that reports of older versions lack; None means not measured, as in a report of today.
_LATER = {"fidelity": None, "data_free": None, "precision": {"kind": "fp32"}}


def report_file(path: Path) -> Path:
    """The `report.json` that `path` means. Raises UsageError where there is none."""
    file = path / "report.json" if path.is_dir() else path
    if file.is_file():
        return file
    if not path.exists():
        raise UsageError(f"RUN: '{path}' does not exist: give a run's directory or report.json")
    if not (path / "run.json").exists():
        raise UsageError(f"RUN: '{path}' is no run's directory: give one, or its report.json")
    raise UsageError(
        f"RUN: '{path}' holds no report.json: the run has not ended; repeat its command with "
        "--resume, or give another directory"
    )


def read_report(path: Path) -> Report:
    """The report of the run `path`. Raises UsageError, OSError where it cannot be read."""
    file = report_file(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"RUN: '{file}' is no JSON ({error}): was it edited or cut off? Repeat the run with "
            "--resume to write it again"
        ) from error
    _require_whole(content, file)
    _require_sense(content, file)
    return Report.of(_LATER | content)


def _require_whole(content: Any, file: Path) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    text = files("pipeline.report").joinpath("report.schema.json").read_text(encoding="utf-8")
    error = best_match(Draft202012Validator(json.loads(text)).iter_errors(content))
    if error is None:
        return
    place = ".".join(str(part) for part in error.absolute_path) or "the file"
    what = " ".join(error.message.split())
    shown = what if len(what) <= 120 else f"{what[:117]}..."
    raise _not_ours(file, f"{place}: {shown}")


def _require_sense(content: dict[str, Any], file: Path) -> None:
    """What a schema cannot say."""
    if any(NOT_XML.search(text) for text in _leaves(content, str)):
        raise _not_ours(file, "it holds characters that no page can show")
    if not all(map(math.isfinite, _leaves(content, float))):
        raise _not_ours(file, "it holds a number that is not finite")
    if content["latency"] is not None:
        low, high = content["latency"]["speedup"]["ci95"]
        if not 0 < low <= high:
            raise _not_ours(file, f"latency.speedup.ci95: {low:g} to {high:g} is no interval")
    accuracy = content["accuracy"]
    if accuracy is not None and accuracy.get("in_points", True):
        for when in ("before", "after"):
            if not 0 <= accuracy[when] <= 1:
                raise _not_ours(file, f"accuracy.{when}: {accuracy[when]:g} is no share of one")
    missed = [check for check, verdict in content["verdict"].items() if verdict == MISSED]
    if missed and not content["exit_code"]:
        raise _not_ours(file, f"{', '.join(missed)} missed, but exit_code 0")


def _leaves(content: Any, kind: type) -> Iterator[Any]:
    """All values of this kind in it, names of keys too."""
    if isinstance(content, kind):
        yield content
    elif isinstance(content, list):
        for entry in content:
            yield from _leaves(entry, kind)
    elif isinstance(content, dict):
        yield from _leaves([*content, *content.values()], kind)


def _not_ours(file: Path, why: str) -> UsageError:
    return UsageError(
        f"RUN: '{file}' is no report of this version: {why}; repeat the run to write it anew"
    )
