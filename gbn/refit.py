"""Refit the layers that read a narrower input, in closed form, to what the original computed.

What enters: the original network, the pruned one, the plan between them, and a few batches of
inputs. What leaves: the pruned network with new weights in convolutions and linear layers whose
inputs lost channels. Each solves a ridge regression: its output on the inputs that the pruned
network gives it should be the original layer's output on the original's inputs (He et al. 2017,
"Channel Pruning for Accelerating Very Deep Neural Networks", equation 1, for W alone). Layers are
refitted in the order of execution, so that each also makes up for the error of those before it.

Refused, and left as they are: grouped layers, layers whose weight is shared or that run more than
once, and any refit that does not lower the error on samples kept back for the purpose.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gbn.prune_plan import PrunePlan
from gbn.running import WatchEnded, run_model, tracing_mode

_CHECK_SHARE = 4  # one sample in so many is kept back


@dataclass(frozen=True, kw_only=True)
class RefitSettings:
    """`rows` samples a layer at most; `passes` over the inputs at most; `ridge` towards the old."""

    rows: int = 16384
    passes: int = 24
    ridge: float = 1e-2
    seed: int = 0


@dataclass(frozen=True)
class Refit:
    """Layers with new weights, and the share of their error that is left, measured on samples."""

    error_left: dict[str, float]


def refit(
    original: nn.Module,
    small: nn.Module,
    plan: PrunePlan,
    batches: Sequence[Any],
    settings: RefitSettings | None = None,
) -> Refit:
    """Give layers of `small` weights that restore what `original` computes, in place.

    `plan` leads from `original` to `small`; `batches`: inputs as for `gbn.trace`, on the device of
    both networks. Statistics of batch norms should be those
    of `original`, as a cut leaves them: only their means are moved, by the offset of a layer that
    has no bias. A refit cannot restore all, and renewed variances would blow that error up.
    """
    settings = settings or RefitSettings()
    moved: dict[nn.modules.batchnorm._BatchNorm, Tensor] = {}
    with tracing_mode(original), tracing_mode(small), torch.no_grad():
        layers = _candidates(original, small, plan)
        wanted = _collect(original, layers, batches, settings, outputs=True)
        norms = _norms_behind(small, layers, batches[0])
        once = [name for name in wanted if wanted[name].calls == len(batches)]
        size = -(-len(once) // settings.passes)
        left: dict[str, float] = {}
        for start in range(0, len(once), max(size, 1)):
            chunk = {name: layers[name] for name in once[start : start + size]}
            given = _collect(small, chunk, batches, settings, outputs=False)
            for name in chunk:
                if name in given and given[name].calls == len(batches):
                    x, y = given[name].rows(), wanted.pop(name).rows()
                    layer = small.get_submodule(name)
                    norm = norms.get(name)
                    share = _solve(layer, norm, x, y[:, layers[name]], settings)
                    if norm is not None and norm.running_mean is not None:
                        moved[norm] = norm.running_mean.clone()
                    left |= {} if share is None else {name: share}
    for norm, mean in moved.items():  # a watched run takes back what it did to buffers
        norm.running_mean = mean
    return Refit(left)


def _candidates(original: nn.Module, small: nn.Module, plan: PrunePlan) -> dict[str, Tensor]:
    """Layers whose inputs shrank, and which of their outputs are left."""
    uses = Counter(id(p) for _, p in original.named_parameters(remove_duplicate=False))
    found = {}
    for name, layer in original.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not name:
            continue
        plain = not isinstance(layer, nn.Conv2d) or (
            layer.groups == 1 and layer.padding_mode == "zeros"
        )
        kept = plan.kept.get(f"{name}.weight", {})
        same_kind = type(small.get_submodule(name)) is type(layer)
        if plain and same_kind and 1 in kept and uses[id(layer.weight)] == 1:
            whole = np.arange(layer.weight.shape[0])
            outputs = torch.as_tensor(np.asarray(kept.get(0, whole)), dtype=torch.int64)
            found[name] = outputs.to(layer.weight.device)
    return found


@dataclass
class _Samples:
    """Rows of what enters or leaves one layer, at the same places in both networks."""

    calls: int = 0
    parts: list[Tensor] = field(default_factory=list)

    def rows(self) -> Tensor:
        return torch.cat(self.parts)


def _collect(
    model: nn.Module,
    names: Iterable[str],
    batches: Sequence[Any],
    settings: RefitSettings,
    *,
    outputs: bool,
) -> dict[str, _Samples]:
    """Samples of what the layers give, in the order of execution, by a whole run of each batch.

    Without `outputs`, of what they multiply with their weights; a run then ends when all have run.
    """
    found: dict[str, _Samples] = {}
    pending: set[str] = set()
    rows = -(-settings.rows // len(batches))

    def sampler(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            samples = found.setdefault(name, _Samples())
            places = _places(layer, output, rows, settings.seed + samples.calls)
            samples.calls += 1
            samples.parts.append(
                _given(layer, output, places)
                if outputs
                else _taken(layer, inputs[0], output, places)
            )
            pending.discard(name)
            if not (outputs or pending):
                raise WatchEnded

        return hook

    with contextlib.ExitStack() as hooks:
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(sampler(name))
            hooks.callback(handle.remove)
        for batch in batches:
            pending.update(names)
            with contextlib.suppress(WatchEnded):
                run_model(model, batch)
    return found


def _places(layer: nn.Module, output: Tensor, rows: int, seed: int) -> Tensor:
    """Positions of an image, the same for all of a batch, or rows of a linear layer, to sample."""
    is_image = isinstance(layer, nn.Conv2d)
    total = output[0, 0].numel() if is_image else output.numel() // output.shape[-1]
    wanted = -(-rows // len(output)) if is_image else rows
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return chosen[:wanted].sort().values.to(output.device)


def _given(layer: nn.Module, output: Tensor, places: Tensor) -> Tensor:
    """Outputs at these places, (rows, channels)."""
    if isinstance(layer, nn.Conv2d):
        return _as_rows(output.flatten(2)[:, :, places])
    return output.reshape(-1, output.shape[-1])[places]


def _taken(layer: nn.Module, x: Tensor, output: Tensor, places: Tensor) -> Tensor:
    """What is multiplied with the weight at these places, (rows, weights of an output)."""
    if isinstance(layer, nn.Conv2d):
        return _patches(layer, x, output, places)
    return x.reshape(-1, x.shape[-1])[places]


def _as_rows(taken: Tensor) -> Tensor:
    """(N, C, P) -> (N * P, C)."""
    return taken.transpose(1, 2).reshape(-1, taken.shape[1])


def _patches(layer: nn.Conv2d, x: Tensor, output: Tensor, places: Tensor) -> Tensor:
    """What the convolution multiplies with its weight at these positions, (N * P, C * kh * kw)."""
    padding = layer.padding
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        before = [0 if padding == "valid" else r // 2 for r in reach]
        after = [0 if padding == "valid" else r - r // 2 for r in reach]
    else:
        before = after = [int(p) for p in padding]
    padded = F.pad(x, (before[1], after[1], before[0], after[0]))
    width = output.shape[3]
    corners = (places // width * layer.stride[0], places % width * layer.stride[1])
    at = [
        corner[:, None] + torch.arange(k, device=x.device) * d
        for corner, k, d in zip(corners, layer.kernel_size, layer.dilation, strict=True)
    ]
    taken = padded[:, :, at[0][:, :, None], at[1][:, None, :]]  # (N, C, P, kh, kw)
    return taken.permute(0, 2, 1, 3, 4).reshape(-1, layer.weight[0].numel())


def _norms_behind(
    model: nn.Module, names: Iterable[str], batch: Any
) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """The batch norm that alone reads what a layer without a bias gives: it can take one."""
    made: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, nn.modules.batchnorm._BatchNorm] = {}

    def note(name: str) -> Any:
        return lambda _layer, _inputs, output: made.__setitem__(id(output), (name, output))

    def meet(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        name, output = made.get(id(inputs[0]), ("", None))
        if output is inputs[0] and isinstance(norm, nn.modules.batchnorm._BatchNorm):
            found[name] = norm

    with contextlib.ExitStack() as hooks:
        for name in names:
            if model.get_submodule(name).bias is None:
                handle = model.get_submodule(name).register_forward_hook(note(name))
                hooks.callback(handle.remove)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                hooks.callback(module.register_forward_pre_hook(meet).remove)
        run_model(model, batch)
    return found


def _solve(
    layer: nn.Module,
    norm: nn.modules.batchnorm._BatchNorm | None,
    x: Tensor,
    y: Tensor,
    settings: RefitSettings,
) -> float | None:
    """New weights by ridge regression; the share of the error left, None where none was gained.

    The offset goes into the bias, or into the running mean of the norm that follows.
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    bias = layer.bias
    x, y = x.double(), y.double()
    x = torch.cat([x, x.new_full((len(x), 1), float(bias is not None or norm is not None))], dim=1)
    old = torch.cat(
        [
            layer.weight.flatten(1).double(),
            (layer.weight.new_zeros(len(layer.weight)) if bias is None else bias).double()[:, None],
        ],
        dim=1,
    ).T
    check = torch.arange(len(x), device=x.device) % _CHECK_SHARE == 0
    if not check.any() or check.all():
        return None
    fit = x[~check]
    gram = fit.T @ fit
    ridge = settings.ridge * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    gram = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    # the ridge pulls towards the old weights: where samples say nothing, nothing changes
    new = torch.linalg.solve(gram, fit.T @ y[~check] + ridge * old)
    old_error, new_error = (float((x[check] @ w - y[check]).square().sum()) for w in (old, new))
    if not new_error < old_error:
        return None
    layer.weight.copy_(new[:-1].T.reshape(layer.weight.shape))
    if bias is not None:
        bias.copy_(new[-1])
    elif norm is not None and norm.running_mean is not None:
        norm.running_mean.sub_(new[-1])
    return new_error / old_error
