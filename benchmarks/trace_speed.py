"""`make bench-trace` (`python -m benchmarks.trace_speed`): seconds and memory of the trace.

Networks of all kinds from the public lists, one process on one thread. Each is traced and grouped
by `gbn.trace` and by Torch-Pruning's dependency graph in turn, a few rounds each, on the same
model and input; the least of each counts, for both are the same work every time. Then, each in a
process of its own, how much the memory in use grows at most in a trace and in one forward pass of
one image. Writes docs/trace-speed.md. Options: `--only NAME` measures one network and writes
nothing, `--all` the time of all networks of the lists, `--rounds N`, `--no-memory`.
"""

import argparse
import contextlib
import gc
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.coverage import PEERS, build, count_groups, names
from benchmarks.tables import ROOT, markdown_table, measured_with

DOCUMENT = ROOT / "docs" / "trace-speed.md"
PEER_TIMEOUT_S, ROUNDS = 20, 3
NETWORKS = (
    *("torchvision:alexnet", "torchvision:vgg16_bn", "torchvision:resnet18"),
    *("torchvision:resnet50", "torchvision:resnext50_32x4d", "torchvision:densenet121"),
    *("torchvision:googlenet", "torchvision:inception_v3", "torchvision:squeezenet1_0"),
    *("torchvision:mobilenet_v2", "torchvision:mobilenet_v3_large", "torchvision:mnasnet1_0"),
    *("torchvision:efficientnet_b0", "torchvision:efficientnet_b3"),
    *("torchvision:efficientnet_v2_s", "torchvision:regnet_x_800mf"),
    *("torchvision:regnet_y_1_6gf", "torchvision:convnext_tiny", "torchvision:vit_b_32"),
    *("torchvision:swin_t", "torchvision:deeplabv3_mobilenet_v3_large"),
    *("timm:beit_base_patch16_224", "timm:deit_tiny_patch16_224", "timm:dla46_c"),
    *("timm:edgenext_xx_small", "timm:hardcorenas_b", "timm:hgnetv2_b0", "timm:levit_128"),
    *("timm:mobilenetv3_small_050", "timm:mvitv2_tiny", "timm:pvt_v2_b0", "timm:rdnet_tiny"),
    *("timm:regnetx_002", "timm:swiftformer_xs", "timm:legacy_seresnet18", "timm:tresnet_m"),
)
HEADER = ("network", "trace, ms", "peer, ms", "ratio", "trace, MiB", "forward, MiB")


class _TooLong(Exception):  # noqa: N818 - ends a call of the peer
    pass


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def end(_signal: int, _frame: object) -> None:
        raise _TooLong(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def measure(spec: str, rounds: int) -> dict[str, Any]:
    """Least milliseconds of ours and theirs; theirs is missing where it cannot follow."""
    import torch_pruning

    import gbn

    model, example = build(spec)

    def ours() -> None:
        gbn.trace(model, example)

    def theirs() -> None:
        graph = torch_pruning.DependencyGraph().build_dependency(model, example)
        count_groups(graph)

    found: dict[str, Any] = {"name": spec}
    times: dict[str, list[float]] = {"trace_ms": [], "peer_ms": []}
    for number in range(rounds):
        times["trace_ms"].append(_milliseconds(ours))
        if "peer_error" in found:
            continue
        try:
            with _at_most(PEER_TIMEOUT_S):
                times["peer_ms"].append(_milliseconds(theirs))
        except Exception as error:  # a peer may fail in any way: then there is no ratio
            found["peer_error"] = f"{type(error).__name__}: {str(error)[:60]}"
            assert number == 0, "it fails in the same way each time"
    return found | {key: min(values) for key, values in times.items() if values}


def _milliseconds(call: Callable[[], None]) -> float:
    gc.collect()
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def memory(spec: str) -> dict[str, Any]:
    """MiB by which the most memory in use grows, of a trace and of a forward pass."""
    return {what: _grows(spec, what) for what in ("trace_mib", "forward_mib")}


def _grows(spec: str, what: str) -> float:
    command = [sys.executable, "-m", "benchmarks.trace_speed", "--only", spec, "--grow", what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def grow(spec: str, what: str) -> float:
    """In this process, which has run both on a network of one layer before."""
    import torch

    import gbn

    def run(model: Any, example: Any) -> None:
        if what == "trace_mib":
            gbn.trace(model, example)
        else:
            with torch.no_grad():
                model(*example) if isinstance(example, tuple) else model(example)

    run(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU()), torch.zeros(1, 3, 8, 8))
    model, example = build(spec)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the highest use so far
    before = _status("VmRSS")
    run(model, example)
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def row(found: dict[str, Any]) -> tuple[str, ...]:
    """The cells of `HEADER`."""

    def cell(key: str, form: str = "{:.0f}") -> str:
        return form.format(found[key]) if key in found else "-"

    ratio = f"{found['trace_ms'] / found['peer_ms']:.2f}" if "peer_ms" in found else "-"
    peer = found.get("peer_error") or cell("peer_ms")
    cells = (found["name"], cell("trace_ms"), peer, ratio)
    return (*cells, cell("trace_mib", "{:.1f}"), cell("forward_mib", "{:.1f}"))


def summary(outcomes: list[dict[str, Any]]) -> str:
    """The medians, in words."""
    ratios = [o["trace_ms"] / o["peer_ms"] for o in outcomes if "peer_ms" in o]
    grown = [o["trace_mib"] / o["forward_mib"] for o in outcomes if o.get("forward_mib")]
    text = (
        f"Median ratio of the times {statistics.median(ratios):.2f}, from {min(ratios):.2f} to "
        f"{max(ratios):.2f}, over {len(ratios)} networks that the peer can follow."
        if ratios
        else "The peer follows none."
    )
    if grown:
        text += (
            f" The trace's memory is {statistics.median(grown):.2f} of a forward pass's (median), "
            f"{max(grown):.2f} at most."
        )
    return text


def document(outcomes: list[dict[str, Any]], rounds: int) -> str:
    """The content of docs/trace-speed.md."""
    return (
        "# How long the trace takes\n\n"
        f"Measured by `make bench-trace` with {measured_with()}.\n\n"
        "`gbn.trace` (following the channels, grouping them, and trying the groups out in cuts of "
        "the network) beside Torch-Pruning 1.6.1's `build_dependency` and `get_all_groups` (which "
        f"tries nothing), in turn in one process, the least of {rounds} rounds; and by how much "
        "the memory in use grows at most in a trace and in a forward pass of one image, each in a "
        f"fresh process.\n\n{summary(outcomes)}\n\n"
        f"{markdown_table(HEADER, map(row, outcomes))}"
    )


def main() -> int:
    """Measure all networks and write the document."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=names() or NETWORKS, metavar="LIBRARY:NAME")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--grow", choices=("trace_mib", "forward_mib"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.grow:
        print(json.dumps(grow(options.only, options.grow)))
        return 0
    sys.path.insert(0, str(PEERS))
    outcomes = []
    for spec in [options.only] if options.only else names() if options.all else NETWORKS:
        found = measure(spec, options.rounds)
        found |= {} if options.no_memory or options.all else memory(spec)
        outcomes.append(found)
        print("  ".join(row(found)), flush=True)
    print(summary(outcomes))
    if not (options.only or options.all or options.no_memory):
        DOCUMENT.write_text(document(outcomes, options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
