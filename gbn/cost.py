"""MACs, parameters and time of a network for any choice of surviving atoms.

One multiply-accumulate (MAC) is one product added to a sum; counted are convolutions, linear layers
and matrix products, at the inputs that the network was traced with. Bias additions, norms,
activations and pools are not counted. This is the convention of the exported graph's counter.

Time is measured elsewhere and enters as `TimeTerm`s: of each layer a constant, a part for each of
its widths and one for their product, where kernels that work in blocks see widths rounded up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from gbn.groups import ChannelGroups, Mask


@dataclass(frozen=True, kw_only=True)
class TimeTerm:
    """`nanoseconds` times the surviving size of each of `dims`, rounded up to its step.

    dims: indices into the groups' dims; none for what no cut changes. steps: one for each.
    """

    nanoseconds: float
    dims: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.steps):
            raise ValueError(f"a term of {len(self.dims)} widths has {len(self.steps)} steps")


@dataclass(frozen=True)
class CostModel:
    """A sum of products: term t costs constants[t] times the surviving size of each of its dims.

    Made by `macs`, in multiply-accumulates (one multiply and one add, as of a convolution with
    C_out·C_in·K·K·H·W of them), or `params`, in elements. Biases, norms and activations cost no
    MACs.

    steps: for each term what its sizes are rounded up to; None: nothing is rounded.
    """

    groups: ChannelGroups
    constants: npt.NDArray[np.float64]
    dims: tuple[tuple[int, ...], ...]
    steps: tuple[tuple[int, ...], ...] | None = None

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

    @classmethod
    def time(cls, groups: ChannelGroups, terms: Sequence[TimeTerm]) -> "CostModel":
        """Nanoseconds of one run, as they were measured."""
        return cls(
            groups,
            np.array([term.nanoseconds for term in terms], float),
            tuple(term.dims for term in terms),
            tuple(term.steps for term in terms),
        )

    def per_term(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Cost of each term for surviving sizes `counts` (num_dims,)."""
        if self.steps is None:
            sizes = [math.prod(int(counts[d]) for d in dims) for dims in self.dims]
        else:
            sizes = [
                math.prod(-(-int(counts[d]) // step) * step for d, step in zip(*pair, strict=True))
                for pair in zip(self.dims, self.steps, strict=True)
            ]
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


class Saving(Protocol):
    """What atoms are worth: the part of a cost that orders them."""

    def saving(self, alive: Mask) -> npt.NDArray[np.float64]:
        """What removing each atom next would save, (num_atoms,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sparing:
    """What atoms save of one cost, as far as they leave another one alone.

    Both as shares of the whole network's, the second times `weight`: with much of it, channels go
    that take long for the little that they compute. Never below a hundredth of the first.
    """

    of: CostModel
    leaving: CostModel
    weight: float

    def saving(self, alive: Mask) -> npt.NDArray[np.float64]:
        """See the class."""
        everything = np.ones_like(alive)
        first, second = (
            cost.saving(alive) / max(cost.total(everything), 1) for cost in (self.of, self.leaving)
        )
        found: npt.NDArray[np.float64] = np.maximum(first - self.weight * second, 0.01 * first)
        return found


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
