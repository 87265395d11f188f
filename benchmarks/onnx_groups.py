"""`make bench-onnx-groups`: does an ONNX file lose as many channels as the module it came from?

Networks of torchvision, as both of torch's exporters write them, are imported and traced, and so
are the modules themselves. Writes docs/onnx-groups.md.
"""

import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import gbn
from benchmarks.onnx_torchvision import Way, exported, network, ways
from benchmarks.tables import ROOT, markdown_table, measured_with
from pipeline.importers.onnx_in import import_onnx

DOCUMENT = ROOT / "docs" / "onnx-groups.md"
_OPSETS = {False: 17, True: 18}
_WORSE = 0.005
HEADER = ("network", "exporter", "groups, frozen", "of the module", "least MACs", "of the module")
TEXT = """\
# Channels of imported files

`make bench-onnx-groups`, {versions}.

{count} files of torchvision's networks, written by torch's two exporters with a free batch
(TorchScript at opset 17, dynamo at 18), beside the modules that they were written from: groups of
channels, how many of them are frozen, and the smallest share of the MACs that a plan may leave.
{verdict}

{table}"""


class Reach(NamedTuple):
    """What a trace finds."""

    groups: int
    frozen: int
    least: float


def reach(module: nn.Module, size: int) -> Reach:
    """Of a network of images (N, 3, size, size)."""
    groups = gbn.trace(module, torch.zeros(1, 3, size, size))
    macs = gbn.CostModel.macs(groups)
    whole = macs.total(np.ones(groups.num_atoms, dtype=np.bool_))
    least = gbn.smallest(groups, macs, gbn.PlanSettings()) / whole
    return Reach(len(groups.groups), sum(group.frozen for group in groups.groups), least)


def row(way: Way) -> tuple[tuple[str, ...], bool]:
    """Its line, and whether the file is as good as the module."""
    path = exported(way)
    if isinstance(path, str):
        return (way.name, way.exporter, f"torch does not export it: {path}", "", "", ""), True
    module, size = network(way.name)
    file, own = reach(import_onnx(path).module, size), reach(module, size)
    counts = [f"{found.groups}, {found.frozen}" for found in (file, own)]
    shares = [f"{found.least:.1%}" for found in (file, own)]
    return (way.name, way.exporter, *counts, *shares), file.least <= own.least + _WORSE


def main() -> int:
    """Measure all and write the page."""
    torch.set_num_threads(1)
    found = []
    for way in ways():
        if way.opset == _OPSETS[way.dynamo]:
            found.append(row(way))
            print(*found[-1][0], flush=True)
    worse = [" ".join(line[:2]) for line, as_good in found if not as_good]
    verdict = f"Less can be cut in: {', '.join(worse)}." if worse else "None can be cut less."
    DOCUMENT.write_text(
        TEXT.format(
            versions=measured_with(),
            count=len(found),
            verdict=verdict,
            table=markdown_table(HEADER, (line for line, _ in found)),
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
