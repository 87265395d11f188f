"""Facts that the tracer collected -> ChannelGroups.

Classes of ids become atoms, dimensions become tables of atoms, and produced widths (the outputs of
convolutions and linear layers) that share an atom become one group.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from torch import nn

from gbn.groups import ChannelGroups, Dim, GateSite, Group, MacOp
from gbn.ids import Block, Resolution, Rows
from gbn.rules import Facts
from gbn.sizes import bind_sizes


def build_groups(
    facts: Facts,
    model: nn.Module,
    unknown: Mapping[str, Iterable[str]],
    hard_coded: tuple[str, ...] = (),
) -> ChannelGroups:
    """Resolve all facts.

    `unknown`: ops without a rule, and the modules they were met in. `hard_coded`: places where
    the forward has a size baked in.
    """
    builder = _Builder(facts)
    groups = builder.groups()
    tensors, shapes = _tensor_dims(builder, facts, model)
    mac_ops = [builder.mac_op(i) for i in range(len(facts.macs))]
    gates = builder.gates()
    sizes = bind_sizes(facts.sized, model, builder.dim)
    return ChannelGroups(
        num_atoms=len(builder.index),
        dims=tuple(builder.dims),
        tensors=tensors,
        shapes=shapes,
        parameters=tuple(name for name, _ in model.named_parameters()),
        groups=tuple(groups),
        mac_ops=tuple(mac_ops),
        gates=tuple(gates),
        sizes=sizes,
        unknown_ops={op: tuple(sorted(modules)) for op, modules in unknown.items()},
        hard_coded=hard_coded,
        atoms_of_id=builder.atoms_of_id(),
    )


class _Builder:
    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.resolution: Resolution = facts.space.resolve()
        self.dims: list[Dim] = []
        self._dim_index: dict[bytes, int | None] = {}
        self._blocks = {block.start: block for block in facts.space.blocks}
        self.index: dict[int, int] = {}  # class of a removable atom -> its number
        for start in facts.produced:
            for atoms in self.resolution.columns(self._rows(start)):
                for atom in sorted(atoms):
                    self.index.setdefault(atom, len(self.index))

    def _rows(self, start: int) -> Rows:
        return np.arange(start, start + self._blocks[start].size, dtype=np.int64)[None]

    def dim(self, rows: Rows) -> int | None:
        """Index of the dim that these ids are, or None if all of its positions stay."""
        key = rows.tobytes() + bytes(str(rows.shape), "ascii")
        if key not in self._dim_index:
            table = self._table(rows)
            made = Dim(size=rows.shape[1], positions=table[0], atoms=table[1])
            content = b"%d|" % made.size + made.positions.tobytes() + made.atoms.tobytes()
            if not len(made.atoms):
                self._dim_index[key] = None
            elif content not in self._dim_index:
                self.dims.append(made)
                self._dim_index[content] = len(self.dims) - 1
            self._dim_index.setdefault(key, self._dim_index.get(content))
        return self._dim_index[key]

    def _table(self, rows: Rows) -> tuple[Rows, Rows]:
        pairs = [
            (position, self.index[atom])
            for position, atoms in enumerate(self.resolution.columns(rows))
            for atom in sorted(atoms)
            if atom in self.index
        ]
        table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return table[:, 0].copy(), table[:, 1].copy()

    def atoms_of_id(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the atoms that each id depends on."""
        known: dict[int, tuple[int, ...]] = {}
        for label in set(self.resolution.label.tolist()):
            atoms = self.resolution.atoms_of(label)
            known[label] = tuple(self.index[a] for a in sorted(atoms) if a in self.index)
        return tuple(known[label] for label in self.resolution.label.tolist())

    def groups(self) -> list[Group]:
        """Produced widths that share an atom are one group, in the order of execution."""
        owner: dict[int, int] = {}  # class -> group number; frozen classes tie layers too
        members: list[list[int]] = []
        for start in self.facts.produced:
            labels = {int(self.resolution.label[i]) for i in self._rows(start)[0]}
            touched = {a for label in labels for a in self.resolution.atoms_of(label)} | labels
            found = sorted({owner[label] for label in touched if label in owner})
            target = found[0] if found else len(members)
            if not found:
                members.append([])
            for other in found[1:]:
                members[target] += members[other]
                members[other] = []
                owner.update({k: target for k, v in owner.items() if v == other})
            members[target].append(start)
            owner.update(dict.fromkeys(touched, target))
        return [self._group(starts) for starts in members if starts]

    def _group(self, starts: list[int]) -> Group:
        starts = sorted(starts, key=list(self.facts.produced).index)
        rows = [self._rows(start) for start in starts]
        atoms = sorted(
            {
                self.index[atom]
                for r in rows
                for column in self.resolution.columns(r)
                for atom in column
            }
        )
        widest = max(rows, key=lambda r: r.shape[1])
        dim = self.dim(widest)
        free = 0 if dim is None else len(set(self.dims[dim].positions.tolist()))
        layers = tuple(dict.fromkeys(self._blocks[s].origin or "(model)" for s in starts))
        reasons = [
            self.resolution.frozen[label]
            for r in rows
            for label in (int(self.resolution.label[i]) for i in r[0])
            if label in self.resolution.frozen
        ]
        return Group(
            name=layers[0],
            layers=layers,
            atoms=tuple(atoms),
            dim=-1 if dim is None else dim,
            size=widest.shape[1],
            num_fixed=widest.shape[1] - free,
            reason=reasons[0] if reasons else None,
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

    def gates(self) -> list[GateSite]:
        """Norms first take the gate; other weights only where no norm zeroes their channels."""
        norms = _merged(gate.blocks for gate in self.facts.norm_gates)
        in_norms = {start for blocks in norms for start in blocks}
        plain: dict[tuple[str, bytes], list[int]] = {}
        for start in sorted(self.facts.required_gates - in_norms):
            block = self._blocks[start]
            key = (block.origin, self.resolution.label[self._rows(start)[0]].tobytes())
            plain.setdefault(key, []).append(start)
        sites = [(blocks, True) for blocks in norms]
        sites += [(tuple(blocks), False) for blocks in plain.values()]
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
    everything = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in everything:
        names.setdefault(id(tensor), []).append(name)
        shapes[name] = tuple(tensor.shape)
        first.setdefault(name, id(tensor))
    tensors: dict[str, dict[int, int]] = {}
    for block in facts.space.blocks:
        if block.tensor is None:
            continue
        dim = builder.dim(np.arange(block.start, block.start + block.size, dtype=np.int64)[None])
        if dim is not None:
            for alias in names[first[block.tensor]]:
                tensors.setdefault(alias, {})[block.dim] = dim
    return tensors, shapes
