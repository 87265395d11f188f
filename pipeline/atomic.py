"""Files that are whole or not there.

Enters: a path and a function that writes a file.
Leaves: the file at that path, complete and on the disk, or the old one untouched.
Refused, with `DiskFullError`: a write for which the disk has no room; with `UsageError`: a path
at which nothing can be written.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import CompressError, UsageError

TEMP_PREFIX = ".tmp-"
"""How the names of unfinished files begin; a killed process leaves them behind."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(CompressError):
    """No room for an artefact; what was there before is unharmed."""

    exit_code = 2


def require_place(path: Path, option: str) -> None:
    """Refuse, before any work, a `path` at which no file can be written; `option` gave it.

    Raises UsageError.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise UsageError(f"{option}: '{path}' is a directory: name a file in it")
    if not folder.is_dir():
        raise UsageError(f"{option}: the folder of '{path}' does not exist: make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: '{folder}' is not writable: name a file elsewhere")


def write_atomic(path: Path, writer: Callable[[Path], object]) -> None:
    """Let `writer` write a file, and put it at `path` only when it is whole and on the disk.

    `writer` gets a temporary path in the same directory, with the same suffix; on any error it is
    removed and `path` keeps its old content. Raises DiskFullError when the disk is full.
    """
    temp = path.with_name(f"{TEMP_PREFIX}{os.getpid()}-{path.name}")
    try:
        writer(temp)
        _sync(temp)
        temp.replace(path)
        _sync_directory(path.parent)
    except BaseException as error:
        temp.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFullError(
                f"disk full while writing '{path}': earlier artefacts are unharmed;"
                " free some space and go on with --resume"
            ) from error
        raise


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it grew out of, says that there is no space left.

    Writers in native code hide the OSError behind one of their own: behind its context, or in
    the text alone.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return True
        if os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _sync(path: Path, flags: int = os.O_RDWR) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    # Makes the new name itself durable; Windows cannot open a directory, and does so on its own.
    if os.name != "nt":
        _sync(path, os.O_RDONLY)
