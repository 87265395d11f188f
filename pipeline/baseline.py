"""The model as given: loaded, exported, measured and traced.

Enters: a checked `RunConfig`. Leaves: a `Baseline`. Writes into a scratch folder only. Refused:
unreadable input, a model at chance level, a provider that does not run the model.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import exporters
import gbn
from exporters.session import Session
from pipeline import verify
from pipeline.config import RunConfig
from pipeline.console import RunConsole
from pipeline.data import Data, DataRequest, load_data
from pipeline.errors import UsageError
from pipeline.exporting import counted_shapes, export_baseline
from pipeline.folded_norms import can_insert, insert_norms
from pipeline.given_onnx import beside_given
from pipeline.importers import LoadedModel, load_model
from pipeline.importers.source import model_source
from pipeline.recipes import RECIPES
from pipeline.tasks import Judge, load_task

_NORM_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The model as given: its ONNX file's cost and accuracy, and its channels."""

    loaded: LoadedModel
    data: Data | None
    groups: gbn.ChannelGroups
    cost: exporters.OnnxCost
    judge: Judge
    accuracy: exporters.Accuracy | None
    onnx: Path
    in_half: bool
    session: Session
    probes: verify.Probes
    device: torch.device


def measure_baseline(config: RunConfig, console: RunConsole, scratch: Path) -> Baseline:
    """Load, export, measure and trace the model; files go into `scratch`."""
    console.stage("import")
    device = resolve_device(config.device)
    task = load_task(config.data.task)
    loaded = load_model(model_source(config.model))
    console.say(loaded.description)
    for warning in loaded.warnings:
        console.warn(warning)
    _require_finite(loaded)
    _all_learn(loaded, console)
    console.say(f"input size: {','.join(str(n) for n in loaded.input_size)}")
    console.stage("baseline")
    path = scratch / "baseline.onnx"
    loaded = export_baseline(config, loaded, path, console)
    cost = exporters.count_macs(path, counted_shapes(loaded))
    in_half = loaded.interface is not None and loaded.interface.in_half
    if in_half:
        exporters.to_fp16(path, path)
        cost = replace(cost, size_bytes=exporters.onnx_size_bytes(path))
    session = exporters.open_session(path, config.deploy.provider)
    _require_samples(session, loaded, config.model.path)
    if loaded.interface is not None:
        loaded, cost = beside_given(config.model.path, loaded, path, cost, console)
    groups = _traced(config, loaded)
    _say_frozen(groups, console)
    # What costs more comes after what may still be refused at once.
    data = _load_data(config, loaded, console)
    judge, found = Judge(task=task), None
    if data is not None:
        judge = Judge.make(task, loaded.module, data.train_loader(0))
        found = _measure_accuracy(session, data, judge, loaded, console)
        if _wants_norms(config, loaded):
            loaded = _with_norms(loaded, data, console)
            groups = _traced(config, loaded)
    return Baseline(
        loaded=loaded,
        data=data,
        judge=judge,
        groups=groups,
        cost=cost,
        accuracy=found,
        onnx=path,
        in_half=in_half,
        session=session,
        probes=verify.Probes.make(loaded, data, config.recovery.seed),
        device=device,
    )


def _traced(config: RunConfig, loaded: LoadedModel) -> gbn.ChannelGroups:
    example = torch.randn(
        1, *loaded.input_size, generator=torch.Generator().manual_seed(config.recovery.seed)
    )
    constraints = config.constraints
    return gbn.trace(
        loaded.module, example, freeze=constraints.freeze, prune_norms=constraints.prune_norms
    )


def _wants_norms(config: RunConfig, loaded: LoadedModel) -> bool:
    wanted = config.recovery.insert_bn
    return can_insert(loaded.module) if wanted is None else wanted


def _with_norms(loaded: LoadedModel, data: Data, console: RunConsole) -> LoadedModel:
    module, count = insert_norms(loaded.module, data.calibration_batches(_NORM_BATCHES))
    note = (
        f"inserted {count} batch norms after convolutions with a bias, calibrated to change "
        "nothing; they are folded away on export (--no-insert-bn leaves them out)"
    )
    console.say(note)
    return replace(loaded, module=module, warnings=(*loaded.warnings, note))


