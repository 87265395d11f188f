"""The exported fp32 file in the precision that was asked for, or that the given file has.

Enters: the run's settings, its fp32 file, the baseline with its data. Leaves: `model.onnx` in that
precision, the fp32 file in stages/, and what was chosen, for the report. Refused: int8 without
data, by `config`.
"""

import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exporters
from exporters.precision import Inputs
from gbn.errors import ProofFailed
from pipeline import verify
from pipeline.baseline import Baseline
from pipeline.config import RunConfig
from pipeline.console import RunConsole
from pipeline.rundir import RunDirectory

FP32_FILE = "stages/model-fp32.onnx"
_COMPARED_BATCHES = 4
_CALIBRATION_IMAGES = 256
_CALIBRATION_BATCH = 16
_ORT_TOLERANCE = 1e-4


def precision_of(config: RunConfig, baseline: Baseline) -> str:
    """What model.onnx is to be in: what was asked for, else what the given file is in."""
    return config.deploy.precision or given_precision(baseline)


def given_precision(baseline: Baseline) -> str:
    """What the given model is in."""
    return "fp16" if baseline.in_half else "fp32"


def convert(
    config: RunConfig, baseline: Baseline, run: RunDirectory, console: RunConsole
) -> dict[str, Any]:
    """The `precision` section of the report; model.onnx is replaced where it is not fp32."""
    kind = precision_of(config, baseline)
    found: dict[str, Any] = {"kind": kind, "before": given_precision(baseline)}
    if kind == "fp32":
        return found
    run.write(FP32_FILE, lambda to: shutil.copyfile(run.path / "model.onnx", to))
    source = run.path / FP32_FILE
    if kind == "int8":
        found |= _quantise(config, baseline, run, source, console)
        return found | {"relative_error_from_fp32": _relative_error(config, baseline, run)}
    run.write("model.onnx", lambda to: exporters.to_fp16(source, to))
    if config.deploy.provider == "cpu":
        found["note"] = "fp16 on the cpu provider is computed in fp32: smaller, but not faster"
        console.warn(found["note"])
    difference = exporters.check_session_parity(
        exporters.open_session(source, config.deploy.provider),
        exporters.open_session(run.path / "model.onnx", config.deploy.provider),
        ({baseline.session.input_names[0]: b.numpy()} for b in _probes(baseline)),
        tolerance=exporters.FP16_TOLERANCE,
    )
    return found | {"max_abs_diff_from_fp32": difference.max_abs_diff}


def _relative_error(config: RunConfig, baseline: Baseline, run: RunDirectory) -> float:
    """Of the int8 file's outputs on real images: it is made for such, and on noise far off."""
    assert baseline.data is not None
    provider = config.deploy.provider
    source = exporters.open_session(run.path / FP32_FILE, provider)
    made = exporters.open_session(run.path / "model.onnx", provider)
    images = (batch for batch, _ in baseline.data.val_loader())
    return exporters.relative_error(source, made, itertools.islice(images, _COMPARED_BATCHES)).value


def add_ort(config: RunConfig, baseline: Baseline, run: RunDirectory) -> dict[str, Any]:
    """Write model.ort, where it was asked for; the `ort` section of the report, if any.

    Raises ProofFailed where it does not compute what model.onnx computes.
    """
    if not config.deploy.ort:
        return {}
    source, target = run.path / "model.onnx", run.path / "model.ort"
    run.write("model.ort", lambda to: exporters.write_ort(source, to))
    found = exporters.check_session_parity(
        exporters.open_session(source),
        exporters.open_session(target),
        ({baseline.session.input_names[0]: b.numpy()} for b in _probes(baseline)),
        tolerance=_ORT_TOLERANCE,
    )
    if not found.ok:
        raise ProofFailed(
            f"model.ort differs from model.onnx by {found.max_abs_diff:.2e} of the output's scale, "
            f"{_ORT_TOLERANCE:.0e} is allowed"
        )
    return {"ort": {"size_bytes": target.stat().st_size, "max_abs_diff": found.max_abs_diff}}


def _probes(baseline: Baseline) -> Iterator[Any]:
    fixed = exporters.fixed_batch(baseline.session)
    for batch in baseline.probes.batches():
        if fixed is None or len(batch) == fixed:
            yield batch
    if fixed is not None:
        yield baseline.probes.random[:1].expand(fixed, -1, -1, -1).contiguous()


def _quantise(
    config: RunConfig, baseline: Baseline, run: RunDirectory, source: Path, console: RunConsole
) -> dict[str, Any]:
    data, before = baseline.data, baseline.accuracy
    assert data is not None
    assert before is not None
    provider = config.deploy.provider

    metric = baseline.judge.task.metric
    sign = 1 if metric is None or metric.higher_is_better else -1
    unit = 100 if metric is None else 1  # points of top-1, or the metric's own

    def accuracy(path: Path) -> float:
        session = exporters.open_session(path, provider)
        return sign * verify.accuracy(session, data, baseline.judge, console, "int8").value

    drop = config.target.max_accuracy_drop
    request = exporters.Int8Request(
        calibration=lambda: _calibration_inputs(baseline),
        accuracy=accuracy,
        least_accuracy=None if drop is None else sign * before.value - drop / unit,
        symmetric=provider in ("cuda", "tensorrt"),
    )
    found: list[exporters.Int8Result] = []
    run.write("model.onnx", lambda to: found.append(exporters.to_int8(source, to, request)))
    result = found[0]
    console.say(
        f"int8: calibrated by {result.calibration}, {len(result.float_layers)} of "
        f"{result.num_layers} layers left in float"
    )
    return dataclasses.asdict(result)


def _calibration_inputs(baseline: Baseline) -> Iterator[Inputs]:
    """At most 256 training images, without augmentation, in the batches that the file takes."""
    assert baseline.data is not None
    fixed = exporters.fixed_batch(baseline.session)
    size = fixed or _CALIBRATION_BATCH
    name, given = baseline.session.input_names[0], 0
    for images, _ in baseline.data.calibration_batches(_CALIBRATION_IMAGES):
        for part in images.float().split(size):
            if given >= _CALIBRATION_IMAGES:
                return
            if fixed is None or len(part) == fixed:
                yield {name: part.numpy()}
                given += len(part)
