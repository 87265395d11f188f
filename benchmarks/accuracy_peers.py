"""One cell of a peer: Torch-Pruning 1.6.1 cuts the network, this project's trainer recovers it.

`python -m benchmarks.accuracy_peers METHOD KEEP EPOCHS SEED OUT.json` is run by
`benchmarks.accuracy`. Optimiser, teacher, batches, renewal of norm statistics, export and accuracy
are those of this project for all methods; what goes is the peer's choice, as its documentation and
its CIFAR reproduction do it: global pruning in many small steps until the target is met. Scores by
gradients take as many batches as the default recipe scores on. The pruners that its documentation
trains sparsely (BNScale, GroupNorm) do so for the first half of a budget.
"""

import copy
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.seed import seed_everything
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode

import exporters
import gbn
from benchmarks.accuracy_data import INPUT, data, trained_network
from benchmarks.tables import RUNS
from gbn.ticktock import Phase, schedule
from pipeline.console import RunConsole
from pipeline.recipes import RECIPES
from pipeline.training import Trainer
from pipeline.training_settings import Progress, TrainingSettings

PEERS = RUNS / "peers"
STEPS = 200
MOST_OF_A_LAYER = 0.9
SPARSE_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Class and importance by name in torch_pruning; gradients: scores need them."""

    pruner: str
    importance: str
    gradients: bool = False
    sparse: bool = False


METHODS = {
    "tp-group-magnitude": Peer(pruner="BasePruner", importance="GroupMagnitudeImportance"),
    "tp-group-taylor": Peer(
        pruner="BasePruner", importance="GroupTaylorImportance", gradients=True
    ),
    "tp-bn-scale": Peer(pruner="BNScalePruner", importance="BNScaleImportance", sparse=True),
    "tp-group-norm": Peer(
        pruner="GroupNormPruner", importance="GroupMagnitudeImportance", sparse=True
    ),
}


def main(method: str, keep: float, epochs: int, seed: int) -> dict[str, Any]:
    """Prune, recover, export, measure; whatever the peer raises ends the process."""
    sys.path.insert(0, str(PEERS))
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)
    peer, original = METHODS[method], trained_network()
    images = data(seed, epochs)
    recipe = RECIPES["default"]
    settings = TrainingSettings(peak_lr=recipe.peak_lr, seed=seed)
    fabric = Fabric(accelerator="cpu", devices=1)
    trainer = Trainer(fabric, images, original, settings, RunConsole(verbosity=-1))
    groups = gbn.trace(original, torch.zeros(1, *INPUT))
    budget = epochs * trainer.stream.per_epoch
    phases = schedule(budget=budget, target=keep)
    score = sum(p.batches for p in phases if p.kind == "tick") if peer.gradients else 0
    sparse = round(SPARSE_SHARE * budget) if peer.sparse else 0

    def train(model: nn.Module, batches: int, start: int) -> None:
        phase = Phase(kind="finetune", batches=batches, lr_from=1.0)
        progress = Progress(save=lambda *_: None)
        trainer.train(model, groups, phase, start, "recovery", progress)

    def cut(streams: bool) -> nn.Module:
        model = copy.deepcopy(original)
        pruner = make_pruner(peer, model, streams=streams)
        if sparse:
            with regularised(pruner, model):
                train(model, sparse, 0)
        if score:
            accumulate(model, trainer.stream.take(0, score))
        return prune(pruner, model, keep)

    model, note = cut_with_fallback(cut)
    trainer.renew_statistics(model)
    left = budget - sparse - (score if budget else 0)
    began = monotonic()
    if left:
        train(model, left, budget - left)
    told = {
        "note": note,
        "images": (sparse + score + left) * 128,
        "training_seconds": round(monotonic() - began, 1),  # of what follows the cut
    }
    return measure(model.eval(), images) | told


def cut_with_fallback(cut: Any) -> tuple[nn.Module, str]:
    """The network cut as the peer likes; without its residual streams where that crashes."""
    try:
        return cut(True), ""
    except (RuntimeError, IndexError, ValueError) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    note = f"crashes where it may cut the residual streams ({why}): they were kept from it"
    return cut(False), note


def make_pruner(peer: Peer, model: nn.Module, *, streams: bool) -> Any:
    """The peer's pruner; without `streams`, layers that write the residual streams are spared."""
    import torch_pruning

    blocks = [block for layer in (model.layer1, model.layer2, model.layer3) for block in layer]
    spared = [] if streams else [model.conv1, *(block.conv2 for block in blocks)]
    return getattr(torch_pruning.pruner, peer.pruner)(
        model,
        torch.zeros(1, *INPUT),
        importance=getattr(torch_pruning.importance, peer.importance)(),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=MOST_OF_A_LAYER,
        iterative_steps=STEPS,
        ignored_layers=[model.linear, *spared],
    )


@contextmanager
def regularised(pruner: Any, model: nn.Module) -> Iterator[None]:
    """The peer's own regulariser adds to the gradients before each step."""
    pruner.update_regularizer()
    handle = register_optimizer_step_pre_hook(lambda *_: pruner.regularize(model))
    try:
        yield
    finally:
        handle.remove()


def accumulate(model: nn.Module, batches: Any) -> None:
    """Gradients of the loss, summed over the batches."""
    model.eval()
    model.zero_grad()
    for images, labels in batches:
        F.cross_entropy(model(images), labels).backward()


def prune(pruner: Any, model: nn.Module, keep: float) -> nn.Module:
    """Small steps until at most `keep` of the MACs are left."""
    whole = num_macs(model)
    for _ in range(STEPS):
        pruner.step()
        if num_macs(model) <= keep * whole:
            return model
    raise RuntimeError(f"{STEPS} steps left {num_macs(model) / whole:.1%} of the MACs")


def num_macs(model: nn.Module) -> int:
    """Torch's own count, for the loop; the table's is that of the exported file."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *INPUT))
    return counter.get_total_flops() // 2


def measure(model: nn.Module, images: Any) -> dict[str, Any]:
    """Top-1 and shares of MACs and parameters, of exported files."""
    with tempfile.TemporaryDirectory() as folder:
        costs = []
        for name, network in (("before", trained_network()), ("after", model)):
            path = Path(folder) / f"{name}.onnx"
            example = (torch.zeros(2, *INPUT),)
            exporters.export_onnx(
                network, exporters.ExportRequest(example_inputs=example, path=path)
            )
            costs.append(exporters.count_macs(path))
        before, after = costs
        found = exporters.top1(exporters.open_session(path, "cpu"), images.val_loader())
    return {
        "accuracy": found.value,
        "samples": found.samples,
        "flops_kept": after.num_macs / before.num_macs,
        "params_kept": after.num_params / before.num_params,
    }


if __name__ == "__main__":
    name, share, passes, number, out = sys.argv[1:]
    Path(out).write_text(json.dumps(main(name, float(share), int(passes), int(number))))