def _measure_accuracy(
    session: Session, data: Data, judge: Judge, loaded: LoadedModel, console: RunConsole
) -> exporters.Accuracy:
    found = verify.accuracy(session, data, judge, console, "baseline accuracy")
    on = f"on {found.samples} validation images"
    if judge.task.is_classification:
        console.say(f"baseline: {found.value:.2%} top-1 {on}")
        verify.require_better_than_chance(found, data, loaded.num_outputs or 2)
    else:
        console.say(f"baseline: {found.metric} {found.value:.4g} {on}")
    return found


def resolve_device(name: str) -> torch.device:
    """Where to train. Raises UsageError for a device that this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[device.type]:
        found = f"{torch.cuda.device_count()} CUDA devices"
        raise UsageError(f"--device {name}: not on this machine ({found}): use --device auto")
    return device


def _require_finite(loaded: LoadedModel) -> None:
    for name, tensor in loaded.module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UsageError(f"the weights hold NaN or infinity in {name!r}: the training diverged")


def _require_samples(session: Session, loaded: LoadedModel, path: Path) -> None:
    """Each output must have one part for each image, or nothing can be compared later."""
    interface = loaded.interface
    batch = (interface.fixed_batch if interface is not None else None) or 2
    try:
        session.run_batch(np.zeros((batch, *loaded.input_size), np.float32))
    except exporters.ExportError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise UsageError(f"{path}: cannot be compared image by image: {reason}") from error


def _say_frozen(groups: gbn.ChannelGroups, console: RunConsole) -> None:
    for op, modules in groups.unknown_ops.items():
        named = ", ".join(module or "the model itself" for module in modules)
        console.warn(f"no rule for {op}: channels that enter it stay (in {named})")
    for place in groups.hard_coded:
        console.detail(f"frozen there: {place}")


def _all_learn(loaded: LoadedModel, console: RunConsole) -> None:
    """Parameters frozen in the file would keep the cut network from recovering."""
    frozen = [
        p for p in loaded.module.parameters() if not p.requires_grad and p.is_floating_point()
    ]
    for parameter in frozen:
        parameter.requires_grad_(True)
    if frozen:
        console.warn(f"{len(frozen)} parameters were frozen in the file: they learn in recovery")


def _load_data(config: RunConfig, loaded: LoadedModel, console: RunConsole) -> Data | None:
    wanted = config.data
    if wanted.source is None:
        console.warn(
            "no --data: images are made from the network itself, and accuracy is not measured"
        )
        return None
    data = load_data(
        DataRequest(
            source=wanted.source,
            input_size=loaded.input_size,
            mean=wanted.mean or loaded.mean,
            std=wanted.std or loaded.std,
            batch_size=wanted.batch_size,
            workers=wanted.workers,
            augment=wanted.augment,
            auto_augment=RECIPES[config.recovery.recipe].augment(config.recovery.epochs),
            seed=config.recovery.seed,
            any_targets=wanted.task is not None,
        )
    )
    if (wanted.mean or wanted.std) and data.mean is None:
        raise UsageError(
            f"--mean and --std have no effect on {wanted.source}, whose images are taken as they "
            "are: leave them out, or give images as uint8"
        )
    if loaded.num_outputs is None and wanted.task is None:
        raise UsageError(
            "the model's output is not (N, classes): give its loss and metric by --task, or leave "
            "--data out"
        )
    num_outputs = loaded.num_outputs if wanted.task is None else None
    if num_outputs is not None and (data.num_classes or 0) > num_outputs:
        raise UsageError(
            f"the data has {data.num_classes} classes, the model only {num_outputs} outputs"
        )
    console.say(
        f"data: {data.num_train} training and {data.num_val} validation images; "
        + ", ".join(f"{key} {plain(value)}" for key, value in data.preprocessing.items())
    )
    return data


def plain(value: object) -> str:
    """A value of the preprocessing as text: lists as on the command line."""
    return ",".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)
