"""The main job, stage by stage, in the order of the README.

import -> baseline -> trace -> compress (tick, tock, fine-tune) -> export -> verify -> report

Enters: a checked `RunConfig`. Leaves: a filled run directory and its `Report`. Until the baseline
is measured and the target is known to be reachable, nothing is written.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import safetensors.torch
import torch
from lightning_fabric.utilities.seed import seed_everything

import exporters
import gbn
from exporters.session import Session
from gbn.prune_plan import GroupWidth
from pipeline import verify
from pipeline.baseline import Baseline, measure_baseline, plain, set_goal
from pipeline.compress import Compressed, Compressor, Goal
from pipeline.config import RunConfig
from pipeline.console import RunConsole
from pipeline.data import Data
from pipeline.data_free import MadeData, NothingMade
from pipeline.exporting import counted_shapes, export_request
from pipeline.folded_norms import fold_norms, without_norms
from pipeline.forecast import forecast
from pipeline.loggers import require_logger
from pipeline.precision import FP32_FILE, add_ort, convert
from pipeline.recovery import prepare
from pipeline.report import (
    BeforeAfter,
    Difference,
    Measurements,
    Provider,
    Report,
    build_report,
    environment,
    render_html,
)
from pipeline.rundir import RunDirectory, check_out
from pipeline.sensitivity import is_affordable, sensitivity
from pipeline.training import Trainer
from pipeline.widths import layer_widths

_PROOF_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """The compressed network, the plan that made it, and the images made for it, if any.

    history, sensitivity: what check-ups found on the way, and of each group's cut alone.
    """

    compressed: Compressed
    plan: gbn.PrunePlan
    made: MadeData | NothingMade | None
    history: dict[str, Any] | None
    sensitivity: dict[str, Any] | None


def run_compress(config: RunConfig, console: RunConsole) -> Report | None:
    """Do the whole job; None for a dry run, which writes nothing.

    Raises CompressError, GbnError and ExportError with one line for the user.
    """
    began = monotonic()
    require_logger(config.logger)
    run = check_out(config.out, config.fingerprint(), config.resume, say=console.warn)
    seed_everything(config.recovery.seed, verbose=False)
    with tempfile.TemporaryDirectory() as scratch:
        baseline = measure_baseline(config, console, Path(scratch))
        goal = set_goal(config, baseline, console)
        if config.dry_run:
            _say_plan(config, baseline, goal, console)
            return None
        with run:
            run.create()
            run.write("stages/baseline.onnx", lambda to: shutil.copyfile(baseline.onnx, to))
            stages: list[dict[str, Any]] = [
                {
                    "name": "baseline",
                    "seconds": round(monotonic() - began, 2),
                    "notes": list(baseline.loaded.warnings),
                }
            ]
            outcome = _compress(config, baseline, goal, run, console)
            if isinstance(outcome.made, MadeData):
                stages.append({"name": "images", "seconds": outcome.made.seconds})
            stages += outcome.compressed.curve
            return _finish(config, baseline, outcome, run, console, stages)


def _say_plan(config: RunConfig, baseline: Baseline, goal: Goal, console: RunConsole) -> None:
    for group in baseline.groups.groups:
        state = f"frozen: {group.reason}" if group.frozen else "prunable"
        console.say(f"{group.name}: {group.size} channels in {len(group.layers)} layers, {state}")
    console.stage("plan")
    for line in forecast(config, baseline, goal).lines():
        console.say(line)
    console.say(f"would write {config.out}; nothing was written")


def _compress(
    config: RunConfig, baseline: Baseline, goal: Goal, run: RunDirectory, console: RunConsole
) -> _Outcome:
    recovery = prepare(config, baseline, goal, run, console)
    console.stage("compress")
    probe = baseline.probes.mixed(_PROOF_IMAGES)
    compressor = Compressor(
        baseline.loaded.module, baseline.groups, goal, recovery.trainer, probe, run, console
    )
    compressed = compressor.compress(config.recovery.epochs)
    plan = compressor.plan(compressed.alive)
    return _Outcome(
        compressed=compressed,
        plan=plan,
        made=recovery.made,
        history=compressor.history(compressed),
        sensitivity=_sensitivity(config, baseline, compressed, recovery.trainer),
    )


def _sensitivity(
    config: RunConfig, baseline: Baseline, compressed: Compressed, trainer: Trainer | None
) -> dict[str, Any] | None:
    if trainer is None or trainer.checkup is None:
        return None
    groups, alive, checkup = baseline.groups, compressed.alive, trainer.checkup
    if not is_affordable(groups, alive, checkup, config.recovery.epochs * trainer.num_train):
        return None
    return sensitivity(baseline.loaded.module, groups, alive, checkup, trainer.check)


def _finish(
    config: RunConfig,
    baseline: Baseline,
    outcome: _Outcome,
    run: RunDirectory,
    console: RunConsole,
    stages: list[dict[str, Any]],
) -> Report:
    console.stage("export")
    began = monotonic()
    compressed = outcome.compressed
    plan = without_norms(outcome.plan, compressed.model)
    compressed.model = fold_norms(compressed.model)
    _write_artefacts(config, baseline, compressed.model.eval(), plan, run)
    precision = convert(config, baseline, run, console) | add_ort(config, baseline, run)
    stages.append({"name": "export", "seconds": round(monotonic() - began, 2)})

    console.stage("verify")
    began = monotonic()
    session = exporters.open_session(run.path / "model.onnx", config.deploy.provider)
    measured = _measure(config, baseline, outcome, session, console)
    stages.append({"name": "verify", "seconds": round(monotonic() - began, 2)})
    report = build_report(
        Measurements(
            **measured,
            precision=precision,
            groups=[_group_row(g) for g in plan.groups],
            layers=layer_widths(baseline.loaded.module, compressed.model),
            history=outcome.history,
            sensitivity=outcome.sensitivity,
            stages=stages,
        )
    )
    run.write("report.json", lambda to: to.write_text(report.to_json(), encoding="utf-8"))
    run.write("report.html", lambda to: to.write_text(render_html(report), encoding="utf-8"))
    return report


def _write_artefacts(
    config: RunConfig,
    baseline: Baseline,
    model: torch.nn.Module,
    plan: gbn.PrunePlan,
    run: RunDirectory,
) -> None:
    loaded = baseline.loaded
    preprocessing = {} if baseline.data is None else dict(baseline.data.preprocessing)
    metadata = {
        "gbn_compress": json.dumps(
            {
                "flops_kept": config.target.flops.fraction(baseline.cost.num_macs)
                if config.target.flops
                else None,
                "source_sha256": loaded.sha256,
                "preprocessing": preprocessing,
            },
            default=str,
        )
    }
    example = (torch.zeros(2, *loaded.input_size),)
    run.write(
        "model.onnx",
        lambda to: exporters.export_onnx(model, export_request(config, loaded, to, metadata)),
    )
    free = () if loaded.interface is None else tuple(loaded.interface.open_sizes)
    run.write("model.pt2", lambda to: exporters.export_program(model, example, to, free))
    run.write("plan.json", plan.save)
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    run.write("weights.safetensors", lambda to: to.write_bytes(safetensors.torch.save(state)))


def _group_row(group: GroupWidth) -> dict[str, Any]:
    return {
        "name": group.name,
        "size_before": group.size_before,
        "size_after": group.size_after,
        "layers": list(group.layers),
        "frozen": group.frozen,
        "reason": group.reason,
    }


def _measure(
    config: RunConfig,
    baseline: Baseline,
    outcome: _Outcome,
    after: Session,
    console: RunConsole,
) -> dict[str, Any]:
    loaded, data, cost = baseline.loaded, baseline.data, baseline.cost
    compressed, made = outcome.compressed, outcome.made
    # Counted where weights are floats; what precision changes is the size.
    is_fp32 = config.deploy.precision == "fp32"
    counted = config.out / ("model.onnx" if is_fp32 else FP32_FILE)
    result = exporters.count_macs(counted, counted_shapes(loaded))
    skipped = {}
    accuracy = None
    if data is None or baseline.accuracy is None:
        skipped["accuracy"] = "no data was given"
    else:
        found = verify.accuracy(after, data, baseline.judge, console, "accuracy")
        accuracy = verify.accuracies(baseline.accuracy, found, baseline.judge.task)
    surgery = None
    if compressed.surgery:
        worst = max(compressed.surgery, key=lambda s: s["max_abs_diff"] / s["tolerance"])
        surgery = Difference(max_abs_diff=worst["max_abs_diff"], tolerance=worst["tolerance"])
    else:
        skipped["surgery"] = "nothing had to be removed"
    fixed = loaded.interface.fixed_batch if loaded.interface is not None else None
    batch = torch.zeros(fixed or config.deploy.latency_batch, *loaded.input_size)
    target = config.target
    timed = verify.latency(
        baseline.onnx, config.out / "model.onnx", after.provider, batch, config.recovery.seed
    )
    for warning in timed.warnings:
        console.warn(f"latency: {warning}")
    return {
        "flops": BeforeAfter(before=cost.num_macs, after=result.num_macs),
        "params": BeforeAfter(before=cost.num_params, after=result.num_params),
        "size_bytes": BeforeAfter(before=cost.size_bytes, after=_size_bytes(config)),
        "accuracy": accuracy,
        "fidelity": verify.fidelity(baseline.session, after, made),
        "data_free": made.described if made is not None else None,
        "surgery": surgery,
        "parity": _parity(config, baseline, compressed, after),
        "latency": timed,
        "provider": Provider(requested=config.deploy.provider, ran=(after.provider,)),
        "skipped": skipped,
        "target_flops": target.flops.absolute(cost.num_macs) if target.flops else None,
        "target_params": target.params.absolute(cost.num_params) if target.params else None,
        "max_accuracy_drop": target.max_accuracy_drop,
        "uncounted_ops": result.uncounted,
        "environment": environment(
            seed=config.recovery.seed,
            device=compressed.device,
            provider=config.deploy.provider,
            inputs={"model": config.model.path}
            | (
                {"data": Path(config.data.source)}
                if config.data.source and Path(config.data.source).exists()
                else {}
            ),
        )
        | {
            "nodes_on_other_providers": after.nodes_elsewhere,
            "model": config.model.path.name,
            "input_size": list(loaded.input_size),
            "data": _data_row(data),
        },
    }


def _data_row(data: Data | None) -> dict[str, Any]:
    if data is None:
        return {"source": "none was given"}
    counts = {"training_images": data.num_train, "validation_images": data.num_val}
    return counts | {key: plain(value) for key, value in data.preprocessing.items()}


def _size_bytes(config: RunConfig) -> int:
    return exporters.onnx_size_bytes(config.out / "model.onnx")


def _parity(
    config: RunConfig, baseline: Baseline, compressed: Compressed, after: Session
) -> Difference:
    """Of the final file; of an int8 one, which accuracy judges, the fp32 file it came from."""
    kind = config.deploy.precision
    if kind == "int8":
        after = exporters.open_session(config.out / FP32_FILE, config.deploy.provider)
    tolerance = exporters.FP16_TOLERANCE if kind == "fp16" else 1e-4
    return verify.parity(compressed.model, after, baseline.probes, tolerance)
