"""The user's own ONNX file beside the baseline, which was exported from what was read of it.

Enters: the loaded model and both files. Leaves: the baseline's cost, at the size of the user's
file, and warnings. Refused: a network that computes something else than the file it was read from.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import exporters
from exporters.file_parity import slice_difference
from exporters.session import Array, Session
from pipeline.console import RunConsole
from pipeline.errors import UsageError, one_line
from pipeline.importers import LoadedModel

_BATCHES = (1, 3)
_TOLERANCE = 1e-4
_OTHER_SIZES = ((1.0, 1), (1.0, -5), (1.0, 24), (0.5, 1))
"""Factor and places more than the input size has, where a height or width is free."""
_LARGER = 1.05
_MORE_BYTES = 2**16
"""Beyond the user's file: what names and shapes may add to it."""
_CHOSEN_OTHERWISE = 0.01
"""Of whole numbers, which rounding may move from one to another where two values tie."""
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


def differs_from_given(given: Path, loaded: LoadedModel, written: Path) -> str | None:
    """Why `written` is no stand-in for `given` at other sizes than its input size; None if it is.

    What was rounded on its way from one size to another shows at sizes that do not divide alone.
    Sizes at which the given file itself does not run say nothing.
    """
    interface = loaded.interface
    assert interface is not None, "asked for ONNX files alone"
    try:
        theirs = exporters.open_session(given)
    except exporters.ExportError:
        return None
    ours = exporters.open_session(written)
    generator = torch.Generator().manual_seed(0)
    tolerance = _tolerance(interface.in_half)
    for factor, more in _OTHER_SIZES:
        sizes = [
            max(int(size * factor) + more, 1) if axis in interface.open_sizes else size
            for axis, size in enumerate(loaded.input_size, start=1)
        ]
        shape = (interface.fixed_batch or 1, *sizes)
        images = torch.randn(shape, generator=generator).numpy()
        try:
            expected = _run(theirs, images)
        except exporters.ExportError:
            continue
        if not all(np.isfinite(values).all() for values in expected):
            continue
        try:
            found = _run(ours, images)
        except exporters.ExportError as error:
            return f"at {list(shape)} the exported file does not run: {one_line(error)}"
        if [x.shape for x in expected] != [x.shape for x in found]:
            return f"at {list(shape)} the exported file gives other sizes than the given one"
        pairs = [p for p in zip(expected, found, strict=True) if _is_float(p[0])]
        if any(slice_difference(*pair) > tolerance for pair in pairs):
            return f"at {list(shape)} the exported file gives other values than the given one"
    return None


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
    tolerance = _tolerance(interface.in_half)
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
    pairs = list(zip(expected, found, strict=True))
    floats = [slice_difference(a, b.reshape(a.shape)) for a, b in pairs if _is_float(a)]
    apart = max(floats, default=0.0)
    if apart > tolerance:
        raise UsageError(
            f"{given}: at batch {len(images)}, {_MISREAD} values {apart:.1e} of the outputs' scale "
            "away from the file's own"
        )
    chosen = [float((a.ravel() != b.ravel()).mean()) for a, b in pairs if not _is_float(a)]
    otherwise = max((share for share in chosen if not np.isnan(share)), default=0.0)
    if otherwise > _CHOSEN_OTHERWISE and not floats:
        raise UsageError(
            f"{given}: at batch {len(images)}, {_MISREAD} other whole numbers at {otherwise:.1%} "
            "of the places"
        )
    if otherwise:
        return (
            f"{otherwise:.1%} of an output's whole numbers are others than the given file's: where "
            "values tie, rounding decides"
        )
    if wanted != got:
        return f"the given file gives {wanted}, the exported one {got}, of the same values"
    return None


def _tolerance(in_half: bool) -> float:
    """Of the outputs' scale: what rounding in the precision of the given file may change."""
    return exporters.FP16_TOLERANCE if in_half else _TOLERANCE


def _run(session: Session, images: Array) -> list[Array]:
    name = session.input_names[0]
    return session.run({name: session.as_input(name, images)})


def _is_float(values: Array) -> bool:
    return bool(np.issubdtype(values.dtype, np.floating))
