"""`make bench-coverage` (`python -m benchmarks.coverage`): what can be pruned, and what cannot.

For each network of the public lists: follow its channels, plan to 50 % of the MACs (or as near as
the network allows, down to 60 %), remove the channels, prove the result, export original and result
and compare the file with its network. Beside it Torch-Pruning's dependency graph on the same
network: seconds to build, and whether what it prunes to half of each width still runs.

Each network runs in a process of its own, the peer in another, and its outcome is kept under
bench-runs/coverage, so that the command goes on where it stopped. Writes docs/coverage.md. Options:
`--no-export` leaves the export out (it takes most of the time), `--only LIBRARY[:NAME]` measures
one network or one library, `--workers N` measures N networks at a time, each on one thread,
`--retime` measures the times of all anew.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.tables import ROOT, RUNS, SHARED, markdown_table, measured_with

CACHE = RUNS / "coverage"
PEERS = RUNS / "peers"
DOCUMENT = ROOT / "docs" / "coverage.md"
TIMEOUT_S = 1200
PEER_TIMEOUT_S, PEER_BYTES = 60, 12 * 2**30
KEEP, STILL_GOOD = 0.5, 0.6
TRIAL_SIZES = {"inception_v3": 299, "ssdlite320_mobilenet_v3_large": 320}
HEADER = (
    *("network", "groups", "atoms", "frozen", "kept", "proof", "ONNX parity", "trace, s"),
    *("peer builds, s", "peer's result runs", "result"),
)


def names() -> list[str]:
    """`library:name` of all networks of the lists, in their order."""
    return [
        f"{library}:{line.strip()}"
        for library in ("torchvision", "timm")
        for line in (SHARED / "zoo" / f"{library}_public.txt").read_text().splitlines()
        if line.strip()
    ]


def measure(spec: str, export: bool) -> None:
    """Print one JSON object after each stage; whatever goes wrong ends the process."""
    import numpy as np
    import torch

    import gbn

    torch.set_num_threads(1)
    model, example = build(spec)
    groups = gbn.trace(model, example)
    _say(**_counts(groups))
    macs = gbn.CostModel.macs(groups)
    whole = macs.total(np.ones(groups.num_atoms, dtype=np.bool_))
    least = gbn.smallest(groups, macs, gbn.PlanSettings()) / whole
    _say(smallest=least)
    if least > STILL_GOOD:
        freer = gbn.trace(model, example, prune_norms=True)
        costs = gbn.CostModel.macs(freer)
        reached = gbn.smallest(freer, costs, gbn.PlanSettings()) / whole
        if reached < least:  # a freeze may fall less well where more is free
            groups, macs, least = freer, costs, reached
            _say(smallest_with_norms=least, **_counts(groups))
    scores = gbn.magnitude_scores(model, groups)
    plan = gbn.plan(groups, scores, flops=max(KEEP, least + 0.005))
    small = gbn.prune(model, plan)
    proof = gbn.prove(model, plan, small, example)
    _say(proof=proof.max_abs_diff, ok=proof.ok, vacuous=proof.vacuous)
    after = gbn.trace(small, example)
    kept = gbn.CostModel.macs(after).total(np.ones(after.num_atoms, dtype=np.bool_))
    _say(kept=kept / whole)
    if export and isinstance(example, torch.Tensor):
        _export(model, small, example)


def measure_trace(spec: str) -> None:
    """Seconds of the trace alone, in a process that does nothing else."""
    import torch

    import gbn

    torch.set_num_threads(1)
    model, example = build(spec)
    gbn.trace(torch.nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8))  # torch loads some parts late
    start = time.perf_counter()
    gbn.trace(model, example)
    _say(trace_s=time.perf_counter() - start, timed_alone=True)


def _counts(groups: Any) -> dict[str, Any]:
    frozen = [g for g in groups.groups if g.frozen]
    reasons = Counter(g.reason for g in frozen)
    return {
        "groups": len(groups.groups),
        "atoms": groups.num_atoms,
        "frozen": len(frozen),
        "reasons": reasons.most_common(3),
        "unknown_ops": sorted(groups.unknown_ops),
        "hard_coded": list(groups.hard_coded[:3]),
    }


def _export(model: Any, small: Any, example: Any) -> None:
    import exporters

    with tempfile.TemporaryDirectory() as folder:
        for when, network in (("before", model), ("after", small)):
            path = Path(folder, f"{when}.onnx")
            request = exporters.ExportRequest(example_inputs=(example,), path=path)
            try:
                exporters.export_onnx(network, request)
            except exporters.ExportError as error:
                _say(**{f"export_{when}": str(error)[:200]})
                if when == "before":
                    return  # torch's exporter cannot take the original either
                raise
        session = exporters.open_session(path)
        batch = example.repeat(2, *[1] * (example.ndim - 1))
        _say(parity=exporters.check_parity(small, session, [batch]).max_abs_diff)


def measure_peer(spec: str) -> None:
    """Torch-Pruning on the same network: its graph and groups, then each width to one half."""
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(PEERS))
    import torch_pruning

    model, example = build(spec)
    torch_pruning.DependencyGraph().build_dependency(
        torch.nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8)
    )
    start = time.perf_counter()
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(model, example)
        count_groups(graph)
        _say(peer_s=time.perf_counter() - start)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            example,
            importance=torch_pruning.importance.MagnitudeImportance(),
            pruning_ratio=0.5,
            ignored_layers=_heads(model),
        )
        pruner.step()
        model(example)
        _say(peer="runs")
    except Exception as error:  # a peer may fail in any way: that is what is counted
        _say(peer=f"{type(error).__name__}: {str(error)[:60]}")


def count_groups(graph: Any) -> int:
    """Groups that the peer makes of its graph."""
    from torch import nn

    kinds = [nn.modules.conv._ConvNd, nn.Linear]
    return sum(1 for _ in graph.get_all_groups(root_module_types=kinds))


def _heads(model: Any) -> list[Any]:
    from torch import nn

    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return linear[-1:]


def build(spec: str) -> tuple[Any, Any]:
    """Network in eval mode with norms, biases and zero parameters randomised, and an input."""
    import torch

    torch.manual_seed(0)
    library, _, name = spec.partition(":")
    if library == "timm":
        import timm

        model = timm.create_model(name, pretrained=False)
        size = tuple(model.pretrained_cfg.get("input_size") or (3, 224, 224))
    else:
        import torchvision

        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name in torchvision.models.list_models(torchvision.models):
            model = torchvision.models.get_model(name, weights=None, **extra)
        else:
            model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
        size = (3, *[TRIAL_SIZES.get(name, 224)] * 2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1 or not parameter.any():
                parameter.uniform_(0.5, 1.5).mul_(0.5)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif buffer_name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    example = torch.randn(1, *size)
    detector = library == "torchvision" and ("ssd" in name or "rcnn" in name)
    return model.eval(), ([example[0]],) if detector else example


def _say(**found: object) -> None:
    print(json.dumps(found, default=float), flush=True)


def outcome(spec: str, export: bool, retime: bool = False) -> dict[str, Any]:
    """What one network came to; measured once and then read from the cache."""
    cached = CACHE / f"{spec.replace(':', '-')}{'' if export else '-no-export'}.json"
    if cached.is_file():
        found: dict[str, Any] = json.loads(cached.read_text())
        if retime:
            found |= times(spec)
            cached.write_text(json.dumps(found))
        return found
    found = {"name": spec}
    found |= _run(["--measure", spec, *([] if export else ["--no-export"])], TIMEOUT_S, None)
    found |= times(spec)
    found["result"] = judge(found)
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_text(json.dumps(found))
    return found


def times(spec: str) -> dict[str, Any]:
    """Of the trace and of the peer, one after the other."""
    found = _run(["--measure-trace", spec], TIMEOUT_S, None)
    if (PEERS / "torch_pruning").is_dir():
        peer = _run(["--measure-peer", spec], PEER_TIMEOUT_S, PEER_BYTES)
        if "error" in peer and "peer" not in peer:
            peer["peer"] = peer["error"][:60]
        found |= peer
    return {key: value for key, value in found.items() if key != "error"}


def _run(arguments: list[str], timeout_s: float, max_bytes: int | None) -> dict[str, Any]:
    """What a process of this file says, and the last line of its error where it failed."""

    def limit() -> None:
        if max_bytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, max_bytes))

    found: dict[str, Any] = {}
    command = [sys.executable, "-m", "benchmarks.coverage", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=limit,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        found["error"] = f"took more than {timeout_s} s"
    for line in output.splitlines():
        found |= json.loads(line) if line.startswith("{") else {}
    if process.returncode and "error" not in found:
        found["error"] = (errors.strip().splitlines() or ["no message"])[-1][:300]
        if process.returncode < 0:
            found["error"] = f"killed by signal {-process.returncode}"
    return found


def judge(found: dict[str, Any]) -> str:
    """In words: pruned, limited (with the commonest reason), or failed."""
    if "error" in found:
        return f"FAILED: {found['error']}"
    if not found["ok"] or found["vacuous"]:
        return "FAILED: the proof"
    if found.get("parity", 0.0) > 1e-4:
        return "FAILED: ONNX parity"
    if found["kept"] > STILL_GOOD:
        reason = found["reasons"][0][0] if found["reasons"] else "unknown"
        return f"limited to {found['kept']:.0%}: {reason}"
    with_norms = found.get("smallest_with_norms", 1.0) <= STILL_GOOD
    return "pruned, norms too" if with_norms else "pruned"


def row(found: dict[str, Any]) -> tuple[str, ...]:
    """The cells of `HEADER`."""

    def cell(key: str, form: str) -> str:
        return form.format(found[key]) if key in found else "-"

    frozen = f"{found['frozen'] / max(found['groups'], 1):.0%}" if "frozen" in found else "-"
    return (
        found["name"], cell("groups", "{}"), cell("atoms", "{}"), frozen, cell("kept", "{:.1%}"),
        cell("proof", "{:.1e}"), cell("parity", "{:.1e}"), cell("trace_s", "{:.2f}"),
        cell("peer_s", "{:.2f}"), cell("peer", "{}"), found["result"],
    )  # fmt: skip


def document(outcomes: list[dict[str, Any]]) -> str:
    """The content of docs/coverage.md."""
    pruned = sum(o["result"].startswith("pruned") for o in outcomes)
    failed = sum(o["result"].startswith("FAILED") for o in outcomes)
    timed = [o for o in outcomes if o.get("peer_s") and o.get("timed_alone")]
    ratios = sorted(o["trace_s"] / o["peer_s"] for o in timed)
    median = f"{ratios[len(ratios) // 2]:.2f}" if ratios else "not measured"
    exported = [o for o in outcomes if "parity" in o]
    refused = sum("export_before" in o for o in outcomes)
    return (
        "# Which networks can be pruned\n\n"
        f"Measured by `make bench-coverage` with {measured_with()}.\n\n"
        f"{pruned} of {len(outcomes)} networks were cut to at most {STILL_GOOD:.0%} of their MACs "
        f"with the proof passing, {len(outcomes) - pruned - failed} are limited for a named reason "
        f"and {failed} failed. Tracing and grouping took {median} times as long as the peer's "
        f"graph and groups (Torch-Pruning 1.6.1, median over {len(timed)} networks that it could "
        "follow, one after the other on one thread).\n\n"
        f"{len(exported)} were exported and agree with onnxruntime to "
        f"{max((o['parity'] for o in exported), default=0.0):.0e} of the largest output at worst; "
        f"{refused} are more than torch's exporter takes before any pruning.\n\n"
        "Where a network cannot reach 60 % without, its norms over channels may lose some as well "
        "(`--prune-norms`; *pruned, norms too*): they then normalise over what is left, and so "
        "does the reference of the proof.\n\n"
        f"{markdown_table(HEADER, map(row, outcomes))}"
    )


def main() -> int:
    """Measure all networks; 1 where any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-export", action="store_true")
    parser.add_argument("--retime", action="store_true")
    parser.add_argument("--only")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--measure")
    parser.add_argument("--measure-trace")
    parser.add_argument("--measure-peer")
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, not options.no_export)
        return 0
    if options.measure_trace:
        measure_trace(options.measure_trace)
        return 0
    if options.measure_peer:
        measure_peer(options.measure_peer)
        return 0
    if not (SHARED / "zoo").is_dir():
        print(f"skipped: the lists of networks are not at {SHARED / 'zoo'}")
        return 0
    only = options.only or ""
    chosen = [only] if ":" in only else [n for n in names() if n.startswith(only)]
    outcomes = []
    with ThreadPoolExecutor(options.workers) as pool:
        for found in pool.map(
            lambda spec: outcome(spec, not options.no_export, options.retime), chosen
        ):
            outcomes.append(found)
            print("  ".join(row(found)), flush=True)
            if not only:
                DOCUMENT.write_text(document(outcomes))
    return int(any(o["result"].startswith("FAILED") for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
