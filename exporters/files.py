"""Files in, files out.

Enters: a path, or the content to write. Leaves: a loaded ONNX model, or a file that is either
complete or absent. Refused: missing, unreadable or corrupted ONNX files.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from exporters.errors import ExportError, one_line


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write` on a temporary file beside `path`, flush it to disk and move it there.

    A reader sees the old file or the complete new one, never a part; a failure leaves nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".tmp-{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; a deployed model follows the umask.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_onnx(path: Path) -> onnx.ModelProto:
    """The ONNX model at `path` with its external weights. Raises ExportError."""
    try:
        model = onnx.load(os.fspath(path))
    except FileNotFoundError as error:
        raise ExportError(f"{path}: no such file (needed: {error.filename or path})") from error
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ExportError(f"{path}: not a readable ONNX file ({one_line(error)})") from error
    if not model.graph.node and not model.graph.output:
        raise ExportError(f"{path}: not an ONNX file (it holds no graph)")
    return model


def onnx_size_bytes(path: Path) -> int:
    """Bytes on disk of the ONNX file and of the external weight files it names."""
    model = onnx.load(os.fspath(path), load_external_data=False)
    external = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in external)
