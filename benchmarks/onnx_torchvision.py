"""Networks of torchvision as both of torch's exporters write them, in and out again.

No command: `benchmarks.onnx_in` uses it. What enters: a network's name, an exporter, an opset.
What leaves: a row of figures. Every network has random weights, its zero parameters and its norms'
statistics randomised, so that no error hides behind a zero. Exported files are kept in bench-runs/
for the versions of torch that wrote them.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import onnx
import torch
import torchvision
from torch import nn

import exporters
from benchmarks.tables import RUNS
from exporters.capture import quiet
from exporters.errors import ExportError
from pipeline.errors import UsageError, one_line
from pipeline.importers.onnx_in import import_onnx
from pipeline.importers.onnx_in.errors import FOREIGN

MODELS = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_v2_t", "vit_b_32",
)  # fmt: skip
OPSETS = (11, 13, 17, 18, 20)
OLDEST_DYNAMO_OPSET = 18
TOLERANCE = 1e-5
LARGEST_FILE = 1.05
_ROUNDS = 7


@dataclass(frozen=True, kw_only=True)
class Way:
    """One network, written in one way."""

    name: str
    dynamo: bool
    opset: int

    @property
    def exporter(self) -> str:
        """As the table calls it."""
        return "dynamo" if self.dynamo else "TorchScript"

    @property
    def key(self) -> str:
        """As files call it."""
        return f"{self.name}-{self.exporter}-{self.opset}"


def ways() -> list[Way]:
    """All that there are: dynamo writes no opset below 18."""
    return [
        Way(name=name, dynamo=dynamo, opset=opset)
        for name in MODELS
        for dynamo in (False, True)
        for opset in OPSETS
        if not dynamo or opset >= OLDEST_DYNAMO_OPSET
    ]


def network(name: str) -> tuple[nn.Module, int]:
    """A network of torchvision without a zero in it, and its input size."""
    torch.manual_seed(0)
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **extra).eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0, 0.02)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model, _size(name)


def _size(name: str) -> int:
    return 299 if name == "inception_v3" else 224


def _write(way: Way, path: Path) -> None:
    """By one of torch's exporters, with a free batch."""
    model, size = network(way.name)
    example = (torch.randn(2, 3, size, size),)
    options: dict[str, Any] = {"dynamic_axes": {"input": {0: "batch"}}, "input_names": ["input"]}
    if way.dynamo:
        options = {
            "dynamic_shapes": ({0: torch.export.Dim("batch")},),
            "external_data": False,
            "verbose": False,
        }
    with quiet():
        torch.onnx.export(
            model, example, str(path), dynamo=way.dynamo, opset_version=way.opset, **options
        )


def exported(way: Way) -> Path | str:
    """The file, written once; or why torch does not write it."""
    folder = RUNS / "onnx-exports" / f"torch-{version('torch')}-{version('torchvision')}"
    path, refusal = folder / f"{way.key}.onnx", folder / f"{way.key}.txt"
    if refusal.is_file():
        return refusal.read_text(encoding="utf-8")
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        try:
            _write(way, partial)
        except (torch.onnx.errors.OnnxExporterError, *FOREIGN) as error:
            partial.unlink(missing_ok=True)
            refusal.write_text(one_line(error, 60), encoding="utf-8")
            return refusal.read_text(encoding="utf-8")
        partial.rename(path)
    return path


def row(way: Way, scratch: Path) -> list[str]:
    """Its line of the table; `scratch` is a folder for the file that is written back."""
    head = [way.name, way.exporter, str(way.opset)]
    path = exported(way)
    if isinstance(path, str):
        return [*head, "", "", "", f"torch does not export it: {path}"]
    size = _size(way.name)
    torch.manual_seed(1)
    try:
        return [*head, *check(path, torch.randn(3, 3, size, size), scratch / "back.onnx")]
    except (UsageError, ExportError) as error:
        return [*head, "", "", "", f"**no**: {one_line(error, 100)}"]


def check(path: Path, batch: torch.Tensor, back: Path) -> list[str]:
    """Parity of the import, parity of the export of it, and its size over that of the file.

    `batch` (3, C, H, W) at a free batch; a file of a fixed batch gets as many of it.
    """
    imported = import_onnx(path)
    fixed, opset = imported.interface.fixed_batch, imported.interface.opset
    original = exporters.open_session(path, threads=1)
    given = [batch] if fixed is None else [batch[:fixed]]
    parity = exporters.check_parity(imported.module, original, given)
    request = exporters.ExportRequest(
        example_inputs=(batch[: fixed or 2],), path=back, opset=max(opset, OLDEST_DYNAMO_OPSET),
        dynamic_batch=fixed is None,
    )  # fmt: skip
    written = exporters.export_onnx(imported.module, request)

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        return [torch.from_numpy(array) for array in original.run_batch(images.numpy())]

    again = exporters.open_session(back, threads=1)
    trip = exporters.check_parity(run, again, given if fixed else [batch[:1], batch])
    ratio = written.size_bytes / path.stat().st_size
    worst = max(parity.max_abs_diff, trip.max_abs_diff)
    ok = worst <= TOLERANCE and ratio <= LARGEST_FILE
    numbers = [f"{parity.max_abs_diff:.1e}", f"{trip.max_abs_diff:.1e}", f"{ratio:.3f}"]
    return [*numbers, "yes" if ok else "**no**"]


def import_time() -> str:
    """ResNet-50, about 100 MB: import against onnx.load plus building the torch module."""
    path = exported(Way(name="resnet50", dynamo=True, opset=18))
    if isinstance(path, str):
        return f"not measured: torch does not export it ({path})"
    import_onnx(path)
    ours, theirs = [], []
    for _ in range(_ROUNDS):
        began = monotonic()
        import_onnx(path)
        ours.append(monotonic() - began)
        began = monotonic()
        onnx.load(path)
        torchvision.models.resnet50(weights=None)
        theirs.append(monotonic() - began)
    a, b = median(ours), median(theirs)
    return (
        f"ResNet-50 ({path.stat().st_size / 1e6:.0f} MB): import {a:.2f} s, onnx.load plus "
        f"torchvision's constructor {b:.2f} s, {a / b:.2f}x (medians of {_ROUNDS}, in turns)."
    )
