"""Texts that a command leaves where the user says: pages, settings, tables.

Enters: a path and the option that gave it. Leaves: a function that writes a text there; through
links, onto the end of devices and pipes, and never over a model, weights or data.
"""

from collections.abc import Callable
from pathlib import Path

from pipeline.atomic import require_place, write_atomic
from pipeline.errors import UsageError

Write = Callable[[Callable[[], str]], object]
_LOOKED_AT = 2**16  # bytes of a file that is there already


def text_writer(path: Path, option: str) -> Write:
    """What writes there; asked for before any work. Raises UsageError where nothing may be."""
    if is_stream(path):

        def append(text: Callable[[], str]) -> None:
            with path.open("a", encoding="utf-8") as stream:
                stream.write(text())

        return append
    target = path.resolve()  # through a link, which stays
    require_place(target if path.is_symlink() else path, option)
    if target.is_file() and _is_binary(target):
        raise UsageError(f"{option}: '{path}' is there and is no text: name another file")
    return lambda text: write_atomic(target, lambda to: to.write_text(text(), encoding="utf-8"))


def is_stream(path: Path) -> bool:
    """Whether it is a device or a pipe, also named as /dev/stdout is: written to, not replaced."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        return True
    return path.absolute().parts[:2] in (("/", "dev"), ("/", "proc")) and path.exists()


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(_LOOKED_AT)
