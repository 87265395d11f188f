"""Torch-Pruning on the same network, recovered on the images that a data-free run made.

No command: `benchmarks.data_free` calls it. What enters: the share to keep, a finished run's
directory and the trained weights. What leaves: the share kept, the top-1 and the CPU time.
"""

import copy
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import nn

import gbn
from benchmarks.cifar_models import CifarResNet, resnet20
from benchmarks.main_job_checks import Array, Labels
from benchmarks.tables import RUNS
from gbn.ticktock import Phase, schedule
from pipeline.config_file import DATA_FREE_EPOCHS
from pipeline.console import RunConsole
from pipeline.data import Data
from pipeline.mixed_data import made_images
from pipeline.objectives import OriginalClasses
from pipeline.recovery import MADE_PEAK_LR
from pipeline.training import Trainer
from pipeline.training_settings import Progress, TrainingSettings

PEERS = RUNS / "peers"
_BISECTIONS = 12


def peer_top1(
    share: float, run: Path, weights: Path, test: tuple[Array, Labels], seed: int
) -> dict[str, float]:
    """{kept, top1, cpu_minutes} of the peer's network after recovery."""
    torch.manual_seed(seed)
    before_s = _cpu_s()
    original = resnet20()
    original.load_state_dict(load_file(weights))
    original.eval()
    model, kept = pruned(original, share)
    recover(model, original, made_data(run, seed), share, seed)
    return {
        "kept": kept,
        "top1": _top1(model, *test),
        "cpu_minutes": (_cpu_s() - before_s) / 60,
    }


def pruned(original: CifarResNet, share: float) -> tuple[CifarResNet, float]:
    """The peer's network with at most `share` of the MACs, as near as bisection finds it."""
    low, high = 0.0, 1.0
    found = None
    for _ in range(_BISECTIONS):
        ratio = (low + high) / 2
        model = copy.deepcopy(original)
        kept = _prune(model, ratio)
        if kept <= share:
            high, found = ratio, (model, kept)
        else:
            low = ratio
    if found is None:
        raise RuntimeError(f"Torch-Pruning does not reach {share:.0%} of the MACs")
    return found


def _prune(model: CifarResNet, ratio: float) -> float:
    """Prune in place by global magnitude; the share of the MACs that is left."""
    peers = str(PEERS)
    if peers not in sys.path:
        sys.path.append(peers)
    import torch_pruning

    example = torch.zeros(1, 3, 32, 32)
    layers = (model.layer1, model.layer2, model.layer3)
    stream = [model.conv1, *(block.conv2 for layer in layers for block in layer)]
    before, _ = torch_pruning.utils.count_ops_and_params(model, example)
    torch_pruning.pruner.MagnitudePruner(
        model,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=[model.linear, *stream],
    ).step()
    after, _ = torch_pruning.utils.count_ops_and_params(model, example)
    return float(after / before)


def made_data(run: Path, seed: int) -> Data:
    """The images that the run learnt from, without those it held out."""
    payload: dict[str, Any] = torch.load(run / "stages" / "01-images.pt")["payload"]
    size = payload["plan"]["batch_size"]
    held_out = max(payload["plan"]["batches"] // 5, 1)
    images = torch.cat(payload["batches"][:-held_out]).float()
    return made_images(images, images, size, seed=seed)


def recover(model: nn.Module, original: nn.Module, data: Data, share: float, seed: int) -> None:
    """As many training steps as a run of the same target takes in tocks and fine-tuning."""
    settings = TrainingSettings(peak_lr=MADE_PEAK_LR, objective=OriginalClasses(), seed=seed)
    console = RunConsole()
    fabric = Fabric(accelerator="cpu", devices=1)
    trainer = Trainer(fabric, data, original, settings, console)
    trainer.renew_statistics(model)
    phases = schedule(budget=DATA_FREE_EPOCHS * trainer.stream.per_epoch, target=share)
    steps = sum(phase.batches for phase in phases if phase.kind != "tick")
    phase = Phase(kind="finetune", batches=steps, lr_from=1.0, lr_to=0.0)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    groups = gbn.trace(model, torch.zeros(1, 3, 32, 32))
    trainer.train(model, groups, phase, 0, "peer", Progress(save=lambda _step, _state: None))


def _top1(model: nn.Module, images: Array, labels: Labels) -> float:
    model.eval()
    right = 0
    with torch.no_grad():
        for i in range(0, len(images), 500):
            scores = model(torch.from_numpy(images[i : i + 500]))
            right += int((scores.argmax(1).numpy() == labels[i : i + 500]).sum())
    return right / len(images)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
