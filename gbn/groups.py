"""ChannelGroups: which channels of which tensors live and go together.

An *atom* is the smallest thing that can be removed: one channel of every tensor that it is tied
to. A *dim* is one dimension of one or more tensors, as a table from positions to the atoms that
each position depends on. A *group* is a set of atoms that belong to one width of the network, the
unit in which people think and reports speak.

What enters: the tracer's findings. What leaves: a frozen description that cost, planner and
surgery share; it holds no module and no tensor.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from gbn.ids import FIXED, Rows

Mask = npt.NDArray[np.bool_]

LEAST_WIDTH = 2
"""No width is cut to 1: there a squeeze, a broadcast or an op that torch leaves out is another."""


@dataclass(frozen=True, kw_only=True)
class Dim:
    """One dimension of size `size`; entry e says position `positions[e]` needs `atoms[e]`.

    A position in no entry always survives. A position in several survives if all do.
    """

    size: int
    positions: npt.NDArray[np.int64]
    atoms: npt.NDArray[np.int64]

    def kept(self, alive: Mask) -> npt.NDArray[np.int64]:
        """Surviving positions, ascending. `alive`: (num_atoms,)."""
        dead = np.zeros(self.size, dtype=np.bool_)
        dead[self.positions[~alive[self.atoms]]] = True
        return np.flatnonzero(~dead)


@dataclass(frozen=True, kw_only=True)
class MacOp:
    """`constant` MACs times the surviving size of each of `dims` (indices into the dims)."""

    op: str
    module: str
    constant: int
    dims: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class GateSite:
    """Tensors (state-dict name, dim) that one vector of gates multiplies, one gate a channel.

    Setting gate c to zero makes the site's output channel c zero, bias included; a gate along a
    weight's inputs makes it read nothing of channel c.
    """

    name: str
    tensors: tuple[tuple[str, int], ...]
    dim: int
    is_norm: bool

    @property
    def key(self) -> str:
        """Names the site among all: its first tensor, with the dim where that is not 0."""
        name, dim = self.tensors[0]
        return f"{name}[{dim}]" if dim else name


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Call number `call` of `op` takes statistics of its input over `dims` (axis -> dim)."""

    op: str
    call: int
    dims: dict[int, int]


@dataclass(frozen=True, kw_only=True)
class SizeBinding:
    """An int that a module keeps beside its weights and that follows the width of a dim.

    `attribute[index]` where the attribute is a tuple or list. `old` is its value before pruning.
    `guessed`: it may also be a number that never changes; trials tell.
    """

    module: str
    attribute: str
    index: int | None
    old: int
    dim: int
    guessed: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """One width of the network: the output channels of `layers`, which live and go together.

    `dim` is the widest of those outputs and stands for the group's size; `num_fixed` of its
    positions can never be removed, `reason` says why.
    """

    name: str
    layers: tuple[str, ...]
    atoms: tuple[int, ...]
    dim: int
    size: int
    num_fixed: int
    reason: str | None

    @property
    def frozen(self) -> bool:
        """No channel of this group can be removed."""
        return not self.atoms


@dataclass(frozen=True, kw_only=True)
class AtomsOfIds:
    """Which atoms the ids of a trace depend on.

    `one`: (num_ids,), the atom that an id is; -1 where it stays, or is a product. Of products,
    `products[i]` needs the atom `needed[i]`.
    """

    one: npt.NDArray[np.int32]
    products: npt.NDArray[np.int64]
    needed: npt.NDArray[np.int64]

    def lost(self, alive: Mask) -> Mask:
        """(num_ids + 1,): see `ChannelGroups.lost_ids`."""
        gone = np.append(~alive, False)  # the last one for -1
        lost = np.append(gone[self.one], False)
        lost[self.products[gone[self.needed]]] = True
        return lost


