"""The main job, stage by stage, in the order of the README.

import -> baseline -> trace -> compress (tick, tock, fine-tune) -> export -> verify -> report

Enters: a checked `RunConfig`. Leaves: a filled run directory and its `Report`. Until the baseline
is measured and the target is known to be reachable, nothing is written.
"""

import json
import shutil
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

import safetensors.torch
import torch
from lightning_fabric.utilities.seed import seed_everything
from rich.text import Text

import exporters
import gbn
from gbn.prune_plan import GroupWidth
from pipeline.baseline import Baseline, measure_baseline
from pipeline.compress import Compressed, Compressor
from pipeline.config import RunConfig
from pipeline.console import SILENT, RunConsole
from pipeline.data_free import MadeData
from pipeline.errors import UsageError, one_line
from pipeline.exporting import export_request
from pipeline.folded_norms import fold_norms, without_norms
from pipeline.forecast import Forecast, forecast
from pipeline.goal import Goal, set_goal
from pipeline.loggers import require_logger
from pipeline.measuring import Measuring, Outcome
from pipeline.normalisation import METADATA_KEY
from pipeline.precision import add_ort, convert
from pipeline.ranks import Ranks
from pipeline.recovery import prepare, trainer_on
from pipeline.report import Measurements, Report, build_report, render_html
from pipeline.rundir import RunDirectory, check_out
from pipeline.sensitivity import is_affordable, sensitivity
from pipeline.training import Trainer
from pipeline.widths import layer_widths

_PROOF_IMAGES = 2


def run_compress(config: RunConfig, console: RunConsole) -> Report | Forecast | None:
    """Do the whole job; a dry run only leaves a forecast. None where another process leads.

    Raises CompressError, GbnError and ExportError with one line for the user.
    """
    began = monotonic()
    require_logger(config.logger)
    ranks = _joined(config)
    if not ranks.leads:
        _follow(config, ranks)
        return None
    run = check_out(config.out, config.fingerprint(), config.resume, say=console.warn)
    seed_everything(config.recovery.seed, verbose=False)
    with tempfile.TemporaryDirectory() as scratch:
        baseline = measure_baseline(config, console, Path(scratch))
        goal = set_goal(config, baseline, console)
        if config.dry_run:
            found = _say_plan(config, baseline, goal, console)
            ranks.leave()
            return found
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
            outcome = _compress(config, baseline, goal, run, console, ranks)
            if isinstance(outcome.made, MadeData):
                stages.append({"name": "images", "seconds": outcome.made.seconds})
            stages += outcome.compressed.curve
            return _finish(config, baseline, outcome, run, console, stages)


def _joined(config: RunConfig) -> Ranks:
    """The processes of this run. Raises UsageError for what they cannot do together."""
    ranks = Ranks.join()
    if ranks.size > 1 and config.data.source is None:
        raise UsageError("several processes learn from data: give --data, or run without torchrun")
    if ranks.size > config.data.batch_size:
        raise UsageError(
            f"--batch-size {config.data.batch_size} is shared by {ranks.size} processes: give at "
            f"least {ranks.size}"
        )
    return ranks


def _follow(config: RunConfig, ranks: Ranks) -> None:
    """The part of a process that does not lead: load the same, compute along, write nothing."""
    console = RunConsole(verbosity=SILENT)
    seed_everything(config.recovery.seed, verbose=False)
    with tempfile.TemporaryDirectory() as scratch:
        baseline = measure_baseline(config, console, Path(scratch))
    assert baseline.data is not None, "checked when joining"
    trainer = trainer_on(config, baseline, baseline.data, console, ranks)
    trainer.follow(baseline.loaded.module, baseline.groups)
    ranks.leave()


def _say_plan(config: RunConfig, baseline: Baseline, goal: Goal, console: RunConsole) -> Forecast:
    for group in baseline.groups.groups:
        state = f"frozen: {group.reason}" if group.frozen else "prunable"
        console.say(f"{group.name}: {group.size} channels in {len(group.layers)} layers, {state}")
    console.stage("plan")
    found = forecast(config, baseline, goal)
    for line in found.lines():
        console.result(Text(line))
    console.say(f"would write {config.out}; nothing was written")
    return found


def _compress(
    config: RunConfig,
    baseline: Baseline,
    goal: Goal,
    run: RunDirectory,
    console: RunConsole,
    ranks: Ranks,
) -> Outcome:
    recovery = prepare(config, baseline, goal, run, console, ranks)
    console.stage("compress")
    probe = baseline.probes.mixed(_PROOF_IMAGES)
    compressor = Compressor(
        baseline.loaded.module, baseline.groups, goal, recovery.trainer, probe, run, console
    )
    compressed = compressor.compress(config.recovery.epochs)
    ranks.leave()
    plan = compressor.plan(compressed.alive)
    return Outcome(
        compressed=compressed,
        plan=plan,
        made=recovery.made,
        goal=goal,
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
    outcome: Outcome,
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
    measured = Measuring(config, baseline, outcome, session, console).figures()
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
    _write_page(report, run, console)
    return report


def _write_page(report: Report, run: RunDirectory, console: RunConsole) -> None:
    """A page that cannot be drawn costs no run its result: all of it is in `report.json`."""
    try:
        page = render_html(report).encode()
    except Exception as error:  # of a drawing library, about any figure or name
        console.warn(
            f"report.html could not be drawn ({one_line(error)}); the run is whole without it, and "
            f"compress report {run.path} tries again"
        )
        (run.path / "report.html").unlink(missing_ok=True)
        return
    run.write("report.html", lambda to: to.write_bytes(page))


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
        METADATA_KEY: json.dumps(
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
