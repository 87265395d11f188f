"""Whether a network made from a file of one fixed batch treats every sample on its own.

What enters: the network and its input's sizes. What leaves: yes or no, found by numbers: two
batches run together must give what each gives alone. Weights are as in the file.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.importers.onnx_in.errors import FOREIGN

_TOLERANCE = 1e-4


def samples_are_independent(module: nn.Module, sizes: tuple[int, ...], batch: int) -> bool:
    """Run batches of `batch` and twice that of (N, *sizes); compare."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(batch, *sizes, generator=generator) for _ in range(2))
    try:
        with torch.no_grad():
            together = _listed(module(torch.cat([first, second])))
            apart = [_listed(module(x)) for x in (first, second)]
            return all(
                _close(both, torch.cat([a, b])) for both, a, b in zip(together, *apart, strict=True)
            )
    except FOREIGN:
        return False


def _listed(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, tuple) else [output]


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return bool(((found - expected).abs() <= _TOLERANCE * max(scale, 1e-30)).all())
