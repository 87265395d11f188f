"""The directory of one run: who may write to it, whole files only, and the finished stages.

Enters: the `--out` directory and the fingerprint of the run's settings.
Leaves: `DIR/run.json` (whose directory this is), artefacts written all or not at all, and
`DIR/stages/NN-name.pt`, one file for each finished stage.
Refused, with `UsageError`: a path that cannot be a directory of ours, the directory of another
run, one that another process is writing to, and an existing run without `--resume`.
"""

import json
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from pipeline.atomic import TEMP_PREFIX, DiskFullError, write_atomic
from pipeline.errors import CompressError, UsageError

__all__ = ["DiskFullError", "RunDirectory", "check_out", "open_run", "write_atomic"]

MARKER = "run.json"
LOCK = ".lock"
STAGES = "stages"
_FORMAT = 1
_STAGE_FILE = re.compile(r"(?P<number>\d{2,})-(?P<name>[a-z0-9][a-z0-9-]*)\.pt")
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
    UnpicklingError,
)

Say = Callable[[str], None]


def check_out(
    out: Path, fingerprint: str, resume: bool, *, say: Say = warnings.warn
) -> "RunDirectory":
    """Refuse an unusable `out` before anything is written; touches nothing.

    Returns the directory, to be made by `create`. Raises UsageError.
    """
    if out.is_dir():
        _check_existing(out, fingerprint, resume)
    elif out.exists() or out.is_symlink():
        raise UsageError(f"--out: '{out}' exists and is not a directory: choose another --out")
    else:
        parent = next(folder for folder in out.absolute().parents if folder.exists())
        if not parent.is_dir():
            raise UsageError(f"--out: cannot make '{out}': '{parent}' is not a directory")
        _check_writable(parent, f"cannot make '{out}': ")
    return RunDirectory(out, fingerprint, resume, say=say)


def _check_writable(folder: Path, what: str = "") -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"--out: {what}'{folder}' is not writable: choose another --out")


def _check_existing(out: Path, fingerprint: str, resume: bool) -> None:
    _check_writable(out)
    marker = out / MARKER
    if not marker.is_file():
        # A run that was killed before it wrote its marker leaves a lock and temporary files.
        foreign = [p.name for p in out.iterdir() if p.name != LOCK and not _is_temp(p)]
        if foreign:
            raise UsageError(
                f"--out: '{out}' is not empty and not a run's directory (it holds"
                f" '{min(foreign)}'): choose another --out"
            )
        return
    if _marker_fingerprint(marker) != fingerprint:
        raise UsageError(
            f"--out: '{out}' holds a run with another model, other settings or data in another"
            " place: repeat its settings to resume it, or choose another --out"
        )
    if not resume:
        raise UsageError(
            f"--out: '{out}' already holds a run: add --resume to go on with it, or choose"
            " another --out"
        )


def _marker_fingerprint(marker: Path) -> object:
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--out: cannot read '{marker}': choose another --out") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UsageError(f"--out: '{marker}' was written by another version: choose another --out")
    return content.get("fingerprint")


def open_run(
    out: Path, fingerprint: str, resume: bool, *, say: Say = warnings.warn
) -> "RunDirectory":
    """`check_out`, then create: the directory is locked until `close`. Raises UsageError."""
    run = check_out(out, fingerprint, resume, say=say)
    run.create()
    return run


def _is_temp(path: Path) -> bool:
    return path.name.startswith(TEMP_PREFIX)


