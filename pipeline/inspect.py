"""`compress inspect`: what can be pruned, what cannot and why, before any training.

Enters: a model file and its example inputs. Leaves: an `Inspection`, plain values for a table or
JSON. Refused: what the importers refuse, and inputs that the model does not run on.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text
from torch import nn
from torch.utils._pytree import tree_leaves

import gbn
from gbn.groups import Mask
from pipeline.config import InspectConfig
from pipeline.console import RunConsole
from pipeline.errors import UsageError
from pipeline.example_inputs import example_inputs
from pipeline.importers import LoadedModel, load_model, load_network
from pipeline.importers.source import model_source


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One width of the network. `macs_share`: of all MACs, those that shrink with it."""

    name: str
    layers: tuple[str, ...]
    size: int
    num_prunable: int
    macs_share: float
    multiple: int
    equal_cut_keeps: int
    frozen: bool
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """`smallest_flops_kept`: least share of the MACs that any plan can reach. `cut_alone`: see
    `pipeline.cutting_alone`; None without data."""

    description: str
    num_macs: int
    num_params: int
    num_frozen_params: int
    smallest_flops_kept: float
    equal_cut: float
    groups: tuple[GroupRow, ...]
    unknown_ops: dict[str, tuple[str, ...]]
    hard_coded: tuple[str, ...]
    cut_alone: dict[str, Any] | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dataclasses.asdict(self)


def inspect_model(config: InspectConfig, console: RunConsole) -> Inspection:
    """Load and trace a model. Raises as the importers and the tracer do."""
    module, description, notes, example, loaded = _load(config)
    groups = gbn.trace(
        module,
        example,
        freeze=config.constraints.freeze,
        prune_norms=config.constraints.prune_norms,
    )
    macs = gbn.CostModel.macs(groups)
    everything = np.ones(groups.num_atoms, dtype=np.bool_)
    settings = gbn.PlanSettings(
        multiple=config.constraints.channel_multiple,
        min_channels=config.constraints.min_channels,
    )
    whole = macs.total(everything)
    alive = _equal_cut(groups, macs, config.equal_cut.fraction(whole))
    params = list(module.parameters())
    warnings = list(notes)
    if not groups.num_atoms:
        warnings.append("nothing can be pruned: every group is frozen, see the reasons")
    return Inspection(
        description=description,
        num_macs=whole,
        num_params=sum(p.numel() for p in params),
        num_frozen_params=sum(p.numel() for p in params if not p.requires_grad),
        smallest_flops_kept=gbn.smallest(groups, macs, settings) / max(whole, 1),
        equal_cut=macs.total(alive) / max(whole, 1),
        groups=tuple(_row(groups, macs, group, alive, settings) for group in groups.groups),
        unknown_ops=groups.unknown_ops,
        hard_coded=groups.hard_coded,
        cut_alone=None if loaded is None else _cut_alone(config, loaded, groups, console),
        warnings=tuple(warnings),
    )


def _cut_alone(
    config: InspectConfig, loaded: LoadedModel, groups: gbn.ChannelGroups, console: RunConsole
) -> dict[str, Any] | None:
    if config.data is None:
        return None
    from pipeline.cutting_alone import cut_alone  # draws, which takes a second to import

    return cut_alone(loaded, groups, config.data, console)


def _load(
    config: InspectConfig,
) -> tuple[nn.Module, str, tuple[str, ...], Any, LoadedModel | None]:
    """Network, what was loaded, notes on that, example inputs; all of it where one image enters."""
    source = model_source(config.model)
    if config.inputs:
        if config.data is not None:
            raise UsageError("--data: images are one input, --input-size C,H,W: leave --data out")
        example = example_inputs(config.inputs)
        sizes = [leaf.shape for leaf in tree_leaves(example) if isinstance(leaf, torch.Tensor)]
        module, description, notes = load_network(source, tuple(sizes[0][1:]) if sizes else None)
        return module, description, notes, example, None
    loaded = load_model(source)
    image = example_inputs([",".join(map(str, loaded.input_size))])
    return loaded.module, loaded.description, loaded.warnings, image, loaded


