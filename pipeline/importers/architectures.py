"""Build the network that `--arch` names, with fresh weights.

What enters: `timm:NAME`, `torchvision:NAME`, `FILE.py:CALLABLE` or `package.module:CALLABLE`,
and keyword variants. What leaves: an `nn.Module`.
Refused: unknown names (near ones are offered) and callables that fail or build something else.
"""

import difflib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from pipeline.errors import UsageError, one_line
from pipeline.importers.callables import FOREIGN_ERRORS, resolve_callable

EXAMPLES = "timm:NAME, torchvision:NAME, FILE.py:CALLABLE or package.module:CALLABLE"


class Architecture:
    """A builder of one architecture; `library` is timm, torchvision or None for a callable."""

    def __init__(self, arch: str) -> None:
        prefix, colon, name = arch.partition(":")
        if not colon or not name:
            raise UsageError(f"--arch {arch}: must be {EXAMPLES}")
        self.arch = arch
        self.library = prefix if prefix in ("timm", "torchvision") else None
        self._builder: Callable[..., object]
        if self.library == "timm":
            self._builder = _timm_builder(name)
        elif self.library == "torchvision":
            self._builder = _torchvision_builder(name)
        else:
            self._builder = resolve_callable(arch, "--arch")

    def build(self, **variant: object) -> nn.Module:
        """A fresh module; `variant` are keyword arguments such as num_classes.

        Raises UsageError if the builder fails or returns something else than a module.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                built = self._builder(**variant)
        except FOREIGN_ERRORS as error:
            raise UsageError(f"--arch {self.arch}: calling it fails: {one_line(error)}") from error
        if not isinstance(built, nn.Module):
            raise UsageError(
                f"--arch {self.arch}: returns a {type(built).__name__}, not a torch.nn.Module"
            )
        return built


def _timm_builder(name: str) -> Callable[..., object]:
    import timm

    # Names with a colon (hf-hub:, local-dir:) would fetch a model from elsewhere.
    if ":" in name or not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())

    def build(**variant: object) -> Any:
        return timm.create_model(name, pretrained=False, **variant)

    return build


def _torchvision_builder(name: str) -> Callable[..., object]:
    import torchvision.models

    known = torchvision.models.list_models()
    if name not in known:
        raise _unknown("torchvision", name, known)

    def build(**variant: object) -> Any:
        backbone = {"weights_backbone": None} if _has_backbone(name) else {}
        return torchvision.models.get_model(name, weights=None, **backbone, **variant)

    return build


def _has_backbone(name: str) -> bool:
    """Whether the builder would download weights for a part of the network."""
    import torchvision.models

    builder = torchvision.models.get_model_builder(name)
    return "weights_backbone" in inspect.signature(builder).parameters


def _unknown(library: str, name: str, known: list[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"see {library}'s list_models()"
    return UsageError(f"--arch {library}:{name}: {library} has no such model; {hint}")
