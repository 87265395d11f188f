"""`compress verify`: hold a finished ONNX file against limits, and against a baseline.

size -> provider -> parity -> accuracy -> latency

Enters: a checked `VerifyConfig`. Leaves: a `GateResult` with one `Check` for each limit. Where the
provider does not run a file, what needs it is skipped and the provider's check fails. Refused:
files that are no ONNX, a baseline with other inputs, data that does not fit. torch is imported
only where there is data: a gate without any starts in a fraction of the time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

import exporters
from exporters.session import Session
from pipeline.console import RunConsole
from pipeline.deploy.checks import MET, MISSED, SKIPPED, Check, GateResult
from pipeline.deploy.config import VerifyConfig
from pipeline.deploy.latency_checks import latency_checks
from pipeline.deploy.sessions import Runner, batches_of, require_same_inputs
from pipeline.errors import UsageError
from pipeline.normalisation import written_normalisation
from pipeline.report.environment import environment

if TYPE_CHECKING:
    from pipeline.data import Data

_PARITY_BATCH = 4
# A difference of two decimal fractions is off by some 1e-14; one sample in a billion is 1e-7.
_POINTS_ROUNDING = 1e-9


@dataclass
class _Progress:
    """What the gate has found so far."""

    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def run_gate(config: VerifyConfig, console: RunConsole) -> GateResult:
    """Measure and judge. Raises UsageError and ExportError with one line for the user."""
    found = _Progress()
    _check_size(config, found)
    runner = Runner(config.runtime)
    try:
        candidate = runner.open(config.candidate)
        baseline = None if config.baseline is None else runner.open(config.baseline)
    except exporters.ProviderError as error:
        _provider_failed(config, str(error), found)
    else:
        elsewhere = ", ".join(f"{n} {op}" for op, n in candidate.nodes_elsewhere.items())
        found.checks.append(
            Check(
                kind="provider",
                name="provider",
                state=MET,
                measured=config.runtime.provider,
                limit=config.runtime.provider,
                reason=f"left to another provider: {elsewhere}" if elsewhere else "",
            )
        )
        _check_running(config, runner, (candidate, baseline), found, console)
    inputs = {"candidate": config.candidate}
    if config.baseline is not None:
        inputs["baseline"] = config.baseline
    provider = config.runtime.provider
    found.figures["environment"] = environment(
        seed=config.runtime.seed, device=provider, provider=provider, inputs=inputs
    ) | {"threads": config.runtime.threads}
    return GateResult(
        candidate=config.candidate,
        baseline=config.baseline,
        checks=tuple(found.checks),
        undecided_passes=config.undecided_passes,
        figures=found.figures,
        warnings=tuple(found.warnings),
    )


def _check_running(
    config: VerifyConfig,
    runner: Runner,
    sessions: tuple[Session, Session | None],
    found: _Progress,
    console: RunConsole,
) -> None:
    """All that needs the files to run."""
    candidate, baseline = sessions
    limits = config.limits
    if baseline is not None and limits.need_a_run:
        require_same_inputs(baseline, candidate, runner, config)
    # What may be refused comes before what takes long.
    batches = batches_of(config.runtime, candidate, baseline)
    data = _load_data(config, runner, sessions)
    if limits.parity_tolerance is not None and baseline is not None:
        _check_parity(config, runner, (candidate, baseline), data, found)
    if limits.on_accuracy and data is not None:
        _check_accuracy(config, (candidate, baseline), data, found, console)
    if limits.on_latency:
        checks, sections, warnings = latency_checks(config, runner, batches)
        found.checks += checks
        found.figures["latency"] = sections
        found.warnings += warnings


def _check_size(config: VerifyConfig, found: _Progress) -> None:
    for path in filter(None, (config.candidate, config.baseline)):
        exporters.load_onnx(path)
    after = exporters.onnx_size_bytes(config.candidate)
    before = None if config.baseline is None else exporters.onnx_size_bytes(config.baseline)
    found.figures["size_bytes"] = {"before": before, "after": after}
    limit = config.limits.max_size_bytes
    if limit is not None:
        found.checks.append(
            Check(
                kind="size",
                name="size",
                state=MET if after <= limit else MISSED,
                measured=f"{after:,} bytes",
                limit=f"at most {limit:,} bytes",
            )
        )


def _provider_failed(config: VerifyConfig, reason: str, found: _Progress) -> None:
    limits = config.limits
    asked = {
        "parity": limits.parity_tolerance is not None,
        "accuracy": limits.on_accuracy,
        "latency": limits.on_latency,
    }
    found.checks += [
        Check(kind=kind, name=kind, state=SKIPPED, reason="the provider did not run the file")
        for kind, wanted in asked.items()
        if wanted
    ]
    provider = config.runtime.provider
    found.checks.append(
        Check(kind="provider", name="provider", state=MISSED, limit=provider, reason=reason)
    )


def _check_parity(
    config: VerifyConfig,
    runner: Runner,
    sessions: tuple[Session, Session],
    data: "Data | None",
    found: _Progress,
) -> None:
    """Candidate against baseline, on random inputs and on real ones where there are some."""
    candidate, baseline = sessions
    tolerance = config.limits.parity_tolerance or 0.0
    began = monotonic()
    fixed = exporters.fixed_batch(candidate) or exporters.fixed_batch(baseline)
    batches = (fixed,) if fixed else config.runtime.batches or (1, _PARITY_BATCH)
    inputs = [runner.varied_inputs(baseline, batch) for batch in batches]
    zeros = {n for i in inputs for n, v in i.items() if v.dtype.kind in "iu" and not v.any()}
    found.warnings += [
        f"parity: of input {name!r} only zeros were compared: the file takes no other random values"
        for name in sorted(zeros)
    ]
    if data is not None:
        images = next(iter(data.val_loader(batches[-1])))[0].float().numpy()
        # of fewer images than the batch holds the last one is repeated
        rows = np.minimum(np.arange(batches[-1]), len(images) - 1)
        inputs.append({baseline.input_names[0]: images[rows]})
    parity = exporters.check_session_parity(baseline, candidate, inputs, tolerance)
    proven = parity.output_scale > 0
    finite = math.isfinite(parity.max_abs_diff)
    difference = parity.max_abs_diff if finite else None
    found.figures["parity"] = {"max_abs_diff": difference, "tolerance": tolerance}
    found.checks.append(
        Check(
            kind="parity",
            name="parity",
            state=MET if parity.ok else MISSED,
            measured=f"{parity.max_abs_diff:.2e} of the output's scale",
            limit=f"at most {tolerance:.2e}",
            reason="" if proven else "the outputs are all zero or not finite: nothing was proven",
            seconds=monotonic() - began,
        )
    )


def _check_accuracy(
    config: VerifyConfig,
    sessions: tuple[Session, Session | None],
    data: "Data",
    found: _Progress,
    console: RunConsole,
) -> None:
    from pipeline import verify
    from pipeline.tasks import CLASSIFICATION, Judge

    candidate, baseline = sessions
    began = monotonic()
    judge = Judge(task=CLASSIFICATION)
    after = verify.accuracy(candidate, data, judge, console, "accuracy")
    before = verify.accuracy(baseline, data, judge, console, "baseline") if baseline else None
    found.figures["accuracy"] = {
        "metric": after.metric,
        "samples": after.samples,
        "before": before.value if before else None,
        "after": after.value,
    }
    found.checks += _accuracy_checks(config, before, after, monotonic() - began)


def _accuracy_checks(
    config: VerifyConfig,
    before: exporters.Accuracy | None,
    after: exporters.Accuracy,
    seconds: float,
) -> Iterator[Check]:
    least, largest_drop = config.limits.min_accuracy, config.limits.max_accuracy_drop
    share = f"{100 * after.value:.2f} % of {after.samples}"
    if least is not None:
        yield Check(
            kind="accuracy",
            name="accuracy",
            state=MET if after.value >= least else MISSED,
            measured=share,
            limit=f"at least {100 * least:g} %",
            seconds=seconds,
        )
    if largest_drop is not None and before is not None:
        drop = 100 * (before.value - after.value)
        yield Check(
            kind="accuracy",
            name="accuracy drop",
            state=MET if drop <= largest_drop + _POINTS_ROUNDING else MISSED,
            measured=f"{drop:.2f} points, from {100 * before.value:.2f} % to {share}",
            limit=f"at most {largest_drop:g} points",
            seconds=seconds,
        )


def _load_data(
    config: VerifyConfig, runner: Runner, sessions: tuple[Session, Session | None]
) -> "Data | None":
    candidate, baseline = sessions
    if config.data is None:
        return None

    from pipeline.data import DataRequest, load_data

    made = runner.inputs(candidate, 1, any_batch=True)
    shapes = [tuple(value.shape[1:]) for value in made.values()]
    if len(shapes) != 1 or len(shapes[0]) != 3:
        raise UsageError(
            f"--data: needs a graph with one image input (N, C, H, W), '{config.candidate}' has "
            f"{', '.join(candidate.input_names)}"
        )
    mean, std = config.mean, config.std
    if mean is None:
        mean, std = _common_normalisation(config, candidate, baseline)
    channels, height, width = shapes[0]
    return load_data(
        DataRequest(
            source=config.data,
            input_size=(channels, height, width),
            mean=mean,
            std=std,
            seed=config.runtime.seed,
            val_only=True,
        )
    )


def _common_normalisation(
    config: VerifyConfig, candidate: Session, baseline: Session | None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """What one file says, or both alike: the same images go into both."""
    ours = written_normalisation(candidate.metadata, config.candidate)
    if baseline is None or config.baseline is None:
        return ours or (None, None)
    theirs = written_normalisation(baseline.metadata, config.baseline)
    if ours is not None and theirs is not None and ours != theirs:
        said = (f"mean {mean}, std {std}" for mean, std in (ours, theirs))
        raise UsageError(
            f"the candidate's metadata says {next(said)}, the baseline's {next(said)}: the same "
            "images cannot be right for both; give --mean and --std if they are"
        )
    return ours or theirs or (None, None)
