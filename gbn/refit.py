"""Refit the layers of a pruned network, in closed form, to what the original computed.

What enters: the original network, the pruned one, the plan between them, and a few batches of
inputs. What leaves: the pruned network with new weights in convolutions and linear layers behind a
cut. Each solves a ridge regression: its output on the inputs that the pruned network gives it
should be the original layer's output on the original's inputs (He et al. 2017, "Channel Pruning for
Accelerating Very Deep Neural Networks", equation 1, for W alone). Where that output is only added
to something, as in a residual block, the sum is the aim: what the other summand has lost is made up
for (the same paper, section 3.3). Layers are refitted in the order of execution, so that each also
makes up for the error of those before it.

Left as they are, with the reason told: layers of classes derived from torch's (they may compute
something else with their weights), whose weight another layer or op reads too, or that run more
than once, and any refit that does not lower the error on samples kept back for the purpose. All are
taken back where the network's outputs end up farther from the original's than they were.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from gbn.layer_samples import End, Found, Wanted, survey, visit, wanted
from gbn.norms import BatchNorm, tracked_norms
from gbn.prune_plan import PrunePlan
from gbn.running import output_tensors, plain_eval, refuse_untraceable, run_model

_CHECK_SHARE = 4  # one row in so many is kept back
_NOTHING = 1e-6  # share of a layer's energy: an error below it is rounding
_FAINT = 1e-3  # share of the largest γ: a sum is not aimed at through a norm that passes so little


@dataclass(frozen=True, kw_only=True)
class RefitSettings:
    """`rows`: samples a layer, about; `ridge`: towards the old weights; `memory`: floats held."""

    rows: int = 32768
    ridge: float = 1e-3
    memory: int = 2**27
    seed: int = 0


@dataclass(frozen=True)
class Refit:
    """error_left: of layers with new weights, the share of their error that samples kept back show.

    passed_over: convolutions and linear layers that stayed as they were, and why.
    """

    error_left: dict[str, float]
    passed_over: dict[str, str]


def refit(
    original: nn.Module,
    small: nn.Module,
    plan: PrunePlan,
    inputs: Any,
    settings: RefitSettings | None = None,
) -> Refit:
    """Give layers of `small` weights that restore what `original` computes, in place.

    `plan` leads from `original` to `small`; `inputs`: as for `gbn.trace`, one batch of many, on the
    device of both networks. Batch norms with running statistics become those of `original` again:
    they tell how large what they read should be. A refit restores less than all, and variances
    taken from it would blow its error up. The offset of a layer without a bias goes into the mean
    of the norm behind it.

    Returns what was refitted, with the share of each layer's error that is left, and what was not.
    Raises TraceError for what cannot be run, and what the networks' own forward raises on `inputs`.
    """
    settings = settings or RefitSettings()
    for network in (original, small):
        refuse_untraceable(network)
    left: dict[str, float] = {}
    before = {name: value.clone() for name, value in small.state_dict().items()}
    with torch.no_grad():
        layers, passed_over = _candidates(original, small, plan)
        ends, outputs = survey(original, set(layers), inputs)
        reference = _floats(outputs)
        off = _squared_error(reference, _outputs(small, inputs))
        _restore_norms(original, small, plan)
        for portion in _portions(original, ends, settings):
            left |= _refit_portion((original, small), portion, inputs, layers, settings)
        if _squared_error(reference, _outputs(small, inputs)) > off:
            small.load_state_dict(before)
            return Refit({}, dict.fromkeys(layers, "the network's outputs became worse"))
    passed_over |= {name: "is read more than once" for name in layers if name not in ends}
    passed_over |= {name: "nothing is gained" for name in ends if name not in left}
    return Refit(left, passed_over)


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with plain_eval(model):
        return _floats(run_model(model, inputs))


def _floats(outputs: Any) -> list[Tensor]:
    return [tensor.float() for tensor in output_tensors(outputs) if tensor.is_floating_point()]


def _squared_error(reference: list[Tensor], found: list[Tensor]) -> float:
    """Over the reference's mean square, summed; outputs whose sizes depend on values do not count.

    Infinite where a number is not finite.
    """
    total = 0.0
    for a, b in zip(reference, found, strict=False):
        if a.shape == b.shape and a.numel():
            share = float((a - b).square().mean() / a.square().mean().clamp_min(1e-30))
            total += share if math.isfinite(share) else math.inf
    return total


def _portions(
    model: nn.Module, ends: dict[str, End], settings: RefitSettings
) -> Iterator[dict[str, End]]:
    """Layers in the order of execution, as many at a time as may be held of the original."""
    portion: dict[str, End] = {}
    held = 0
    for name, end in ends.items():
        needed = settings.rows * len(model.get_submodule(name).weight) * (1 + end.summed)  # type: ignore[arg-type]
        if portion and held + needed > settings.memory:
            yield portion
            portion, held = {}, 0
        portion[name] = end
        held += needed
    if portion:
        yield portion


def _refit_portion(
    networks: tuple[nn.Module, nn.Module],
    ends: dict[str, End],
    inputs: Any,
    outputs: dict[str, Tensor],
    settings: RefitSettings,
) -> dict[str, float]:
    """One run of each network."""
    original, small = networks
    left: dict[str, float] = {}
    moved: dict[BatchNorm, Tensor] = {}
    rows = wanted(original, ends, inputs, rows=settings.rows, seed=settings.seed)

    def change(name: str, found: Found) -> bool:
        fit = _Fit(small, name, ends[name])
        fit.add(found, rows[name], outputs[name])
        share = fit.solve(settings.ridge)
        if share is not None:
            left[name] = share
            if fit.norm is not None and fit.norm.running_mean is not None:
                moved[fit.norm] = fit.norm.running_mean.clone()
        return share is not None

    visit(small, {name: ends[name] for name in rows}, inputs, rows, change)
    for norm, mean in moved.items():
        norm.running_mean = mean
    return left


def _restore_norms(original: nn.Module, small: nn.Module, plan: PrunePlan) -> None:
    wholes = tracked_norms(original)
    for path, norm in tracked_norms(small).items():
        for name, value in norm.state_dict().items() if path in wholes else ():
            whole = wholes[path].state_dict()[name].detach()
            for axis in plan.kept.get(f"{path}.{name}", {}):
                kept = torch.from_numpy(plan.kept_array(f"{path}.{name}", axis)).to(whole.device)
                whole = whole.index_select(axis, kept)
            value.copy_(whole)


def _candidates(
    original: nn.Module, small: nn.Module, plan: PrunePlan
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Layers that can be solved for and which of their outputs are left; why others are not."""
    uses = Counter(id(p) for _, p in original.named_parameters(remove_duplicate=False))
    found, refused = {}, {}
    for name, layer in original.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or not name:
            continue
        if {type(layer), type(small.get_submodule(name))} not in ({nn.Conv2d}, {nn.Linear}):
            refused[name] = f"is a {type(layer).__name__}, which may compute something else"
        elif isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            refused[name] = f"pads with {layer.padding_mode}"
        elif uses[id(layer.weight)] > 1:
            refused[name] = "shares its weight"
        else:
            kept = f"{name}.weight"
            outputs = torch.arange(len(layer.weight))
            if 0 in plan.kept.get(kept, {}):
                outputs = torch.from_numpy(plan.kept_array(kept, 0))
            found[name] = outputs.to(layer.weight.device)
    return found, refused


