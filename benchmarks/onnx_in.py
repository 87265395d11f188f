"""The ONNX importer on what torch's exporters write, on the onnx package's tests, and on damage.

    python -m benchmarks.onnx_in                       (hours on two cores)
    python -m benchmarks.onnx_in --models 2 --mutations 500 --dry

What leaves: docs/onnx-in.md, unless --dry; the section of `benchmarks.onnx_resnet20` stays. Every
network has random weights, its zero parameters and its norms' statistics randomised, so that no
error hides behind a zero.
"""

import argparse
import re
import tempfile
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

import onnx
import torch
import torchvision
from torch import nn

import exporters
from benchmarks.onnx_fuzz import fuzz
from benchmarks.onnx_node_tests import node_cases, run_case
from benchmarks.onnx_resnet20 import DOCUMENT
from benchmarks.onnx_resnet20 import HEADING as RESNET_HEADING
from benchmarks.tables import markdown_table, measured_with
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
    return model, 299 if name == "inception_v3" else 224


def export(model: nn.Module, size: int, path: Path, opset: int, dynamo: bool) -> None:
    """By one of torch's exporters, with a free batch."""
    example = (torch.randn(2, 3, size, size),)
    options: dict[str, Any] = {"dynamic_axes": {"input": {0: "batch"}}, "input_names": ["input"]}
    if dynamo:
        options = {
            "dynamic_shapes": ({0: torch.export.Dim("batch")},),
            "external_data": False,
            "verbose": False,
        }
    with quiet():
        torch.onnx.export(model, example, str(path), dynamo=dynamo, opset_version=opset, **options)


def check(path: Path, size: int, back: Path, opset: int) -> list[str]:
    """Parity of the import, parity of the export of it, and its size over that of the file."""
    module = import_onnx(path).module
    batch = torch.randn(3, 3, size, size)
    parity = exporters.check_parity(module, exporters.open_session(path, threads=1), [batch])
    request = exporters.ExportRequest(
        example_inputs=(batch[:2],), path=back, opset=max(opset, OLDEST_DYNAMO_OPSET)
    )
    written = exporters.export_onnx(module, request)
    original = exporters.open_session(path, threads=1)

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(original.run_batch(images.numpy())[0])

    trip = exporters.check_parity(run, exporters.open_session(back, threads=1), [batch[:1], batch])
    ratio = written.size_bytes / path.stat().st_size
    ok = max(parity.max_abs_diff, trip.max_abs_diff) <= TOLERANCE and ratio <= 1.05
    numbers = [f"{parity.max_abs_diff:.1e}", f"{trip.max_abs_diff:.1e}", f"{ratio:.3f}"]
    return [*numbers, "yes" if ok else "**no**"]


def torchvision_rows(models: tuple[str, ...], opsets: tuple[int, ...]) -> list[list[str]]:
    """One row for each network, exporter and opset."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, back = Path(folder) / "model.onnx", Path(folder) / "back.onnx"
        for name in models:
            model, size = network(name)
            for dynamo in (False, True):
                for opset in opsets:
                    if dynamo and opset < OLDEST_DYNAMO_OPSET:
                        continue
                    head = [name, "dynamo" if dynamo else "TorchScript", str(opset)]
                    rows.append([*head, *_attempt(model, size, path, back, (opset, dynamo))])
                    print(" ".join(rows[-1]), flush=True)
    return rows


def _attempt(
    model: nn.Module, size: int, path: Path, back: Path, how: tuple[int, bool]
) -> list[str]:
    try:
        export(model, size, path, *how)
    except (torch.onnx.errors.OnnxExporterError, *FOREIGN) as error:
        return ["", "", "", f"torch does not export it: {one_line(error, 60)}"]
    try:
        return check(path, size, back, how[0])
    except (UsageError, ExportError) as error:
        return ["", "", "", f"**no**: {one_line(error, 100)}"]


def node_test_rows() -> tuple[str, list[list[str]]]:
    """Counts of the onnx package's node tests, and the reasons of those not passed."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for case in node_cases():
        outcome = run_case(case.model, case.data_sets[0], case.rtol)
        counts[outcome.kind] += 1
        if outcome.kind != "passed":
            # Names and numbers out, so that like reasons count together; ops stay.
            text = re.sub(r"'[^']*'|\([^)]*\)|opset \d+|\b\d+\b", "", outcome.detail)
            reasons[f"{outcome.kind}: {' '.join(text.split())[:110]}"] += 1
    total = sum(counts.values())
    line = f"{counts['passed']} of {total} passed, {counts['refused']} refused"
    rows = [[str(count), reason] for reason, count in reasons.most_common()]
    return f"{line}, {counts['wrong']} unlike.", rows


def import_time() -> str:
    """ResNet-50, about 100 MB: import against onnx.load plus building the torch module."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model, size = network("resnet50")
        export(model, size, path, 18, True)
        import_onnx(path)
        ours, theirs = [], []
        for _ in range(7):
            began = monotonic()
            import_onnx(path)
            ours.append(monotonic() - began)
            began = monotonic()
            onnx.load(path)
            torchvision.models.resnet50(weights=None)
            theirs.append(monotonic() - began)
        a, b = sorted(ours)[3], sorted(theirs)[3]
        megabytes = path.stat().st_size / 1e6
    return (
        f"ResNet-50 ({megabytes:.0f} MB): import {a:.2f} s, onnx.load plus torchvision's "
        f"constructor {b:.2f} s, {a / b:.2f}x (medians of 7, in turns)."
    )


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=len(MODELS), help="how many of the networks")
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--dry", action="store_true", help="print the page, write nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    head, reasons = node_test_rows()
    broken = fuzz(given.mutations)
    rows = torchvision_rows(MODELS[: given.models], OPSETS)
    ends = ", ".join(f"{count} {end}" for end, count in sorted(broken["ends"].items()))
    page = (
        "# ONNX in\n\n"
        f"`make bench-onnx-in`. {measured_with()}\n\n"
        f"## Import time\n\n{import_time()}\n\n"
        f"## Mutated files\n\n{given.mutations} mutations: {ends}; slowest "
        f"{broken['slowest_s']:.1f} s, peak memory {broken['peak_bytes'] / 1e6:.0f} MB.\n\n"
        "## torchvision, both of torch's exporters\n\nDifferences are of the output's scale, at a "
        "batch of 3 (import), and of 1 and 3 (round trip); allowed is 1e-5 and a file of 1.05x.\n\n"
        + markdown_table(
            ["network", "exporter", "opset", "import", "round trip", "file", "within"], rows
        )
        + f"\n## The onnx package's node tests\n\n{head}\n\n"
        + markdown_table(["tests", "why not passed"], reasons)
    )
    if given.dry:
        print(page)
    else:
        _, heading, rest = DOCUMENT.read_text(encoding="utf-8").partition(RESNET_HEADING)
        DOCUMENT.write_text(f"{page}\n{heading}{rest}".rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
