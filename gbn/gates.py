"""Gates: one trainable factor φ a channel, attached to a model and folded back exactly.

A batch norm's gate starts at its γ, so that its output is φ·ẑ + (φ/γ)·β: at φ = 0 the channel is
zero, β included, and |∂L/∂φ·φ| estimates the loss of removing it. A convolution or linear layer
whose channels no batch norm zeroes carries the gate itself, starting at 1. γ, β and weights stay
as they are: a gate multiplies them by φ/φ₀, which is exactly 1 when attached.

Gates are parametrizations (`torch.nn.utils.parametrize`), so a module keeps its class, its forward
and its subclasses' extras; attaching is undone by `Gates.fold()` or on leaving the `with` block.
"""

from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gbn.groups import ChannelGroups, GateSite, Mask
from gbn.scores import Scores, atom_scores

_TINY = 1e-6  # below this γ cannot serve as φ₀: β would be divided by it


class ChannelGate(nn.Module):
    """Multiplies a tensor along `dim` by φ/φ₀; siblings of one site share φ."""

    start: Tensor

    def __init__(self, phi: nn.Parameter, start: Tensor, dim: int) -> None:
        super().__init__()
        self.phi = phi
        self.dim = dim
        self.register_buffer("start", start)

    def forward(self, tensor: Tensor) -> Tensor:
        """Any shape whose size at `dim` is the number of gates."""
        shape = [1] * tensor.ndim
        shape[self.dim] = -1
        return tensor * (self.phi / self.start).view(shape)  # divided: exactly 1 at first


class Gates:
    """All gates of a model. Attach with `Gates(model, groups)`; `fold()` undoes it exactly.

    `phi` and `sums` hold the gates, and their Θ so far, by `GateSite.key`. `stood_for` are the γ
    that gates stand for: where gates are trained, these must stay.

    Each gate is (channels,), and multiplies γ, or a weight where there is no norm: You et al.,
    NeurIPS 2019. Use as a context manager: leaving the block folds. Raises AttributeError
    where the model lacks a parameter that `groups` names.
    """

    def __init__(self, model: nn.Module, groups: ChannelGroups) -> None:
        self._groups = groups
        self._modules: list[tuple[nn.Module, str]] = []
        self.sums: dict[str, Tensor] = {}
        self.phi: dict[str, nn.Parameter] = {}
        self.stood_for: list[nn.Parameter] = []
        names = {name for site in groups.gates for name, _ in site.tensors}
        # before the first gate is on: from then on a parameter has another name
        parameters = {name: model.get_parameter(name) for name in names}
        holders = {name: _holders(model, held) for name, held in parameters.items()}
        try:
            for site in groups.gates:
                reference = parameters[site.tensors[0][0]]
                phi, start = self._issue(site, reference.detach())
                if site.is_norm:
                    self.stood_for.append(reference)
                for name, dim in site.tensors:
                    self._attach(ChannelGate(phi, start, dim), holders[name])
        except BaseException:
            self.fold()
            raise

    def _issue(self, site: GateSite, reference: Tensor) -> tuple[nn.Parameter, Tensor]:
        """φ of a site, and φ₀."""
        size = reference.shape[site.tensors[0][1]]
        start = torch.ones(size, dtype=reference.dtype, device=reference.device)
        if site.is_norm:
            start = torch.where(reference.abs() > _TINY, reference, start)
        phi = nn.Parameter(start.clone())
        self.phi[site.key] = phi
        self.sums[site.key] = torch.zeros(size, dtype=torch.float64, device=phi.device)
        return phi, start

    def _attach(self, gate: ChannelGate, holders: list[tuple[nn.Module, str]]) -> None:
        for module, attribute in holders:
            parametrize.register_parametrization(module, attribute, gate)
            if (module, attribute) not in self._modules:  # a tensor may have gates on two dims
                self._modules.append((module, attribute))

    def accumulate(self, *, keep_gradients: bool = False) -> None:
        """Add |∂L/∂φ·φ| of the batch whose `backward()` just ran; call once a batch.

        A batch is one draw of a quantity that is mostly noise at an optimum: many small batches are
        more draws than few large ones of the same images. `keep_gradients`: for an optimizer that
        moves the gates afterwards. Adds nothing for gates that the loss did not reach; raises
        nothing. Source: You et al., NeurIPS 2019.
        """
        with torch.no_grad():
            for name, phi in self.phi.items():
                if phi.grad is not None:
                    self.sums[name] += (phi.grad * phi).abs()
                    if not keep_gradients:
                        phi.grad = None

    def penalty(self) -> Tensor:
        """Σ|φ|, a scalar tensor: the sparsity term of the Tock phase before its factor λ."""
        return torch.stack([phi.abs().sum() for phi in self.phi.values()]).sum()

    def site_scores(self) -> dict[str, npt.NDArray[np.float64]]:
        """Accumulated Θ of each site's channels."""
        return {name: total.cpu().numpy() for name, total in self.sums.items()}

    def scores(self, alive: Mask | None = None) -> Scores:
        """What was accumulated for each atom, summed over its gates: (num_atoms,).

        In units of the loss: Θ(φ) = Σ over batches |∂L/∂φ·φ| (You et al. 2019, arXiv 1909.08174),
        the first-order change of the loss L when φ becomes 0. Raises ScoresNotFinite where a
        gradient was not finite.

        For a model that is already cut, `alive` (num_atoms,) tells which atoms of `groups` it
        still has; the others score zero.
        """
        if alive is None:
            return atom_scores(self._groups, self.site_scores(), "gate")
        whole = {}
        for site in self._groups.gates:
            dim = self._groups.dims[site.dim]
            whole[site.key] = np.zeros(dim.size)
            whole[site.key][dim.kept(alive)] = self.sums[site.key].cpu().numpy()
        return atom_scores(self._groups, whole, "gate")

    def fold(self) -> None:
        """Write the gated values into the parameters and take the gates off; exact, since gates are
        factors φ/φ₀ of what they gate."""
        # all values first: a tied weight has one gate and several holders
        values = [getattr(module, attribute).detach() for module, attribute in self._modules]
        for (module, attribute), value in zip(self._modules, values, strict=True):
            parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
            with torch.no_grad():
                getattr(module, attribute).copy_(value)
        self._modules.clear()

    def __enter__(self) -> "Gates":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.fold()


def _holders(model: nn.Module, parameter: nn.Parameter) -> list[tuple[nn.Module, str]]:
    """Modules that hold this parameter, and its name there; several where weights are tied."""
    return [
        (module, attribute)
        for module in model.modules()
        for attribute, held in module._parameters.items()
        if held is parameter
    ]
