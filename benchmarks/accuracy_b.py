"""`make bench-accuracy-b` (`python -m benchmarks.accuracy_b`): beside peers that may cut streams.

Torch-Pruning crashes on the padded shortcuts of `benchmarks.accuracy`'s network where it may cut
the residual streams. So the same comparison without training is made on a twin with convolutions
in its shortcuts (option B), made from that network: its padding written as a convolution and a norm
that do the same, random filters of the same length where the padding was zero, with a small scale
behind, then three passes over the 10,000 training images, taught by the original. What goes is each
method's choice; norm statistics are renewed after a peer's cut. Top-1 is of all 10,000 test images
and MACs are counted on the exported file, for every method alike. Writes docs/accuracy-b.md; what
bench-runs/accuracy-b holds already, of the same code, is not measured again.
"""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.seed import seed_everything
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import exporters
import gbn
from benchmarks.accuracy_cells import KEEPS, PEER_METHODS, Cell, code_hash, command
from benchmarks.accuracy_data import INPUT, data, prepare, trained_network
from benchmarks.accuracy_peers import METHODS, PEERS, accumulate, make_pruner, prune
from benchmarks.cifar_models import PaddedShortcut, resnet20_b
from benchmarks.resnet20_main_job import WEIGHTS
from benchmarks.tables import ROOT, RUNS, markdown_table, measured_with
from gbn.ticktock import Phase, schedule
from pipeline.console import RunConsole
from pipeline.data import Data
from pipeline.training import Trainer
from pipeline.training_settings import Progress, TrainingSettings

DOCUMENT = ROOT / "docs" / "accuracy-b.md"
HERE = RUNS / "accuracy-b"
_PASSES, _PEAK_LR = 3, 0.02
_SMALL = 0.1
"""Of what random filters give, this share is let through at first."""
HEADER = ("MACs, at most", "method", "top-1", "MACs kept", "parameters kept")


def with_convolutions(original: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """The original with a convolution and a norm in the place of each padding.

    Rows that copy a channel do so exactly; those of zero channels get random filters as long.
    """
    twin = resnet20_b()
    twin.load_state_dict(original.state_dict(), strict=False)
    for path, padded in original.named_modules():
        if isinstance(padded, PaddedShortcut):
            conv, norm = twin.get_submodule(path)
            before = padded.pad[4]
            nn.init.normal_(conv.weight)
            conv.weight.data /= conv.weight.data.norm(dim=1, keepdim=True)
            copied = torch.zeros(len(conv.weight), dtype=torch.bool)
            copied[before : before + conv.in_channels] = True
            conv.weight.data[before : before + conv.in_channels] = torch.eye(conv.in_channels)[
                :, :, None, None
            ]
            _pass_on(twin, conv, norm, batches)
            norm.weight.data[~copied] *= _SMALL
            norm.bias.data[~copied] *= _SMALL
    return twin.eval()


def _pass_on(model: nn.Module, conv: nn.Module, norm: nn.BatchNorm2d, batches: Any) -> None:
    """Statistics of what the convolution gives, and a scale and shift that undo them."""
    seen: list[Tensor] = []
    handle = conv.register_forward_hook(lambda _layer, _in, out: seen.append(out.detach()))
    with torch.no_grad():
        for images in batches:
            model.eval()(images)
        handle.remove()
        variance, mean = torch.var_mean(torch.cat(seen), dim=(0, 2, 3))
        norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.running_var.copy_(variance)  # type: ignore[union-attr]
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)


def trainer(images: Data, teacher: nn.Module) -> Trainer:
    """The project's own, for three passes or for renewing statistics."""
    fabric = Fabric(accelerator="cpu", devices=1)
    return Trainer(
        fabric, images, teacher, TrainingSettings(peak_lr=_PEAK_LR), RunConsole(verbosity=-1)
    )


def twin_file() -> Path:
    """Where the twin of this code lies."""
    code = [f"pipeline/{name}.py" for name in ("training", "learning", "objectives", "augment")]
    here = ["benchmarks/accuracy_b.py", "benchmarks/accuracy_data.py"]
    return HERE / f"resnet20-b-{code_hash([*code, *here], [])}.safetensors"