class RunDirectory:
    """A run's directory. Use as a context manager, or `close` it: it holds a lock.

    `say` receives one line for each thing a user should know (a torn stage, for instance).
    """

    def __init__(
        self, out: Path, fingerprint: str, resume: bool, *, say: Say = warnings.warn
    ) -> None:
        self.path = out
        self._fingerprint = fingerprint
        self._resume = resume
        self._say = say
        self._lock = FileLock(out / LOCK, timeout=0)

    def create(self) -> None:
        """Make and lock the directory, mark it as this run's, remove what a killed run left.

        Raises UsageError where it cannot be made or another process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise UsageError(
                f"--out: another run is writing to '{self.path}': wait for it, or choose another"
                " --out"
            ) from error
        except OSError as error:
            raise UsageError(f"--out: cannot make '{self.path}': {error.strerror}") from error
        try:
            # Another run may have come and gone between the first check and the lock.
            _check_existing(self.path, self._fingerprint, self._resume)
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        if not (self.path / MARKER).exists():
            marker = json.dumps({"format": _FORMAT, "fingerprint": self._fingerprint}) + "\n"
            self.write(MARKER, lambda temp: _write_text(temp, marker))
        stages = self.path / STAGES
        stages.mkdir(exist_ok=True)
        for folder in (self.path, stages):
            for leftover in filter(_is_temp, list(folder.iterdir())):
                leftover.unlink()

    def close(self) -> None:
        """Release the lock; the files stay."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, name: str, writer: Callable[[Path], object]) -> Path:
        """Write the artefact DIR/`name` by `write_atomic`; returns its path."""
        path = self.path / name
        write_atomic(path, writer)
        return path

    def save_stage(self, name: str, payload: Mapping[str, Any]) -> Path:
        """Record a finished stage: tensors and plain values, that load without running code.

        `name` is made of a-z, 0-9 and "-". Returns the file, numbered in order of saving; saving
        a stage again replaces it. Raises DiskFullError, and what torch raises where the payload
        would not load again with `weights_only=True`.
        """
        path = self._stage_path(name) or self._next_stage_path(name)
        content = {"fingerprint": self._fingerprint, "stage": name, "payload": dict(payload)}

        def writer(temp: Path) -> None:
            _save_tensors(temp, content)
            _load_tensors(temp)

        write_atomic(path, writer)
        return path

    def is_done(self, name: str) -> bool:
        """Whether a stage was finished and its file is whole; a torn file is said, and not done."""
        return self._read_stage(name) is not None

    def load_stage(self, name: str) -> dict[str, Any]:
        """The payload of a finished stage, tensors on the CPU. Raises CompressError if not done."""
        payload = self._read_stage(name)
        if payload is None:
            raise CompressError(f"stage '{name}' is not finished in '{self.path}': run it first")
        return payload

    def _read_stage(self, name: str) -> dict[str, Any] | None:
        path = self._stage_path(name)
        if path is None:
            return None
        try:
            content = _load_tensors(path)
            torn = content["stage"] != name or content["fingerprint"] != self._fingerprint
            payload: dict[str, Any] = content["payload"]
        except _DAMAGE as error:
            self._say(f"stage '{name}' is done again: '{path}' is damaged ({_first_line(error)})")
            return None
        if torn:
            self._say(f"stage '{name}' is done again: '{path}' belongs to another run")
            return None
        return payload

    def _stage_path(self, name: str) -> Path | None:
        return next((path for _, found, path in self._stage_files() if found == name), None)

    def _next_stage_path(self, name: str) -> Path:
        last = max((number for number, _, _ in self._stage_files()), default=0)
        file = f"{last + 1:02d}-{name}.pt"
        assert _STAGE_FILE.fullmatch(file), f"stage name {name!r}"
        return self.path / STAGES / file

    def _stage_files(self) -> list[tuple[int, str, Path]]:
        paths = sorted((self.path / STAGES).glob("*.pt"))
        matches = ((_STAGE_FILE.fullmatch(path.name), path) for path in paths)
        return [(int(match["number"]), match["name"], path) for match, path in matches if match]


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _save_tensors(path: Path, content: dict[str, Any]) -> None:
    import torch

    # An open file, not a path: torch's own file writer reports a full disk as an internal error.
    with path.open("wb") as file:
        torch.save(content, file)


def _load_tensors(path: Path) -> dict[str, Any]:
    import torch

    # torch does not compare checksums when it loads.
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"checksum of '{damaged}' differs")
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content