@dataclass
class _Sums:
    """Over rows of x (groups, R, inputs) and y (groups, R, outputs), in float64."""

    rows: int = 0
    x: Tensor | float = 0.0
    y: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    xy: Tensor | float = 0.0
    yy: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Products of one part are of its own precision: a part is small."""
        self.rows += x.shape[1]
        self.x = self.x + x.sum(1).double()
        self.y = self.y + y.sum(1).double()
        self.xx = self.xx + (x.mT @ x).double()
        self.xy = self.xy + (x.mT @ y).double()
        self.yy = self.yy + y.square().sum(1).double()

    def without(self, part: "_Sums") -> "_Sums":
        pairs = ((getattr(self, f.name), getattr(part, f.name)) for f in fields(self))
        return _Sums(*(whole - less for whole, less in pairs))

    def normal_equations(self, offset: float) -> tuple[Tensor, Tensor, Tensor]:
        """(groups, inputs + 1, inputs + 1), (groups, inputs + 1, outputs) and (groups, outputs).

        The last input is `offset`.
        """
        x, y, xx, xy, yy = map(torch.as_tensor, (self.x, self.y, self.xx, self.xy, self.yy))
        corner = xx.new_full((len(xx), 1, 1), self.rows * offset**2)
        edge = offset * x[:, :, None]
        gram = torch.cat([torch.cat([xx, edge], 2), torch.cat([edge.mT, corner], 2)], 1)
        return gram, torch.cat([xy, offset * y[:, None]], 1), yy


class _Fit:
    """The normal equations of one layer, group by group, of rows to fit and of rows to check.

    Each input of a group, places before channels, and last 1 where the layer has where to put an
    offset, else 0.
    """

    def __init__(self, model: nn.Module, name: str, end: End) -> None:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        norm = None if end.norm is None else model.get_submodule(end.norm)
        assert norm is None or isinstance(norm, BatchNorm)
        self._layer, self.norm = layer, norm
        self._groups = getattr(layer, "groups", 1)
        self._all, self._kept_back = _Sums(), _Sums()

    def add(self, found: Found, rows: Wanted, outputs: Tensor) -> None:
        aim = self._aim(found, rows, outputs)
        # whole images are kept back, which are news; of few images, single places
        together = len(rows.places) if isinstance(self._layer, nn.Conv2d) else 1
        together = together if len(aim) >= _CHECK_SHARE * together else 1
        check = torch.arange(len(aim), device=aim.device) // together % _CHECK_SHARE == 0
        start = 0
        for part in found.taken:
            precision = torch.promote_types(part.dtype, torch.float32)
            here = slice(start, start + len(part))
            x = part.to(precision).transpose(0, 1)
            y = aim[here].to(precision).reshape(len(part), self._groups, -1).transpose(0, 1)
            self._all.add(x, y)
            self._kept_back.add(x[:, check[here]], y[:, check[here]])
            start = here.stop

    def _aim(self, found: Found, rows: Wanted, outputs: Tensor) -> Tensor:
        """(R, C): what the layer should give for its end, or the sum, to be the original's."""
        given = rows.given[:, outputs]
        if found.beside is None or rows.total is None:
            return given
        end = rows.total[:, outputs] - found.beside
        if self.norm is None:
            return end
        scale, norm = self._scale(), self.norm
        assert norm.running_mean is not None
        bias = 0.0 if norm.bias is None else norm.bias
        passed = scale.abs() > _FAINT * scale.abs().max()
        return torch.where(passed, (end - bias) / scale + norm.running_mean, given)

    def _scale(self) -> Tensor:
        """(C,): by what the norm behind multiplies."""
        norm = self.norm
        if norm is None:
            return self._layer.weight.new_ones(len(self._layer.weight))
        assert norm.running_var is not None
        weight = 1.0 if norm.weight is None else norm.weight
        return weight / (norm.running_var + norm.eps).sqrt()

    def solve(self, ridge: float) -> float | None:
        """Set the weights; the share of the error left on rows kept back, None: nothing gained."""
        offset = float(self._layer.bias is not None or self.norm is not None)
        gram, cross, _ = self._all.without(self._kept_back).normal_equations(offset)
        test = self._kept_back.normal_equations(offset)
        old = self._old_weights()
        pull = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)
        pull = pull.clamp_min(torch.finfo(torch.float64).tiny)[:, None, None]
        # towards the old weights: where samples say nothing, nothing changes
        eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        new, failed = torch.linalg.solve_ex(gram + pull * eye, cross + pull * old)
        before, after = (self._error(weights, *test) for weights in (old, new))
        energy = self._weighted(test[2])
        if failed.any() or not after < before or before < _NOTHING * energy:
            return None
        self._set(new)
        return after / before

    def _error(self, weights: Tensor, gram: Tensor, cross: Tensor, squares: Tensor) -> float:
        """Squared error of the end over the rows of these equations."""
        return max(self._weighted(squares + (weights * (gram @ weights - 2 * cross)).sum(1)), 0.0)

    def _weighted(self, squares: Tensor) -> float:
        """Sum over outputs (groups, outputs), as much as each is worth behind the norm."""
        worth = self._scale().square().double().reshape(squares.shape)
        return float((squares * worth).sum())

    def _old_weights(self) -> Tensor:
        """(groups, inputs + 1, outputs of a group)."""
        weight, bias = self._layer.weight, self._layer.bias
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        rows = torch.cat([weight.movedim(1, -1).flatten(1), bias[:, None]], dim=1).double()
        return rows.reshape(self._groups, -1, rows.shape[1]).mT

    def _set(self, new: Tensor) -> None:
        layer, norm = self._layer, self.norm
        rows = new.mT.reshape(len(layer.weight), -1)
        weight = layer.weight.movedim(1, -1)
        weight.copy_(rows[:, :-1].reshape(weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(rows[:, -1])
        elif norm is not None and norm.running_mean is not None:
            norm.running_mean.sub_(rows[:, -1])