def twin_network() -> nn.Module:
    """In eval mode; trained where it is not there yet."""
    twin = resnet20_b()
    if not twin_file().is_file():
        seed_everything(0, verbose=False)
        images, original = data(seed=0, epochs=_PASSES), trained_network()
        made = with_convolutions(original, [x for x, _ in images.calibration_batches(8)])
        groups = gbn.trace(made, torch.zeros(1, *INPUT))
        teaching = trainer(images, original)
        phase = Phase(kind="finetune", batches=_PASSES * teaching.stream.per_epoch, lr_from=1.0)
        teaching.train(made, groups, phase, 0, "twin", Progress(save=lambda *_: None))
        HERE.mkdir(parents=True, exist_ok=True)
        save_file(made.state_dict(), twin_file())
    twin.load_state_dict(load_file(twin_file()))
    return twin.eval()


def peer(method: str, keep: float) -> dict[str, Any]:
    """Cut as the peer likes, streams too; whatever it raises is the outcome."""
    seed_everything(0, verbose=False)
    images, model = data(seed=0, epochs=0), twin_network()
    renewing = trainer(images, copy.deepcopy(model))
    try:
        pruner = make_pruner(METHODS[method], model, streams=True)
        if METHODS[method].gradients:
            count = sum(phase.batches for phase in schedule(budget=0, target=keep))
            accumulate(model, renewing.stream.take(0, count))
        model = prune(pruner, model, keep)
    except (RuntimeError, IndexError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    renewing.renew_statistics(model)
    path = HERE / f"{method}-{keep:g}.onnx"
    example = (torch.zeros(2, *INPUT),)
    for network, file in ((twin_network(), HERE / "twin.onnx"), (model.eval(), path)):
        exporters.export_onnx(network, exporters.ExportRequest(example_inputs=example, path=file))
    return figures(HERE / "twin.onnx", path, images)


def ours(keep: float) -> dict[str, Any]:
    """The default recipe without training, by the command line."""
    out = HERE / f"default-{keep:g}"
    told = command(Cell(method="default", keep=keep, epochs=0, seed=0), out)
    swapped = [
        str(twin_file()) if word == str(WEIGHTS) else word.replace(":resnet20", ":resnet20_b")
        for word in told
    ]
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(swapped, cwd=ROOT, check=True)
    return figures(out / "stages" / "baseline.onnx", out / "model.onnx", data(seed=0, epochs=0))


def figures(before: Path, after: Path, images: Data) -> dict[str, Any]:
    """Top-1 and shares of MACs and parameters, of exported files."""
    costs = [exporters.count_macs(path) for path in (before, after)]
    tops = [
        exporters.top1(exporters.open_session(path, "cpu"), images.val_loader()).value
        for path in (before, after)
    ]
    return {
        "baseline": tops[0],
        "accuracy": tops[1],
        "flops_kept": costs[1].num_macs / costs[0].num_macs,
        "params_kept": costs[1].num_params / costs[0].num_params,
    }


def main() -> int:
    """Measures what is missing; 0 also where the material is absent."""
    if prepare() is None:
        print("skipped: the JPEG copy of CIFAR-10 or the trained network is absent")
        return 0
    sys.path.insert(0, str(PEERS))
    torch.set_num_threads(1)
    twin_network()
    rows, baseline = [], 0.0
    for keep in KEEPS:
        for method in ("default", *PEER_METHODS):
            code = Cell(method=method, keep=keep, epochs=0, seed=0).code()
            store = HERE / f"{method}-{keep:g}-{code}-{twin_file().stem}.json"
            if store.is_file():
                found = json.loads(store.read_text())
            else:
                found = ours(keep) if method == "default" else peer(method, keep)
                if "error" not in found:
                    store.write_text(json.dumps(found))
            baseline = found.get("baseline", baseline)
            shown = (
                [found["error"], "", ""]
                if "error" in found
                else [f"{found[key]:.2%}" for key in ("accuracy", "flops_kept", "params_kept")]
            )
            rows.append((f"{keep:.0%}", method, *shown))
            print(rows[-1], flush=True)
    DOCUMENT.write_text(
        "# Accuracy without training, streams cut by all\n\n"
        f"`make bench-accuracy-b`, {measured_with()}. Before: {baseline:.2%} top-1.\n\n"
        "The network of [Accuracy](accuracy.md) with convolutions in its shortcuts, where "
        "Torch-Pruning 1.6.1 can cut the residual streams as well: its padding written as a 1 x 1 "
        "convolution and a norm that copy the same channels, random filters of the same length "
        f"where it was zero, with a tenth of their scale behind, then {_PASSES} passes over the "
        "10,000 training images, taught by the original. Cut to a share of the MACs and not "
        "trained, one seed. Norm statistics are renewed for the peers; `default` refits layers "
        "instead, so the table compares whole methods and not who cuts streams better. Images, "
        "scores and steps as there.\n\n" + markdown_table(HEADER, rows)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
