"""Find the callable that an option names, in a file or in an importable module.

What enters: `FILE.py:CALLABLE` or `package.module:CALLABLE`. What leaves: the callable.
Refused, in one line: a missing file or module, code that fails on import, a missing or
uncallable attribute. The user names this code, so it is run.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from pipeline.errors import UsageError, one_line

# What code that is not ours may raise when it is called with the wrong thing.
FOREIGN_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    SystemExit,
    TypeError,
    ValueError,
)


@contextmanager
def import_path(*folders: Path) -> Iterator[None]:
    """Make `folders` importable, and take them off sys.path again."""
    added = [str(folder.resolve()) for folder in folders]
    before = list(sys.path)
    sys.path[:0] = added
    try:
        yield
    finally:
        sys.path[:] = before


def resolve_callable(spec: str, option: str) -> Callable[..., object]:
    """The callable that `spec` names; `option` is the option's name, for messages."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{option} {spec}: must be FILE.py:CALLABLE or package.module:CALLABLE")
    if place.endswith(".py"):
        module = _module_of_file(Path(place), f"{option} {spec}")
    else:
        with import_path(Path.cwd()):
            module = _module_of_name(place, f"{option} {spec}")
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [key for key in vars(module) if not key.startswith("_")]
            raise UsageError(
                f"{option} {spec}: {place} has no {name!r}; it has {', '.join(public[:8])}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{option} {spec}: {name} is a {type(found).__name__}, not a callable")
    return found


def _module_of_name(place: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{where}: there is no module {error.name!r}; install it or run in its folder"
        ) from error
    except FOREIGN_ERRORS as error:
        raise UsageError(f"{where}: importing {place} fails: {one_line(error)}") from error


def _module_of_file(file: Path, where: str) -> ModuleType:
    if not file.is_file():
        raise UsageError(f"{where}: no such file: {file}")
    # A name of its own, so that the file never replaces an installed module.
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]
    module_name = f"{file.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{where}: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    with import_path(file.parent, Path.cwd()):
        try:
            spec.loader.exec_module(module)
        except FOREIGN_ERRORS as error:
            del sys.modules[module_name]
            raise UsageError(f"{where}: running {file} fails: {one_line(error)}") from error
    return module
