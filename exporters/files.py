"""Files in, files out.

Enters: a path, or the content to write. Leaves: a loaded ONNX model, or a file that is either
complete or absent. Refused: missing, unreadable or corrupted ONNX files.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

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


def why_no_model(head: bytes) -> str | None:
    """Why a file with these first 64 bytes is no model of any kind, with what to do, if it is none.

    These are left where a download or a copy went wrong. Raises nothing.
    """
    if not head:
        return "is empty (0 bytes); save or download the model again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the model; run git lfs pull"
    if head[4:8] == b"ORTM":
        return "is in onnxruntime's own format; give the .onnx it was made from"
    return None


def load_onnx(path: Path) -> onnx.ModelProto:
    """The ONNX model at `path` with its external weights. Raises ExportError."""
    try:
        with path.open("rb") as file:
            reason = why_no_model(file.read(64))
        if reason is not None:
            raise ExportError(f"{path}: {reason}")
        model = onnx.load(os.fspath(path))
    except FileNotFoundError as error:
        raise ExportError(f"{path}: no such file (needed: {error.filename or path})") from error
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ExportError(f"{path}: not a readable ONNX file ({one_line(error)})") from error
    if not model.graph.node and not model.graph.output:
        raise ExportError(f"{path}: not an ONNX file (it holds no graph)")
    return model


def onnx_size_bytes(path: Path) -> int:
    """Bytes on disk of the ONNX file and of the external weight files it names.

    Raises OSError where one is not there, and protobuf's DecodeError for what is no ONNX file.
    """
    model = onnx.load(os.fspath(path), load_external_data=False)
    external = {
        (path.parent / entry.value).resolve()
        for tensor in _tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return path.stat().st_size + sum(file.stat().st_size for file in external)


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Each one in it: weights, values of attributes, also of nested graphs and functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in (value,) if isinstance(value, Message) else value:
                yield from _tensors(part)
