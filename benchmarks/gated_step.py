"""`python -m benchmarks.gated_step` (`make bench-gated-step`): what gates add to a training step.

A step is forward, backward and SGD; the gated one has a gate on every channel and accumulates
scores. Both networks start alike and take turns in one process. Prints the ratio of times,
the median over pairs with its bootstrap interval, and the ratio of peak memories, and writes
docs/gated-step.md. Exits with 1 where a median is above 1.10.
"""

import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import gbn
from benchmarks.cifar_models import resnet20
from benchmarks.tables import ROOT, markdown_table, measured_with

LIMIT = 1.10
SEED = 0
WARMUP_PAIRS = 3
NUM_PAIRS = 40
NUM_RESAMPLES = 10_000
DOCUMENT = ROOT / "docs" / "gated-step.md"
HEADER = (
    "network",
    "batch",
    "plain, ms",
    "gated, ms",
    "time ratio",
    "95 %",
    "peak memory ratio",
    "kB more",
)

Times = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and the shape (N, C, H, W) of its training batches."""

    name: str
    build: Callable[[], nn.Module]
    batch: tuple[int, int, int, int]


def _mobilenet_v2() -> nn.Module:
    model: nn.Module = torchvision.models.mobilenet_v2(weights=None, num_classes=10)
    return model


CASES = (
    Case(name="ResNet-20", build=resnet20, batch=(128, 3, 32, 32)),
    Case(name="MobileNetV2", build=_mobilenet_v2, batch=(64, 3, 64, 64)),
)


class Stepper:
    """Trains a network on one batch, again and again; with `groups` it is gated and scored."""

    def __init__(self, case: Case, device: torch.device, groups: gbn.ChannelGroups | None) -> None:
        torch.manual_seed(SEED)
        self._model = case.build().to(device).train()
        # A gate learns by its score alone: the optimizer steps the same weights in both networks.
        weights = list(self._model.parameters())
        self._gates = gbn.Gates(self._model, groups) if groups is not None else None
        self._optimizer = torch.optim.SGD(weights, lr=0.01, momentum=0.9)
        self._images = torch.randn(*case.batch, device=device)
        self._labels = torch.randint(10, case.batch[:1], device=device)

    def step(self) -> Tensor:
        """One training step; the loss."""
        loss = F.cross_entropy(self._model(self._images), self._labels)
        self._optimizer.zero_grad()
        loss.backward()
        if self._gates is not None:
            self._gates.accumulate()
        self._optimizer.step()
        return loss.detach()

    def timed_step_ms(self) -> float:
        """Milliseconds of one step, the device's work included."""
        start = time.perf_counter()
        float(self.step())
        return 1000 * (time.perf_counter() - start)


def paired_times_ms(plain: Stepper, gated: Stepper) -> tuple[Times, Times]:
    """(NUM_PAIRS,) of each; who goes first changes with every pair."""
    found = np.zeros((2, WARMUP_PAIRS + NUM_PAIRS))
    for pair in range(found.shape[1]):
        for which in (0, 1) if pair % 2 else (1, 0):
            found[which, pair] = (plain, gated)[which].timed_step_ms()
    return found[0, WARMUP_PAIRS:], found[1, WARMUP_PAIRS:]


def median_interval(ratios: Times) -> tuple[float, float]:
    """The bootstrap's 95 % interval of the median."""
    rng = np.random.default_rng(SEED)
    drawn = rng.choice(ratios, (NUM_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)


def peak_bytes(case: Case, device: torch.device, groups: gbn.ChannelGroups | None) -> int:
    """The most that all tensors hold at once: network, gradients, optimizer and one step."""
    gc.collect()  # what an earlier network left must not be released while this one is measured
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        _two_steps(case, device, groups)
        return torch.cuda.max_memory_allocated(device) - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        _two_steps(case, device, groups)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    found = [event["args"] for event in events if event["name"] == "[memory]"]
    # The profiler's total goes on from one recording to the next: count from where this one began.
    first = min(found, key=lambda change: int(change["Ev Idx"]))
    base = int(first["Total Allocated"]) - int(first["Bytes"])
    return max(int(change["Total Allocated"]) for change in found) - base


def _two_steps(case: Case, device: torch.device, groups: gbn.ChannelGroups | None) -> None:
    stepper = Stepper(case, device, groups)
    stepper.step()
    stepper.step()


def measure(case: Case, device: torch.device) -> tuple[tuple[str, ...], bool]:
    """The cells of `HEADER`, and whether both ratios are within the limit."""
    groups = gbn.trace(case.build(), torch.randn(1, *case.batch[1:]))
    plain, gated = paired_times_ms(Stepper(case, device, None), Stepper(case, device, groups))
    ratios = gated / plain
    time_ratio = float(np.median(ratios))
    low, high = median_interval(ratios)
    plain_bytes, gated_bytes = peak_bytes(case, device, None), peak_bytes(case, device, groups)
    memory_ratio = gated_bytes / plain_bytes
    cells = (
        *(case.name, "x".join(str(n) for n in case.batch)),
        *(f"{np.median(plain):.1f}", f"{np.median(gated):.1f}"),
        *(f"{time_ratio:.3f}", f"{low:.3f} to {high:.3f}", f"{memory_ratio:.4f}"),
        f"{(gated_bytes - plain_bytes) / 1e3:+.1f}",
    )
    return cells, max(time_ratio, memory_ratio) <= LIMIT


def main() -> int:
    """Measure every case; 1 where a ratio is above the limit."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, all_within = [], True
    for case in CASES:
        cells, within = measure(case, device)
        rows.append(cells)
        all_within &= within
        print("  ".join(f"{name}: {cell}" for name, cell in zip(HEADER, cells, strict=True)))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    DOCUMENT.write_text(
        "# What gates add to a training step\n\n"
        f"Measured on {where} by `make bench-gated-step` with {measured_with()}.\n\n"
        "A step is forward, backward and SGD in float32; the gated one has a gate on every channel "
        "and accumulates scores. Both networks take turns in one process; the ratio is the median "
        f"over {NUM_PAIRS} pairs with its bootstrap interval. Peak memory is of all tensors: "
        f"network, gradients, optimizer and step. The limit of both ratios is {LIMIT:.2f}.\n\n"
        f"{markdown_table(HEADER, rows)}"
    )
    print(f"wrote {DOCUMENT.relative_to(ROOT)}")
    print(f"limit of both ratios: {LIMIT:.2f}: {'met' if all_within else 'MISSED'}")
    return 0 if all_within else 1


if __name__ == "__main__":
    sys.exit(main())
