"""Tell by its content, not by its name, which kind of model file a path holds.

What enters: a path. What leaves: a `FileKind`.
Refused: a missing file, a directory, an empty or truncated file, an archive that unpacks to far
more than its size, and anything that is no model file.
"""

import zipfile
from enum import Enum
from pathlib import Path

import exporters
from pipeline.errors import UsageError

ACCEPTED = (
    "a .pt/.pth/.ckpt file of torch.save or torch.jit.save, a .safetensors file, an .onnx file, or "
    "a .pt2 file of torch.export.save"
)
# torch.save stores tensors uncompressed: an archive that grows this much was not made by it.
MAX_UNPACKED_RATIO = 20
MAX_SAFETENSORS_HEADER_BYTES = 100_000_000


class FileKind(Enum):
    """The kinds of model files that are told apart."""

    CHECKPOINT_ZIP = "checkpoint"
    CHECKPOINT_LEGACY = "checkpoint of the old format"
    SAFETENSORS = "safetensors file"
    EXPORTED_PROGRAM = "exported program"
    TORCHSCRIPT = "TorchScript file"
    ONNX = "ONNX file"


def detect_kind(path: Path) -> FileKind:
    """The kind of the file at `path`; UsageError where it is none."""
    if path.is_dir():
        raise UsageError(f"{path}: is a directory; name the model file in it: {ACCEPTED}")
    if path.exists() and not path.is_file():
        raise UsageError(
            f"{path}: is no regular file but a pipe or device; copy it to a file first"
        )
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    reason = exporters.why_no_model(head)
    if reason is not None:
        raise UsageError(f"{path}: {reason}")
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path, size_bytes)
    if _has_safetensors_header(path, head, size_bytes):
        return FileKind.SAFETENSORS
    if head[0] == 0x80:
        return FileKind.CHECKPOINT_LEGACY
    # An ONNX file starts with protobuf field 1, ir_version, a small number.
    if path.suffix == ".onnx" or (len(head) > 2 and head[0] == 0x08 and 1 <= head[1] < 32):
        return FileKind.ONNX
    raise UsageError(f"{path}: is no model file ({size_bytes} bytes); MODEL must be {ACCEPTED}")


def _has_safetensors_header(path: Path, head: bytes, size_bytes: int) -> bool:
    """Eight bytes of header length, then JSON."""
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or header_bytes > MAX_SAFETENSORS_HEADER_BYTES:
        return False
    if header_bytes + 8 > size_bytes:
        raise UsageError(
            f"{path}: is a truncated safetensors file: its header alone is {header_bytes} bytes, "
            f"the file has {size_bytes}; save or download it again"
        )
    return True


def _zip_kind(path: Path, size_bytes: int) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, EOFError, ValueError, OSError) as error:
        raise UsageError(
            f"{path}: is truncated or damaged ({size_bytes} bytes, no archive directory); "
            "save or download it again"
        ) from error
    unpacked_bytes = sum(entry.file_size for entry in entries)
    if unpacked_bytes > MAX_UNPACKED_RATIO * size_bytes:
        raise UsageError(
            f"{path}: unpacks from {size_bytes} to {unpacked_bytes} bytes, which no saved model "
            "does; refused as a zip bomb"
        )
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names) and any(
        "/code/" in name for name in names
    ):
        return FileKind.TORCHSCRIPT
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        return FileKind.EXPORTED_PROGRAM
    if any(name.endswith("/data.pkl") for name in names):
        return FileKind.CHECKPOINT_ZIP
    raise UsageError(f"{path}: is a zip archive but no model; MODEL must be {ACCEPTED}")
