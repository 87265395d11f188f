"""onnxsim's structured pruning of the same file, beside a run without data.

No command: `benchmarks.data_free` calls it. What enters: the share to keep and the ONNX file of the
original. What leaves: the pruned file with the most MACs that the share allows. It works on weights
alone, from file to file; there is nothing to recover with.
"""

import sys
from pathlib import Path

import onnx

import exporters
from benchmarks.tables import RUNS

PEERS = RUNS / "peers"
WAYS = {"every layer alike": False, "one threshold": True}
"""`global_sparsity` of onnxsim."""
_BISECTIONS = 12


def is_installed() -> bool:
    """In bench-runs/peers, where `make bench-data-free` puts it."""
    return (PEERS / "onnxsim").is_dir()


def pruned(share: float, original: Path, target: Path, way: str) -> float:
    """Write the pruned file to `target`; the share of the MACs that is left."""
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    from onnxsim.pruning import apply_structured_pruning

    model, whole = onnx.load(original), exporters.count_macs(original).num_macs
    low, high, found = 0.0, 1.0, None
    for _ in range(_BISECTIONS):
        sparsity = (low + high) / 2
        onnx.save(apply_structured_pruning(model, sparsity, global_sparsity=WAYS[way]), target)
        kept = exporters.count_macs(target).num_macs / whole
        if kept <= share:
            high, found = sparsity, kept
        else:
            low = sparsity
    if found is None:
        raise RuntimeError(f"onnxsim does not reach {share:.0%} of the MACs")
    onnx.save(apply_structured_pruning(model, high, global_sparsity=WAYS[way]), target)
    return found
