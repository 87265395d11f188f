"""How far apart two lists of tensors are, each relative to its own largest value.

Refused, with ProofFailed: lists of other lengths, shapes or kinds, and empty ones.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gbn.errors import ProofFailed

_MASK_FACTOR = 1e4


def _real(tensor: Tensor) -> Tensor:
    """In float64; a complex tensor with its two parts side by side."""
    if tensor.is_complex():
        return torch.view_as_real(tensor.to(torch.complex128).resolve_conj())
    return tensor.double()


def distance(reference: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    """Largest difference over all outputs, each relative to its own largest value."""
    worst = 0.0
    reference, other = list(reference), list(other)
    if len(reference) != len(other):
        raise ProofFailed(f"the pruned network gives {len(other)} outputs, not {len(reference)}")
    if not reference:
        raise ProofFailed("the networks give no tensors: there is nothing to compare")
    for a, b in zip(reference, other, strict=True):
        if a.is_complex() != b.is_complex():
            raise ProofFailed(f"the pruned network gives {b.dtype}, not {a.dtype}")
        if a.shape != b.shape:
            raise ProofFailed(f"the pruned network gives {tuple(b.shape)}, not {tuple(a.shape)}")
        if a.numel() == 0:
            continue
        worst = max(worst, _relative(_real(a), _real(b)))
    return worst


def _relative(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest value; infinite where one is not a number.

    Values that are equal to the last bit and far beyond the others (a mask of -1e9 or -inf) say
    nothing about the precision of the others, and are left out.
    """
    same = (a == b) | (a.isnan() & b.isnan())
    finite = a.isfinite() & b.isfinite()
    if not (finite | same).all():
        return math.inf
    if same.all():
        return 0.0
    usual = float(a[~same].abs().median())
    counted = finite & ~(same & (a.abs() > _MASK_FACTOR * usual))
    scale = float(a[counted].abs().max())
    difference = float((a - b)[counted].abs().max())
    return difference / scale if scale > 0 else difference