@dataclass(frozen=True, kw_only=True)
class ChannelGroups:
    """The network as the planner and the surgeon see it. Made by `gbn.trace`."""

    num_atoms: int
    dims: tuple[Dim, ...]
    tensors: dict[str, dict[int, int]]
    shapes: dict[str, tuple[int, ...]]
    parameters: tuple[str, ...]
    groups: tuple[Group, ...]
    mac_ops: tuple[MacOp, ...]
    gates: tuple[GateSite, ...]
    sizes: tuple[SizeBinding, ...]
    statistics: tuple[Statistics, ...] = ()
    unknown_ops: dict[str, tuple[str, ...]] = field(default_factory=dict)
    hard_coded: tuple[str, ...] = ()
    atoms_of_ids: AtomsOfIds = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, dims in self.tensors.items():
            for dim, index in dims.items():
                assert self.shapes[name][dim] == self.dims[index].size, (name, dim)
        owned = np.concatenate([np.zeros(0, np.int64), *(group.atoms for group in self.groups)])
        keys = [site.key for site in self.gates]
        assert len(set(keys)) == len(keys), f"gate sites overlap: {sorted(keys)}"
        each = np.bincount(owned.astype(np.int64), minlength=self.num_atoms)
        assert len(each) == self.num_atoms and (each == 1).all(), "each atom is in one group"

    @cached_property
    def incidence(self) -> csr_matrix:
        """(total positions, num_atoms): which atoms each position of each dim depends on."""
        offsets = self.offsets
        rows = [dim.positions + start for dim, start in zip(self.dims, offsets, strict=False)]
        cols = [dim.atoms for dim in self.dims]
        row = np.concatenate([*rows, np.zeros(0, np.int64)])
        col = np.concatenate([*cols, np.zeros(0, np.int64)])
        shape = (int(offsets[-1]), self.num_atoms)
        return csr_matrix((np.ones(len(row), np.float64), (row, col)), shape=shape)

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Start of each dim in the rows of `incidence`, and the total at the end."""
        return np.cumsum([0, *(dim.size for dim in self.dims)])

    @cached_property
    def position_dim(self) -> npt.NDArray[np.int64]:
        """(total positions,): the dim that each row of `incidence` belongs to."""
        return np.repeat(np.arange(len(self.dims)), np.diff(self.offsets))

    @cached_property
    def own_widths(self) -> frozenset[int]:
        """Dims of tensors and of products; the others are parts that a forward takes of them."""
        of_tensors = {dim for dims in self.tensors.values() for dim in dims.values()}
        return frozenset(of_tensors | {dim for op in self.mac_ops for dim in op.dims})

    def counts(self, alive: Mask) -> npt.NDArray[np.int64]:
        """Surviving size of each dim, shape (num_dims,). `alive`: (num_atoms,)."""
        lost = self.incidence @ (~alive).astype(np.float64) > 0
        return np.bincount(self.position_dim[~lost], minlength=len(self.dims))

    def lost_ids(self, alive: Mask) -> Mask:
        """(num_ids + 1,): which ids do not survive; the last entry stands for ids without atoms."""
        return self.atoms_of_ids.lost(alive)

    @cached_property
    def removable_ids(self) -> Mask:
        """(num_ids + 1,): which ids some cut can remove."""
        return self.lost_ids(np.zeros(self.num_atoms, dtype=np.bool_))

    def group_of_atom(self) -> npt.NDArray[np.int64]:
        """(num_atoms,): index of the group that each atom belongs to."""
        owner = np.zeros(self.num_atoms, dtype=np.int64)
        for index, group in enumerate(self.groups):
            owner[list(group.atoms)] = index
        return owner


def surviving(rows: Rows, lost: Mask) -> Mask:
    """(n,): which positions of a dimension with these ids survive. `lost`: of `lost_ids`."""
    known = (rows > FIXED) & (rows < len(lost) - 1)
    return np.asarray(~lost[np.where(known, rows, -1)].any(axis=0))
