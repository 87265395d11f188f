"""`python -m benchmarks.onnx_ultraface`: face detectors from ONNX files, to 60 % of their MACs.

Through the Python API, without data: gate scores of a given loss (the distance to the original's
outputs, disturbed, on random images), a plan, surgery and its proof, export, and a run by
onnxruntime. Prints a table; exits with 1 where one of its figures is beyond what is allowed. The
files are read from ../shared; where they are absent it says so and exits with 0.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, fx
from torch.nn import functional as F

import exporters
import gbn
from benchmarks.tables import SHARED, markdown_table
from pipeline.importers.onnx_in import import_onnx

HEADER = ("file", "MACs kept", "surgery", "parity", "bytes", "within")
KEEP = 0.6
PARITY = 1e-5
_BATCHES, _BATCH = 4, 2
_NOISE = 0.1
"""Of the outputs' own spread: at the original itself the distance has no gradient."""


def gate_scores(model: fx.GraphModule, groups: gbn.ChannelGroups, images: Tensor) -> gbn.Scores:
    """Of the squared distance to the model's own outputs, disturbed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        wanted = [[y + _NOISE * y.std() * torch.randn(y.shape, generator=generator)
                   for y in model(batch)] for batch in images]  # fmt: skip
    with gbn.Gates(model, groups) as gates:
        for batch, targets in zip(images, wanted, strict=True):
            found = model(batch)
            sum(F.mse_loss(a, b) for a, b in zip(found, targets, strict=True)).backward()
            gates.accumulate()
        return gates.scores()


def row(path: Path, target: Path) -> list[str]:
    """Its line of the table."""
    imported = import_onnx(path)
    model, interface = imported.module, imported.interface
    size, batch = interface.image_size or (), interface.fixed_batch or _BATCH
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_BATCHES, batch, *size, generator=generator)
    groups = gbn.trace(model, images[0])
    plan = gbn.plan(groups, gate_scores(model, groups, images), flops=KEEP)
    small = gbn.prune(model, plan).eval()
    proof = gbn.prove(model, plan, small, images[0])
    request = exporters.ExportRequest(
        example_inputs=(images[0],),
        path=target,
        input_names=tuple(port.name for port in interface.inputs),
        output_names=tuple(port.name for port in interface.outputs),
        dynamic_batch=interface.fixed_batch is None,
    )
    written = exporters.export_onnx(small, request)
    kept = exporters.count_macs(target).num_macs / exporters.count_macs(path).num_macs
    parity = exporters.check_parity(small, exporters.open_session(target), images, PARITY)
    ok = proof.ok and parity.ok and kept <= KEEP
    return [
        *(path.stem, f"{kept:.1%}", f"{proof.max_abs_diff:.1e}", f"{parity.max_abs_diff:.1e}"),
        *(f"{path.stat().st_size} -> {written.size_bytes}", "yes" if ok else "**no**"),
    ]


def main() -> int:
    """See the module's text."""
    torch.set_num_threads(1)
    files = sorted((SHARED / "models/onnx").glob("ultraface-*.onnx"))
    if not files:
        print(f"skipped: no ultraface-*.onnx in {SHARED / 'models/onnx'}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(path, Path(folder) / path.name) for path in files]
    print(markdown_table(HEADER, rows))
    return 0 if all(cells[-1] == "yes" for cells in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
