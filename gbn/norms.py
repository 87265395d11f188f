"""Batch norms that keep running statistics: finding them, and giving them those of what they see.

What enters: a network whose weights changed since its statistics were taken. What leaves: the same
function with statistics that are true again, so that a training step, which normalises by the
batch, starts from what evaluation computes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gbn.running import plain_eval, run_model

_STILL = 1e-3  # of a norm's eps: a variance below it is that of a channel that does not vary

BatchNorm = nn.modules.batchnorm._BatchNorm


def tracked_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """Batch norms with running statistics, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.track_running_stats
    }


def settle_norms(model: nn.Module, batches: Sequence[Any]) -> None:
    """Running statistics become those of `batches`; γ and β take up the difference, in place.

    With the new mean m' and deviation s' of a channel, γ' = γ·s'/s and β' = β + γ·(m' - m)/s, so
    that the network computes in eval mode what it did. Channels that do not vary keep γ and s:
    scaled by next to nothing they would never learn again. Norms without γ and β, or whose γ or β
    another norm shares, stay as they are, and so do norms that did not run. `batches`: inputs as
    for `gbn.trace`, such as (N, C, H, W), on the model's device. Raises what the model's own
    forward raises on them.
    """
    norms = [n for n in tracked_norms(model).values() if n.weight is not None is not n.bias]
    owned = _owned(norms)
    seen = {norm: _Moments() for norm in norms if norm in owned}
    handles = [norm.register_forward_pre_hook(moments.see) for norm, moments in seen.items()]
    try:
        with plain_eval(model):
            for batch in batches:
                run_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for norm, moments in seen.items():
            if moments.count > 1:
                _restate(norm, *moments.mean_and_variance())


def _owned(norms: Iterable[BatchNorm]) -> set[BatchNorm]:
    """Those that share neither γ nor β with another."""
    holders: dict[int, list[BatchNorm]] = {}
    for norm in norms:
        for parameter in (norm.weight, norm.bias):
            holders.setdefault(id(parameter), []).append(norm)
    shared = {norm for held in holders.values() if len(held) > 1 for norm in held}
    return set(norms) - shared


class _Moments:
    """Sums over all but the channel dim, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def see(self, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self._sum = self._sum + values.sum(1)
        self._squares = self._squares + values.square().sum(1)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """(C,), (C,), the variance unbiased, as running statistics keep it."""
        mean = torch.as_tensor(self._sum) / self.count
        variance = torch.as_tensor(self._squares) / self.count - mean.square()
        return mean, variance.clamp_min(0) * self.count / (self.count - 1)


def _restate(norm: BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    old = norm.running_var.double()
    variance = torch.where(variance > _STILL * norm.eps, variance, old)
    factor = norm.weight.double() / (old + norm.eps).sqrt()
    norm.bias.add_((factor * (mean - norm.running_mean)).to(norm.bias.dtype))
    norm.weight.copy_(factor * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
