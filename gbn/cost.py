"""MACs and parameters of a network for any choice of surviving atoms.

One multiply-accumulate (MAC) is one product added to a sum; counted are convolutions, linear layers
and matrix products, at the inputs that the network was traced with. Bias additions, norms,
activations and pools are not counted. This is the convention of the exported graph's counter.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from gbn.groups import ChannelGroups, Mask


@dataclass(frozen=True)
class CostModel:
    """A sum of products: term t costs constants[t] times the surviving size of each of its dims.

    Made by `macs`, in multiply-accumulates (one multiply and one add, as of a convolution with
    C_out·C_in·K·K·H·W of them), or `params`, in elements. Biases, norms and activations cost no
    MACs.
    """

    groups: ChannelGroups
    constants: npt.NDArray[np.float64]
    dims: tuple[tuple[int, ...], ...]

    @classmethod
    def macs(cls, groups: ChannelGroups) -> "CostModel":
        """MACs of one run on the traced inputs."""
        ops = groups.mac_ops
        return cls(groups, np.array([op.constant for op in ops], float), tuple(o.dims for o in ops))

    @classmethod
    def params(cls, groups: ChannelGroups) -> "CostModel":
        """Elements of all parameters; shared ones count once."""
        constants, dims = [], []
        for name in groups.parameters:
            tied = groups.tensors.get(name, {})
            rest = [n for d, n in enumerate(groups.shapes[name]) if d not in tied]
            constants.append(math.prod(rest))
            dims.append(tuple(tied.values()))
        return cls(groups, np.array(constants, float), tuple(dims))

    def per_term(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Cost of each term for surviving sizes `counts` (num_dims,)."""
        sizes = [math.prod(int(counts[d]) for d in dims) for dims in self.dims]
        return self.constants * np.array(sizes, float)

    def total(self, alive: Mask) -> int:
        """Cost of the network with these atoms, `alive`: (num_atoms,) of bool; MACs or elements."""
        return round(float(self.per_term(self.groups.counts(alive)).sum()))

    def saving(self, alive: Mask) -> npt.NDArray[np.float64]:
        """What removing each atom next would save to first order, shape (num_atoms,)."""
        counts = self.groups.counts(alive)
        terms = self.per_term(counts)
        per_dim = np.zeros(len(counts))
        for cost, dims in zip(terms, self.dims, strict=True):
            for dim in dims:
                per_dim[dim] += cost
        per_position = per_dim / np.maximum(counts, 1)
        return np.asarray(positions_lost(self.groups, alive).T @ per_position).ravel()


def positions_lost(groups: ChannelGroups, alive: Mask) -> csr_matrix:
    """(num_dims, num_atoms): surviving positions of each dim that go with each atom."""
    incidence = groups.incidence
    lost = incidence @ (~alive).astype(np.float64) > 0
    rows = np.flatnonzero(~lost)
    collect = csr_matrix(
        (np.ones(len(rows)), (groups.position_dim[rows], rows)),
        shape=(len(groups.dims), incidence.shape[0]),
    )
    return csr_matrix(collect @ incidence)
