"""The user's own ONNX file beside the baseline, which was exported from what was read of it.

Enters: the loaded model and both files. Leaves: the baseline's cost, at the size of the user's
file, and warnings. Refused: a network that computes something else than the file it was read from.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import exporters
from exporters.file_parity import relative_difference
from exporters.session import Array, Session
from pipeline.console import RunConsole
from pipeline.errors import UsageError, one_line
from pipeline.importers import LoadedModel

_BATCHES = (1, 3)
_TOLERANCE = 1e-4
_LARGER = 1.05
_MORE_BYTES = 2**16
"""Beyond the user's file: what names and shapes may add to it."""
_MISREAD = "what was read of it, by a fault of the importer (please report it), gives"


def beside_given(
    given: Path, loaded: LoadedModel, written: Path, cost: exporters.OnnxCost, console: RunConsole
) -> tuple[LoadedModel, exporters.OnnxCost]:
    """Compare the file at `written` with the `given` one; model and cost with what that showed.

    Both run on the CPU, on random images at several batch sizes. Raises UsageError.
    """
    size, own = exporters.onnx_size_bytes(given), cost.size_bytes
    notes = _differences(given, loaded, written)
    if own > _LARGER * size and own > size + _MORE_BYTES:
        notes.append(
            f"the same network takes {own / size:.2f} times the given file's bytes when it is "
            "exported: its weights are stored there in another way"
        )
    for note in notes:
        console.warn(note)
    warned = replace(loaded, warnings=(*loaded.warnings, *notes))
    return warned, replace(cost, size_bytes=size)


def _differences(given: Path, loaded: LoadedModel, written: Path) -> list[str]:
    interface = loaded.interface
    assert interface is not None, "asked for ONNX files alone"
    try:
        theirs = exporters.open_session(given)
    except exporters.ExportError as error:
        return [
            f"onnxruntime does not load the given file, nothing was compared: {one_line(error)}"
        ]
    ours = exporters.open_session(written)
    tolerance = exporters.FP16_TOLERANCE if interface.in_half else _TOLERANCE
    generator = torch.Generator().manual_seed(0)
    fixed = interface.fixed_batch
    notes: dict[str, list[str]] = {}
    for batch in _BATCHES if fixed is None else (fixed,):
        images = torch.randn(batch, *loaded.input_size, generator=generator).numpy()
        note = _compared(given, theirs, ours, images, tolerance)
        if note is not None:
            notes.setdefault(note, []).append(str(batch))
    return [f"at batch {', '.join(batches)} {note}" for note, batches in notes.items()]


def _compared(
    given: Path, theirs: Session, ours: Session, images: Array, tolerance: float
) -> str | None:
    """What kept the two from being compared on `images`, or differs in form alone."""
    try:
        expected = _run(theirs, images)
    except exporters.ExportError as error:
        return f"the given file does not run ({one_line(error)}), the exported one does"
    found = _run(ours, images)
    if not all(np.isfinite(values).all() for values in expected):
        return "the given file gives NaN or infinity for random images: nothing was compared"
    wanted, got = ([list(x.shape) for x in outputs] for outputs in (expected, found))
    if [x.size for x in expected] != [x.size for x in found]:
        raise UsageError(f"{given}: gives {wanted} at batch {len(images)}, {_MISREAD} {got}")
    apart = max(_difference(*pair) for pair in zip(expected, found, strict=True))
    if apart > tolerance:
        raise UsageError(
            f"{given}: at batch {len(images)}, {_MISREAD} values {apart:.1e} of the outputs' scale "
            "away from the file's own"
        )
    if wanted != got:
        return f"the given file gives {wanted}, the exported one {got}, of the same values"
    return None


def _run(session: Session, images: Array) -> list[Array]:
    name = session.input_names[0]
    return session.run({name: session.as_input(name, images)})


def _difference(expected: Array, found: Array) -> float:
    """Relative to the scale; of whole numbers none, which rounding may move from one to another."""
    if not np.issubdtype(expected.dtype, np.floating):
        return 0.0
    return relative_difference(expected.ravel(), found.ravel())[0]
