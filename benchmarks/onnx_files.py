"""Files that others made: the light models of the onnx package, and trained ones.

No command: `benchmarks.onnx_in` uses it. What leaves: a row of figures for each file. The light
models make all their weights of one number when they start, so nothing can be said of their size,
and outputs that ought to be equal differ by rounding alone: they are imported as they are, and go
in and out with random weights of the same shapes.
"""

from math import prod
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

import exporters
from benchmarks.onnx_torchvision import TOLERANCE, check
from benchmarks.tables import SHARED
from exporters.errors import ExportError
from pipeline.errors import UsageError, one_line
from pipeline.importers.onnx_in import import_onnx


def file_rows(scratch: Path) -> list[list[str]]:
    """(file, import, round trip, file size, within) of each."""
    rows = []
    light = Path(onnx.__file__).parent / "backend/test/data/light"
    for path in sorted(light.glob("light_*.onnx")):
        rows.append([f"{path.stem}, as it is", *_imported(path)])
        weighty = with_random_weights(path, scratch / path.name)
        rows.append([f"{path.stem}, random weights", *_in_and_out(weighty, scratch)])
    trained = sorted((SHARED / "models/onnx").glob("*.onnx"))
    return rows + [[path.stem, *_in_and_out(path, scratch)] for path in trained]


def with_random_weights(source: Path, target: Path) -> Path:
    """`source` with a stored random tensor in place of each that a ConstantOfShape makes."""
    model, rng = onnx.load(source), np.random.default_rng(0)
    graph = model.graph
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in made:
        shape = tuple(int(size) for size in shapes[node.input[0]])
        if len(shape) > 1:
            # He et al. 2015, so that values neither vanish nor grow on the way.
            values = rng.standard_normal(shape) * (2 / prod(shape[1:])) ** 0.5
        else:
            values = rng.uniform(0.5, 1.5, shape)  # may be a norm's variance
        graph.initializer.append(numpy_helper.from_array(values.astype("f4"), node.output[0]))
        graph.node.remove(node)
    unused = {node.input[0] for node in made} - {n for node in graph.node for n in node.input}
    for part in (graph.initializer, graph.input):
        kept = [entry for entry in part if entry.name not in unused]
        del part[:]
        part.extend(kept)
    model.ir_version = max(model.ir_version, 4)  # from then on weights need not be inputs
    onnx.save(model, target)
    return target


def _batch(path: Path) -> torch.Tensor:
    proto = onnx.load(path)
    weights = {tensor.name for tensor in proto.graph.initializer}
    first = next(value for value in proto.graph.input if value.name not in weights)
    sizes = [dim.dim_value for dim in first.type.tensor_type.shape.dim[1:]]
    return torch.randn(3, *sizes, generator=torch.Generator().manual_seed(1))


def _imported(path: Path) -> list[str]:
    try:
        imported = import_onnx(path)
        batch = _batch(path)[: imported.interface.fixed_batch]
        session = exporters.open_session(path, threads=1)
        found = exporters.check_parity(imported.module, session, [batch], TOLERANCE)
    except (UsageError, ExportError) as error:
        return ["", "", "", f"**no**: {one_line(error, 100)}"]
    return [f"{found.max_abs_diff:.1e}", "", "", "yes" if found.ok else "**no**"]


def _in_and_out(path: Path, scratch: Path) -> list[str]:
    try:
        return check(path, _batch(path), scratch / "back.onnx")
    except (UsageError, ExportError) as error:
        return ["", "", "", f"**no**: {one_line(error, 100)}"]
