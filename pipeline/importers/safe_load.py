"""Read what torch.save wrote, and never run code that the file brings.

What enters: the path of a checkpoint. What leaves: the object in it, on the CPU.

Files are read by torch's weights-only unpickler, which calls nothing but its own tensor builders.
For whole modules its list is extended, for one file, by the globals that this file names, if
  - they are nn.Module classes of `MODULE_HOMES`, which build layers only, or tensor functions of
    torch.nn.functional, or one of a few plain data types; and
  - a dry run shows that the pickle only refers to the classes and functions and fills in
    instances: it may call none of them, so no constructor runs with arguments from the file.
Classes that bring their own `__new__` (graph modules rebuild themselves from source text) or live
elsewhere (torch.jit, torch.fx, torch.distributed, torch.package, ...) are refused.
Anything else is refused by name; `trust_pickle` is the explicit way round.
"""

import argparse
import functools
import importlib
import io
import types
import warnings
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import UsageError, one_line
from pipeline.importers.detect import ACCEPTED, FileKind
from pipeline.importers.dry_run import PICKLE_ERRORS, PickleUse, dry_run, globals_before_failure

# Their classes only build layers from their arguments; graph capture (torch.fx) is kept out.
MODULE_HOMES = (
    "torch.nn.modules.",
    "torch.nn.parallel.data_parallel.",
    "torchvision.models.",
    "torchvision.ops.",
    "timm.models.",
    "timm.layers.",
)
EXCLUDED_HOMES = ("torchvision.models.feature_extraction.", "timm.models._features_fx.")
# A partial holds one of the other admitted globals; a Namespace is the `args` of training scripts.
PLAIN_TYPES: dict[str, type] = {
    "functools.partial": functools.partial,
    "argparse.Namespace": argparse.Namespace,
}
# As torch.serialization.safe_globals takes them: an object, or an object with its name in the file.
SafeGlobal = Callable[..., Any] | tuple[Callable[..., Any], str]
# The old format: magic number, protocol version, system information, object, storage keys.
NUM_LEGACY_PICKLES = 5


def load_checkpoint(path: Path, kind: FileKind, *, trust_pickle: bool) -> object:
    """The object that torch.save wrote to `path`.

    Raises UsageError for damaged files and for files that ask for more than is admitted.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if trust_pickle:
            return _load_trusted(path)
        try:
            admitted = _admit(path) if kind is FileKind.CHECKPOINT_ZIP else []
            with torch.serialization.safe_globals(admitted):
                return torch.load(path, map_location="cpu", weights_only=True)
        except PICKLE_ERRORS as error:
            raise _refusal(path, kind, error) from error


def _load_trusted(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, ImportError) as error:
        raise UsageError(
            f"{path}: a class of the model is not found: {one_line(error)}; run in the folder of "
            "the file that defines it (a class of a script's __main__ must move to a module)"
        ) from error
    except PICKLE_ERRORS as error:
        raise UsageError(f"{path}: cannot be read by torch.load: {one_line(error)}") from error


def _admit(path: Path) -> list[SafeGlobal]:
    """The globals of this file that may be used, as (object, name); UsageError for all others."""
    wanted = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    # torch's own reader finds the record, so that both passes see the same bytes.
    record = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
    use = dry_run(io.BytesIO(record))
    admitted: list[SafeGlobal] = []
    refused: list[str] = []
    for name in sorted(wanted):
        found = _resolve(name)
        if found is None or not _is_admitted(name, found, use):
            refused.append(name)
        else:
            admitted.append((found, name))
    if refused:
        raise UsageError(refusal_text(path, refused))
    return admitted


def _is_admitted(name: str, found: object, use: PickleUse) -> bool:
    if PLAIN_TYPES.get(name) is found:
        return True
    if isinstance(found, type) and issubclass(found, Enum):
        # Looking a member up is harmless; writing its state would change it for the whole process.
        return name not in use.created and name not in use.state_set
    return name not in use.called and (_is_layer_class(found) or _is_tensor_function(found))


def _is_layer_class(found: object) -> bool:
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        return False
    home = f"{found.__module__}."
    return (
        home.startswith(MODULE_HOMES)
        and not home.startswith(EXCLUDED_HOMES)
        and found.__new__ is object.__new__
    )


def _is_tensor_function(found: object) -> bool:
    return (
        isinstance(found, types.FunctionType)
        and found.__module__ == "torch.nn.functional"
        and not found.__name__.startswith("_")
    )


def _resolve(name: str) -> Callable[..., Any] | None:
    """The global of that name, if its home is admitted and the name is its own, not a detour.

    `torch.nn.functional.torch.hub.load` is such a detour: it ends outside of its home.
    """
    if name in PLAIN_TYPES:
        return PLAIN_TYPES[name]
    module_name, _, attribute = name.rpartition(".")
    if not f"{module_name}.".startswith((*MODULE_HOMES, "torch.nn.functional.")):
        return None
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError):
        return None
    own = (getattr(found, "__module__", None), getattr(found, "__qualname__", None))
    return found if own == (module_name, attribute) else None


def refusal_text(path: Path, names: list[str]) -> str:
    """The refusal of a file that asks for `names`."""
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return (
        f"{path}: asks to run {shown}: more than filling in layers of torch, torchvision and "
        "timm; save model.state_dict() and give --arch, or, if you trust its author with your "
        "machine, give --trust-pickle"
    )


def _refusal(path: Path, kind: FileKind, error: BaseException) -> UsageError:
    if kind is FileKind.CHECKPOINT_LEGACY:
        with path.open("rb") as file:
            names = globals_before_failure(file, NUM_LEGACY_PICKLES)
        foreign = sorted(name for name in names if not name.startswith(("torch.", "collections.")))
        if foreign:
            return UsageError(refusal_text(path, foreign))
        if any(name.startswith("torch.nn.modules") for name in names):
            return UsageError(
                f"{path}: is a whole module in torch's old file format; save it again with a "
                "current torch, or save its state dict and give --arch, or give --trust-pickle"
            )
    return UsageError(
        f"{path}: is damaged or no checkpoint ({one_line(error, 100)}); MODEL must be {ACCEPTED}"
    )
