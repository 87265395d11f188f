"""Networks at half of their MACs, ours and Torch-Pruning's, as ONNX files to be timed.

No command: `benchmarks.latency` calls it. What enters: a network's name and a folder. What leaves:
original.onnx, ours.onnx, peer.onnx and peer-8.onnx there; those that are there already stay.
"""

import copy
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import exporters
import gbn
from benchmarks.main_models import build
from benchmarks.tables import RUNS
from pipeline.baseline import measure_baseline
from pipeline.config_file import build_config
from pipeline.console import RunConsole
from pipeline.goal import set_goal
from pipeline.latency.goal import LatencyGoal

PEERS = RUNS / "peers"
KEEP = 0.5
FILES = ("original", "ours", "peer", "peer-8")
SPARING = (0.0, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
_BISECTIONS = 9


def make_files(name: str, image: int, folder: Path) -> None:
    """Write what is missing. `image`: height and width."""
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[nn.Module, torch.Tensor], nn.Module]] = {
        "original": lambda model, _: model,
        "ours": lambda *_: _ours(name, image, folder),
        "peer": lambda model, x: _peer(model, x, None),
        "peer-8": lambda model, x: _peer(model, x, 8),
    }
    for kind, make in makers.items():
        path = folder / f"{kind}.onnx"
        if path.is_file():
            continue
        model, _ = build(name)
        example = torch.randn(1, 3, image, image, generator=torch.Generator().manual_seed(0))
        made = make(model, example).eval()
        exporters.export_onnx(
            made,
            exporters.ExportRequest(example_inputs=(example.expand(2, -1, -1, -1),), path=path),
        )


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """A network as the main job takes it: its channels and the goal in time."""

    network: nn.Module
    groups: gbn.ChannelGroups
    latency: LatencyGoal
    settings: gbn.PlanSettings


def _timed(name: str, image: int, folder: Path) -> _Timed:
    """Measured as the main job measures it for `--target-latency`."""
    model, _ = build(name)
    weights = folder / "weights.pt"
    torch.save(model.state_dict(), weights)
    config = build_config(
        {
            "model": str(weights),
            "arch": f"torchvision:{name}",
            "input_size": f"3,{image},{image}",
            "target_latency": "0.9x",
        }
    )
    console = RunConsole(verbosity=1)
    with tempfile.TemporaryDirectory() as scratch:
        baseline = measure_baseline(config, console, Path(scratch))
        goal = set_goal(config, baseline, console)
    assert goal.latency is not None, "a target in time was given"
    return _Timed(
        network=baseline.loaded.module,
        groups=baseline.groups,
        latency=goal.latency,
        settings=goal.settings,
    )


def _ours(name: str, image: int, folder: Path) -> nn.Module:
    """By magnitude, where each millisecond costs least of it, until half of the MACs are left.

    Of a few plans that spare MACs more or less, the one that is fastest by the measured layers.
    """
    found = _timed(name, image, folder)
    macs, time = gbn.CostModel.macs(found.groups), found.latency.network.cost
    half = int(KEEP * macs.total(np.ones(found.groups.num_atoms, dtype=np.bool_)))
    scores = gbn.magnitude_scores(found.network, found.groups)
    plans = []
    for weight in SPARING:
        worth = gbn.Sparing(of=time, leaving=macs, weight=weight)
        limit = gbn.Limit(cost=macs, at_most=half, unit="MACs", spent_for=worth)
        plans.append(gbn.choose_within(found.groups, scores, [limit], settings=found.settings))
    modelled = [round(time.total(alive) / 1e6, 3) for alive in plans]
    print(f"{name}: modelled ms by sparing {modelled}", flush=True)
    plan = gbn.PrunePlan.of(found.groups, min(plans, key=time.total))
    return gbn.prune(found.network, plan)


def _peer(model: nn.Module, example: torch.Tensor, round_to: int | None) -> nn.Module:
    """The same share of every layer, as near below half of the MACs as bisection finds it."""
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    import torch_pruning

    before, _ = torch_pruning.utils.count_ops_and_params(model, example)
    low, high, found = 0.0, 0.8, None
    for _ in range(_BISECTIONS):
        ratio = (low + high) / 2
        tried = copy.deepcopy(model)
        options: dict[str, Any] = {} if round_to is None else {"round_to": round_to}
        torch_pruning.pruner.MagnitudePruner(
            tried,
            example,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[m for m in tried.modules() if isinstance(m, nn.Linear)],
            **options,
        ).step()
        after, _ = torch_pruning.utils.count_ops_and_params(tried, example)
        if after <= KEEP * before:
            high, found = ratio, tried
        else:
            low = ratio
    if found is None:
        raise RuntimeError("Torch-Pruning does not reach half of the MACs")
    return found
