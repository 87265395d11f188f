"""One score per atom: how much is lost if it goes.

The gate score (GBN, You et al. 2019, equation 6) is Θ(φ) = Σ over batches |∂L/∂φ · φ|, a
first-order Taylor estimate of the loss after setting gate φ to zero, summed over all gates of an
atom. Scores of different layers compare directly, so pruning is global.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gbn.errors import PlanMismatch, ScoresNotFinite
from gbn.groups import ChannelGroups

Values = npt.NDArray[np.float64]

_NOT_FINITE = {
    "gate": "the loss diverged while scoring; check the weights and the data, or score in fp32",
    "magnitude": "the weights hold NaN or infinity; give a checkpoint of before they diverged",
}


@dataclass(frozen=True)
class Scores:
    """`values[a]` is the score of atom a; larger means more is lost. Never negative.

    Raises ScoresNotFinite for NaN and infinity, ValueError for negative numbers.
    """

    values: Values
    kind: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.asarray(self.values, dtype=np.float64))
        if self.values.ndim != 1:
            raise ValueError(f"scores are one number an atom, not of shape {self.values.shape}")
        if not np.isfinite(self.values).all():
            why = _NOT_FINITE.get(self.kind, "check what they were made from")
            raise ScoresNotFinite(f"{self.kind} scores are not finite: {why}")
        if (self.values < 0).any():
            raise ValueError(f"{self.kind} scores are negative: give their absolute value")


def atom_scores(
    groups: ChannelGroups, per_site: Mapping[str, Values], kind: str, *, signed: bool = False
) -> Scores:
    """Sum channel scores of gate sites into their atoms.

    `per_site`: site key -> (channels,). With `signed` the sum is taken before the absolute value.
    """
    total = np.zeros(groups.num_atoms)
    for site in groups.gates:
        dim = groups.dims[site.dim]
        np.add.at(total, dim.atoms, per_site[site.key][dim.positions])
    return Scores(np.abs(total) if signed else total, kind)


def magnitude_scores(model: nn.Module, groups: ChannelGroups) -> Scores:
    """L2 norm of everything that goes with an atom, each tensor relative to its own mean.

    Needs no data. It ignores what the loss thinks, so prefer gate scores where data is at hand.
    Raises PlanMismatch when `groups` was made for another model.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    squares = np.zeros(groups.num_atoms)
    for name in groups.parameters:
        if name not in parameters:
            raise PlanMismatch(f"the model has no parameter {name!r} that the groups speak of")
        for axis, index in groups.tensors.get(name, {}).items():
            dim = groups.dims[index]
            energy = _energy(parameters[name], axis)
            np.add.at(squares, dim.atoms, energy[dim.positions] / max(energy.mean(), 1e-30))
    return Scores(np.sqrt(squares), "magnitude")


def _energy(tensor: Tensor, axis: int) -> Values:
    with torch.no_grad():
        rows = tensor.detach().double().movedim(axis, 0).reshape(tensor.shape[axis], -1)
        return rows.square().mean(1).cpu().numpy()