def _equal_cut(groups: gbn.ChannelGroups, macs: gbn.CostModel, keep: float) -> Mask:
    """The largest equal share of every group whose MACs are at or under `keep` of all."""
    whole = macs.total(np.ones(groups.num_atoms, dtype=np.bool_))
    low, high = 0.0, 1.0
    best = _share(groups, 0.0)
    for _ in range(20):
        middle = (low + high) / 2
        alive = _share(groups, middle)
        if macs.total(alive) <= keep * whole:
            low, best = middle, alive
        else:
            high = middle
    return best


def _share(groups: gbn.ChannelGroups, share: float) -> Mask:
    alive = np.zeros(groups.num_atoms, dtype=np.bool_)
    for group in groups.groups:
        # spread over the group, so that parts of it that lie in fewer layers are cut alike
        count = max(round(share * len(group.atoms)), 1)
        chosen = np.linspace(0, len(group.atoms) - 1, count).round().astype(int)
        alive[[group.atoms[i] for i in np.unique(chosen)] if group.atoms else []] = True
    return alive


def _row(
    groups: gbn.ChannelGroups,
    macs: gbn.CostModel,
    group: gbn.Group,
    alive: Mask,
    settings: gbn.PlanSettings,
) -> GroupRow:
    own = set(group.atoms)
    terms = macs.per_term(groups.counts(np.ones(groups.num_atoms, dtype=np.bool_)))
    touched = [any(own & set(groups.dims[d].atoms.tolist()) for d in dims) for dims in macs.dims]
    kept = group.size if group.dim < 0 else len(groups.dims[group.dim].kept(alive))
    return GroupRow(
        name=group.name,
        layers=group.layers,
        size=int(group.size),
        num_prunable=int(group.size - group.num_fixed),
        macs_share=float(terms[touched].sum() / max(terms.sum(), 1)),
        multiple=settings.multiple_of(len(group.atoms)),
        equal_cut_keeps=kept,
        frozen=group.frozen,
        reason=group.reason,
    )


def show(inspection: Inspection, console: RunConsole) -> None:
    """The table for a terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("group", "layers", "width", "prunable", "MACs", "multiple"):
        table.add_column(heading, justify="left" if heading == "group" else "right")
    table.add_column(f"equal cut to {inspection.equal_cut:.0%}", justify="right")
    table.add_column("why not")
    for row in inspection.groups:
        why = (row.reason or "") if row.num_prunable < row.size else ""
        table.add_row(
            Text(row.name), str(len(row.layers)), str(row.size), str(row.num_prunable),
            f"{row.macs_share:.1%}", str(row.multiple), str(row.equal_cut_keeps), Text(why),
        )  # fmt: skip
    frozen = sum(row.frozen for row in inspection.groups)
    lines = [
        inspection.description,
        f"{inspection.num_macs / 1e6:,.1f} M MACs, {inspection.num_params:,} parameters, "
        f"{len(inspection.groups)} groups of channels, {frozen} of them frozen",
        f"smallest reachable: {inspection.smallest_flops_kept:.1%} of the MACs",
    ]
    if inspection.num_frozen_params:
        lines.append(f"{inspection.num_frozen_params:,} parameters do not learn (requires_grad)")
    for op, modules in inspection.unknown_ops.items():
        lines.append(f"no rule for {op}, in {', '.join(m or 'the model itself' for m in modules)}")
    lines += [f"frozen: {place}" for place in inspection.hard_coded]
    tables: list[Table | str] = [table]
    if (alone := inspection.cut_alone) is not None:
        told = f"{alone['metric']} on {alone['samples']} images: {alone['as_given']:.2%} as given;"
        tables += ["", f"{told} with one group cut and nothing done about it:", "", _alone(alone)]
    console.result(Lines(*tables, "", *(Text(line) for line in lines)))
    for warning in inspection.warnings:
        console.warn(warning)


def _alone(found: dict[str, Any]) -> Table:
    """Scores, and accuracies with each group cut alone."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("group")
    shares = [] if not found["groups"] else [*found["groups"][0]["accuracy"]]
    for heading in ("of all scores", *(f"{float(share):.0%} cut" for share in shares)):
        table.add_column(heading, justify="right")
    for row in found["groups"]:
        values = ["-" if v is None else f"{v:.2%}" for v in row["accuracy"].values()]
        table.add_row(Text(row["name"]), f"{row['share_of_scores']:.1%}", *values)
    return table
