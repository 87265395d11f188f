"""Facts that the tracer collected -> ChannelGroups.

Classes of ids become atoms, dimensions become tables of atoms, and produced widths (the outputs of
convolutions and linear layers) that share an atom become one group.
"""

from collections.abc import Container, Iterable, Iterator, Mapping

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn

from gbn.groups import AtomsOfIds, ChannelGroups, Dim, GateSite, Group, MacOp, Statistics
from gbn.ids import FIXED, Block, Resolution, Rows
from gbn.rules import Facts
from gbn.sizes import bind_sizes
from gbn.walk import named_modules, named_parameters


def build_groups(
    facts: Facts,
    model: nn.Module,
    unknown: Mapping[str, Iterable[str]],
    hard_coded: tuple[str, ...] = (),
    no_guess: Container[str] = (),
) -> ChannelGroups:
    """Resolve all facts.

    `unknown`: ops without a rule, and the modules they were met in. `hard_coded`: places where
    the forward has a size baked in. `no_guess`: modules where a guessed size proved wrong.
    """
    builder = _Builder(facts)
    groups = builder.groups()
    tensors, shapes = _tensor_dims(builder, facts, model)
    mac_ops = [builder.mac_op(i) for i in range(len(facts.macs))]
    gates = builder.gates()
    sizes = bind_sizes(facts.sized, model, builder.dim, no_guess)
    return ChannelGroups(
        num_atoms=builder.num_atoms,
        dims=tuple(builder.dims),
        tensors=tensors,
        shapes=shapes,
        parameters=tuple(name for name, _ in named_parameters(model)),
        groups=tuple(groups),
        mac_ops=tuple(mac_ops),
        gates=tuple(gates),
        sizes=sizes,
        statistics=tuple(builder.statistics()),
        unknown_ops={op: tuple(sorted(modules)) for op, modules in unknown.items()},
        hard_coded=hard_coded,
        atoms_of_ids=builder.atoms_of_ids(),
    )


_STAYS, _SEVERAL = -1, -2


