"""Find the weights inside a checkpoint and put them into a fresh network.

What enters: the object of a checkpoint and an `Architecture`. What leaves: the network with those
weights, and notes of everything that was unwrapped, stripped or inferred.
Refused: no weights at all, several copies that fit alike, and weights that do not match the
architecture (with the names and shapes that differ).
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn

from pipeline.errors import UsageError, one_line
from pipeline.importers.architectures import EXAMPLES, Architecture
from pipeline.importers.callables import FOREIGN_ERRORS

# Where training scripts put the weights; the averaged ones come first, being those evaluated.
WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
)
Weights = Mapping[str, torch.Tensor]


def unwrap(loaded: object, path: Path) -> tuple[nn.Module | Weights, list[str]]:
    """The module or state dict in `loaded`, and what was unwrapped to get at it."""
    notes: list[str] = []
    while not isinstance(loaded, nn.Module) and not _is_weights(loaded):
        keys = [key for key in WRAPPERS if isinstance(loaded, Mapping) and _is_model(loaded, key)]
        if not isinstance(loaded, Mapping) or not keys:
            held = _describe(loaded)
            raise UsageError(f"{path}: holds {held}: neither a module nor a state dict")
        others = f" (also there: {', '.join(keys[1:])})" if len(keys) > 1 else ""
        notes.append(f"took {keys[0]!r} of the checkpoint{others}")
        loaded = loaded[keys[0]]
    if isinstance(loaded, nn.DataParallel):
        notes.append("took the network out of its DataParallel wrapper")
        return loaded.module, notes
    return loaded, notes


def arch_hint(loaded: object) -> str | None:
    """The architecture's name, where the training script wrote it into the checkpoint."""
    if isinstance(loaded, Mapping) and isinstance(loaded.get("arch"), str):
        return str(loaded["arch"])
    return None


def fill(architecture: Architecture, weights: Weights, **given: object) -> tuple[nn.Module, str]:
    """A network of `architecture` holding `weights`, and notes separated by '; '.

    The default network is tried first; for timm and torchvision then one with as many classes as
    the weights have, and with or without auxiliary classifiers, as the weights have them.
    """
    notes: list[str] = []
    module = architecture.build(**given)
    stripped = _with_versions(_strip(weights, module, notes), weights, module)
    if architecture.library is not None:
        module = _variant(architecture, module, stripped, given, notes)
    _check_match(architecture.arch, module, stripped)
    try:
        missing = module.load_state_dict(stripped, strict=False).missing_keys
    except FOREIGN_ERRORS as error:
        raise UsageError(
            f"--arch {architecture.arch} refuses the weights: {one_line(error)}"
        ) from error
    if missing:
        notes.append(f"the weights lack {len(missing)} batch counters of norms, set to 0")
    return module, "; ".join(notes)


def _is_weights(value: object) -> TypeGuard[Weights]:
    """Names to tensors, and at least one tensor."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) for key in value)
        and all(isinstance(item, torch.Tensor) for item in value.values())
    )


def _is_model(checkpoint: Mapping[Any, Any], key: str) -> bool:
    return isinstance(checkpoint.get(key), nn.Module) or _is_weights(checkpoint.get(key))


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(repr(key) for key in list(value)[:6]) or 'nothing in it'}"
    return f"a {type(value).__name__}"


def _strip(weights: Weights, module: nn.Module, notes: list[str]) -> Weights:
    """The weights under the prefix at which the module's own names are found."""
    own = set(module.state_dict())
    prefixes = {
        key[: -len(name)]
        for name in sorted(own)[:8]
        for key in weights
        if key == name or key.endswith(f".{name}")
    }
    found = {prefix: sum(prefix + name in weights for name in own) for prefix in prefixes}
    best = max(found.values(), default=0)
    winners = [prefix for prefix, count in found.items() if count == best]
    if best == 0 or "" in winners:
        return weights
    if len(winners) > 1:
        raise UsageError(
            f"the checkpoint holds {len(winners)} sets of weights that fit alike, under "
            f"{', '.join(sorted(winners))}; save the wanted one as a plain state dict"
        )
    prefix = winners[0]
    rest = [key for key in weights if not key.startswith(prefix)]
    dropped = f" and left out {len(rest)} others ({', '.join(rest[:3])})" if rest else ""
    notes.append(f"took the weights under {prefix!r}{dropped}")
    return {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
    }


def _with_versions(
    stripped: Weights, weights: Weights, module: nn.Module
) -> OrderedDict[str, torch.Tensor]:
    """The weights with the version numbers that layers look for when they load.

    They are those of the file; one without any (safetensors), or one whose names had a prefix,
    counts as written today.
    """
    versions = getattr(weights, "_metadata", None)
    if stripped is not weights or not isinstance(versions, Mapping):
        versions = module.state_dict()._metadata  # type: ignore[attr-defined]
    result = OrderedDict(stripped)
    result._metadata = versions  # type: ignore[attr-defined]
    return result


def _variant(
    architecture: Architecture,
    module: nn.Module,
    weights: Weights,
    given: dict[str, object],
    notes: list[str],
) -> nn.Module:
    """The network with the classes and auxiliary classifiers that the weights have."""
    wanted: dict[str, object] = {}
    names = set(module.state_dict())
    # Both libraries name this choice aux_logits; only a network that has it takes the keyword.
    has_aux = getattr(module, "aux_logits", None)
    if isinstance(has_aux, bool) and (names - set(weights) if has_aux else set(weights) - names):
        wanted["aux_logits"] = not has_aux
        notes.append(f"built {'without' if has_aux else 'with'} auxiliary classifiers")
        module = architecture.build(**given, **wanted)
    num_classes = _other_num_classes(module, weights)
    if num_classes is not None:
        notes.append(f"built with {num_classes} classes, as the weights have")
        module = architecture.build(**given, **wanted, num_classes=num_classes)
    return module


def _other_num_classes(module: nn.Module, weights: Weights) -> int | None:
    """The classes of the weights, if nothing but the classifier's rows differs."""
    rows = set()
    for name, own in module.state_dict().items():
        if name in weights and weights[name].shape != own.shape:
            if weights[name].shape[1:] != own.shape[1:] or own.dim() == 0:
                return None
            rows.add((own.shape[0], weights[name].shape[0]))
    return next(iter(rows))[1] if len(rows) == 1 else None


def _check_match(arch: str, module: nn.Module, weights: Weights) -> None:
    own = module.state_dict()
    missing = [key for key in own if key not in weights and not _is_counter(key)]
    unexpected = [key for key in weights if key not in own]
    reshaped = [
        f"{key} {tuple(weights[key].shape)} in the file, {tuple(own[key].shape)} in the network"
        for key in own
        if key in weights and own[key].shape != weights[key].shape
    ]
    parts = [
        f"{len(names)} {label} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for label, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
        )
        if names
    ]
    if parts:
        raise UsageError(
            f"the weights do not fit --arch {arch}: {'; '.join(parts)}; give the one they were "
            f"trained with: {EXAMPLES}"
        )


def _is_counter(key: str) -> bool:
    """Batch counters of norms, which files of old torch versions do not have."""
    return key.endswith("num_batches_tracked")
