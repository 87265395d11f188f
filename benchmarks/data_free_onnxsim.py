"""onnxsim's structured pruning of the same file, beside a run without data.

`benchmarks.data_free` shows it; `python -m benchmarks.data_free_onnxsim` prints its figures alone,
in a minute. What enters: the share to keep and the ONNX file of the original. What leaves: the
pruned file with the most MACs that the share allows. It works on weights alone, from file to file;
there is nothing to recover with.
"""

import sys
import tempfile
from pathlib import Path

import onnx
import torch

import exporters
from benchmarks.accuracy_data import INPUT, data, prepare, trained_network
from benchmarks.data_free_peer import PEERS

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


def main() -> int:
    """Print top-1 at 80 and 60 % of the MACs; 0 also where the material or onnxsim is absent."""
    if prepare() is None or not is_installed():
        print("skipped: the JPEG copy of CIFAR-10, the trained network or onnxsim is absent")
        return 0
    tests = data(seed=0, epochs=0).val_loader
    with tempfile.TemporaryDirectory() as folder:
        original, target = Path(folder) / "original.onnx", Path(folder) / "pruned.onnx"
        example = (torch.zeros(2, *INPUT),)
        exporters.export_onnx(
            trained_network(), exporters.ExportRequest(example_inputs=example, path=original)
        )
        for share in (0.8, 0.6):
            for way in WAYS:
                kept = pruned(share, original, target, way)
                found = exporters.top1(exporters.open_session(target, "cpu"), tests())
                print(f"{kept:.1%} of the MACs, {way}: {found.value:.2%} of {found.samples}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