class _Builder:
    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.resolution: Resolution = facts.space.resolve()
        self.dims: list[Dim] = []
        self._dim_index: dict[bytes, int | None] = {}
        self._dim_of_root: dict[int, int | None] = {}  # of whole blocks, by the first equal one
        self._blocks = {block.start: block for block in facts.space.blocks}
        self._needed = {start: self._conditions(start) for start in facts.produced}
        needed = [*self._needed.values()]
        together = np.concatenate([*needed, np.zeros(0, np.int64)])
        atoms, first = np.unique(together, return_index=True)
        self.num_atoms = len(atoms)
        # number of each class, in the order in which layers need them; -1 for what cannot go
        self.index = np.full(int(self.resolution.label.max()) + 1, -1, dtype=np.int64)
        self.index[atoms[np.argsort(first)]] = np.arange(len(atoms))
        self._atom_of_id = self._atoms_by_id()

    def _conditions(self, start: int) -> Rows:
        """Atoms that the positions of a block need, position by position."""
        return self.resolution.conditions(self._rows(start))[1]

    def _atoms_by_id(self) -> Rows:
        """The atom that an id is, or _STAYS, or _SEVERAL: those that it is a product of."""
        number = self.index.copy()
        number[self.resolution.stays] = _STAYS
        owners = self.resolution.parts.owners()
        number[owners[~self.resolution.stays[owners]]] = _SEVERAL
        return number[self.resolution.label]

    def _rows(self, start: int) -> Rows:
        return self.facts.space.rows_of(start)

    def dim(self, rows: Rows) -> int | None:
        """Index of the dim that these ids are, or None if all of its positions stay."""
        root = self.facts.space.root_start(rows)
        if root is None:
            return self._dim(rows)
        if root not in self._dim_of_root:
            first = self._rows(root)
            fixed = self.facts.space.stays(first)  # as the sides of kernels are
            self._dim_of_root[root] = None if fixed else self._dim(first)
        return self._dim_of_root[root]

    def _dim(self, rows: Rows) -> int | None:
        # by classes: all tensors of one width are one dim
        key = b"%d " % len(rows) + self.resolution.classes(rows).tobytes()
        if key not in self._dim_index:
            positions, atoms = self._table(rows)
            if not len(atoms):
                self._dim_index[key] = None
                return None
            content = b"%d|" % rows.shape[1] + positions.tobytes() + atoms.tobytes()
            if content not in self._dim_index:
                self.dims.append(Dim(size=rows.shape[1], positions=positions, atoms=atoms))
                self._dim_index[content] = len(self.dims) - 1
            self._dim_index.setdefault(key, self._dim_index.get(content))
        return self._dim_index[key]

    def _table(self, rows: Rows) -> tuple[Rows, Rows]:
        if len(rows) == 1 and rows.min(initial=0) >= FIXED:  # almost always
            atoms = self._atom_of_id[rows[0]]
            lowest = atoms.min(initial=0)
            if lowest >= 0:
                return np.arange(len(atoms)), atoms
            if lowest == _STAYS:
                positions = np.flatnonzero(atoms >= 0)
                return positions, atoms[positions]
        positions, classes = self.resolution.conditions(rows)
        numbers = self.index[classes]
        return positions[numbers >= 0], numbers[numbers >= 0]

    def atoms_of_ids(self) -> AtomsOfIds:
        """Which atom each id is, and those that products need."""
        products = np.flatnonzero(self._atom_of_id == _SEVERAL)
        places, atoms = self._table(products[None])
        one = np.maximum(self._atom_of_id, _STAYS).astype(np.int32)
        return AtomsOfIds(one=one, products=products[places], needed=atoms)

    def groups(self) -> list[Group]:
        """Produced widths that share an atom are one group, in the order of execution.

        Frozen classes tie layers too: a reader wants to see what is added to what.
        """
        members: dict[int, list[int]] = {}
        for start, group in zip(self.facts.produced, self._groups_of_layers(), strict=True):
            members.setdefault(group, []).append(start)
        return [self._group(group) for group in members.values()]

    def _groups_of_layers(self) -> list[int]:
        """The number of the group of each produced width."""
        starts = list(self.facts.produced)
        if not starts:
            return []
        touched = []
        for start in starts:
            rows = self._rows(start)
            classes = self.resolution.label[rows[0]]
            touched.append(np.concatenate([classes, self._needed[start]]))
        layer = np.repeat(np.arange(len(starts)), [len(t) for t in touched])
        size = len(starts) + len(self.index)
        edges = (np.ones(len(layer)), (layer, np.concatenate(touched) + len(starts)))
        _, label = connected_components(coo_matrix(edges, shape=(size, size)), directed=False)
        return list(label[: len(starts)].tolist())

    def _group(self, starts: list[int]) -> Group:
        rows = [self._rows(start) for start in starts]
        widest = max(rows, key=lambda r: r.shape[1])
        dim = self.dim(widest)
        free = 0 if dim is None else 1 + np.count_nonzero(np.diff(self.dims[dim].positions))
        layers = tuple(dict.fromkeys(self._blocks[s].origin or "(model)" for s in starts))
        classes = self.resolution.label[np.concatenate(rows, axis=1)[0]]
        needed = np.concatenate([self._needed[start] for start in starts])
        stays = np.flatnonzero(self.resolution.stays[classes])
        return Group(
            name=layers[0],
            layers=layers,
            atoms=tuple(np.unique(self.index[needed]).tolist()),
            dim=-1 if dim is None else dim,
            size=widest.shape[1],
            num_fixed=widest.shape[1] - free,
            reason=self.resolution.frozen[int(classes[stays[0]])] if len(stays) else None,
        )

    def mac_op(self, index: int) -> MacOp:
        record = self.facts.macs[index]
        constant = record.constant
        dims = []
        for rows in record.rows:
            dim = self.dim(rows)
            if dim is None:
                constant *= rows.shape[1]
            else:
                dims.append(dim)
        return MacOp(op=record.op, module=record.module, constant=constant, dims=tuple(dims))

    def statistics(self) -> Iterator[Statistics]:
        """Statistics over channels of which some can go."""
        for record in self.facts.statistics:
            dims = {axis: self.dim(rows) for axis, rows in record.rows.items()}
            found = {axis: dim for axis, dim in dims.items() if dim is not None}
            if found:
                yield Statistics(op=record.op, call=record.call, dims=found)

    def gates(self) -> list[GateSite]:
        """One site for what is multiplied together: a norm's γ and β, a layer's weight and bias."""
        required = self.facts.required_gates
        needed = [gate.blocks for gate in self.facts.norm_gates if required & set(gate.blocks)]
        norms = _merged(needed)
        in_norms = {start for blocks in norms for start in blocks}
        plain: dict[tuple[str, bytes], list[int]] = {}
        for start in sorted(required - in_norms):
            block = self._blocks[start]
            key = (block.origin, self.resolution.label[self._rows(start)[0]].tobytes())
            plain.setdefault(key, []).append(start)
        sites = [(blocks, True) for blocks in norms]
        sites += [(tuple(blocks), False) for blocks in plain.values()]
        on_inputs = self.facts.input_gates - in_norms - required
        sites += [((block,), False) for block in sorted(on_inputs)]
        return [site for blocks, is_norm in sites if (site := self._site(blocks, is_norm))]

    def _site(self, starts: tuple[int, ...], is_norm: bool) -> GateSite | None:
        blocks: list[Block] = [self._blocks[start] for start in starts]
        dim = self.dim(self._rows(blocks[0].start))
        if dim is None:
            return None
        tensors = tuple((block.tensor, block.dim) for block in blocks if block.tensor is not None)
        return GateSite(name=blocks[0].origin, tensors=tensors, dim=dim, is_norm=is_norm)


def _merged(sites: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Sites that share a block (norms with one γ) are one site: its gate multiplies them all."""
    merged: list[tuple[int, ...]] = []
    for site in sites:
        touching = [other for other in merged if set(other) & set(site)]
        united = dict.fromkeys(block for part in [*touching, site] for block in part)
        merged = [other for other in merged if other not in touching] + [tuple(united)]
    return merged


def _tensor_dims(
    builder: _Builder, facts: Facts, model: nn.Module
) -> tuple[dict[str, dict[int, int]], dict[str, tuple[int, ...]]]:
    names: dict[int, list[str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    first: dict[str, int] = {}
    for path, module in named_modules(model, twice=True):
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                name = f"{path}.{key}" if path else key
                names.setdefault(id(tensor), []).append(name)
                shapes[name] = tuple(tensor.shape)
                first.setdefault(name, id(tensor))
    tensors: dict[str, dict[int, int]] = {}
    for block in facts.space.blocks:
        if block.tensor is None:
            continue
        dim = builder.dim(facts.space.rows_of(block.start))
        if dim is not None:
            for alias in names[first[block.tensor]]:
                tensors.setdefault(alias, {})[block.dim] = dim
    return tensors, shapes
