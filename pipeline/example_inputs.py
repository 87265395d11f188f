"""Example inputs of any structure, as stated on the command line.

What enters: one or several texts, each a shape without the batch (`3,224,224`), a named one
(`image:3,224,224`), or a callable that returns the inputs (`FILE.py:FACTORY`). What leaves: a
tensor, a tuple of positional or a dict of keyword arguments. Refused: shapes of which some are
named and some are not, and a callable beside shapes.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.errors import UsageError, one_line
from pipeline.importers.callables import FOREIGN_ERRORS, resolve_callable

_SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*):)?(?P<sizes>\d+(?:,\d+)*)")
_OPTION = "--input-size"


def example_inputs(texts: Sequence[str], seed: int = 0) -> Any:
    """Random inputs of these shapes at batch 1, or what the callable returns. Raises UsageError."""
    shapes = [_SHAPE.fullmatch(text) for text in texts]
    if len(texts) == 1 and shapes[0] is None:
        return _from_callable(texts[0])
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[str | None, torch.Tensor]] = []
    for text, shape in zip(texts, shapes, strict=True):
        if shape is None:
            raise UsageError(
                f"{_OPTION} {text}: is not C,H,W or NAME:C,H,W; a callable that returns all inputs "
                "stands alone"
            )
        sizes = [int(n) for n in shape["sizes"].split(",")]
        if min(sizes) < 1:
            raise UsageError(f"{_OPTION} {text}: sizes are whole numbers above 0")
        found.append((shape["name"], torch.randn(1, *sizes, generator=generator)))
    names = [name for name, _ in found if name is not None]
    if names and len(names) < len(found):
        raise UsageError(f"{_OPTION}: name all inputs or none: {' '.join(texts)}")
    if len(set(names)) < len(names):
        raise UsageError(f"{_OPTION}: an input is named twice: {' '.join(texts)}")
    if names:
        return {name: tensor for name, tensor in found if name is not None}
    tensors = tuple(tensor for _, tensor in found)
    return tensors[0] if len(tensors) == 1 else tensors


def _from_callable(text: str) -> Any:
    if ":" not in text:
        raise UsageError(
            f"{_OPTION} {text}: is not C,H,W (as in 3,224,224), NAME:C,H,W or FILE.py:FACTORY"
        )
    factory = resolve_callable(text, _OPTION)
    try:
        inputs = factory()
    except FOREIGN_ERRORS as error:
        raise UsageError(f"{_OPTION} {text}: calling it fails: {one_line(error)}") from error
    tensor = isinstance(inputs, torch.Tensor) and inputs.ndim > 0
    if not tensor and not (isinstance(inputs, tuple | list | dict) and inputs):
        raise UsageError(
            f"{_OPTION} {text}: returned {type(inputs).__name__}; return a tensor, a tuple of "
            "positional or a dict of keyword arguments, at batch 1"
        )
    return tuple(inputs) if isinstance(inputs, list) else inputs
