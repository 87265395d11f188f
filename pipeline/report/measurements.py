"""What the stages measured, as plain values: the only thing that a report is made of.

Enters: counts, fractions, times. Leaves: frozen dataclasses.
Refused, with `ValueError`: a measurement that is neither there nor excused, since the code that
made it is wrong and not the user.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CHECKS = ("flops", "params", "surgery", "parity", "accuracy", "latency", "provider")
"""Every check of a run, in the order in which the first failure gives the exit code."""


@dataclass(frozen=True, kw_only=True)
class BeforeAfter:
    """A count on the two exported graphs: MACs, parameters or bytes."""

    before: int
    after: int

    def __post_init__(self) -> None:
        if self.before <= 0 or self.after < 0:
            raise ValueError(f"counts {self.before} before and {self.after} after: nothing counted")

    @property
    def kept(self) -> float:
        """The share that remains."""
        return self.after / self.before


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A metric of the two ONNX files on the same samples.

    in_points: `before` and `after` are fractions in [0, 1], and drops are told in points
    (hundredths); else both are in the metric's own units.
    """

    metric: str
    samples: int
    before: float
    after: float
    higher_is_better: bool = True
    in_points: bool = True

    @property
    def drop(self) -> float:
        """What was lost, in points or in the metric's units; below 0 where it was gained."""
        lost = self.before - self.after if self.higher_is_better else self.after - self.before
        return lost * 100 if self.in_points else lost


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How faithful the new file is to the original on made-up images; says nothing of labels.

    metric: "top1 agreement", a share, or "relative error" of the outputs.
    """

    metric: str
    samples: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest difference of two networks' outputs as a share of their scale, and what is allowed.

    The scale is the largest absolute value of the reference's output.
    """

    max_abs_diff: float
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class Surgery(Difference):
    """The worst of all cuts; `num_overruled`: choices by value that the smaller networks followed.

    By rounding they would have made them otherwise.
    """

    num_overruled: int = 0


@dataclass(frozen=True, kw_only=True)
class LatencySummary:
    """Times of one model over `n` runs, in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int
    cv: float = 0.0
    """Standard deviation over mean: the noise."""
    quantiles_ms: tuple[float, ...] = ()
    """At 0, 1, ... 100 per cent of the runs: the whole distribution."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Both models, timed in turns; `speedup` is before/after, median of the pairs."""

    provider: str
    batch: int
    before: LatencySummary
    after: LatencySummary
    speedup_median: float
    speedup_ci95: tuple[float, float]
    """Low and high end of the median's 95 % interval."""
    threads: int = 1
    """Of the CPU."""
    undisturbed_share: float = 1.0
    """Of the rounds: those that no other process broke, which the speed-up comes from."""
    warnings: tuple[str, ...] = ()
    """What makes the figures less certain."""


@dataclass(frozen=True, kw_only=True)
class Provider:
    """Which execution provider was asked for, and which ones did the work."""

    requested: str
    ran: tuple[str, ...]
    """Those that ran convolutions, linear layers or matrix products; not shape arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """All that a report says; what is None has its reason in `skipped`."""

    flops: BeforeAfter | None
    """MACs at batch 1."""
    params: BeforeAfter | None
    size_bytes: BeforeAfter | None
    accuracy: Accuracy | None
    surgery: Surgery | None
    """Gated-to-zero network against the physically smaller one."""
    parity: Difference | None
    """PyTorch against onnxruntime."""
    latency: Latency | None
    provider: Provider | None
    fidelity: Fidelity | None = None
    """Of a run without data; no check, nothing is promised of it."""
    data_free: Mapping[str, Any] | None = None
    """{made_from, images, held_out, steps, reason} of a run without data."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Check -> why it was not measured."""
    target_flops: int | None = None
    """MACs that may remain, where that was asked."""
    target_params: int | None = None
    """Parameters that may remain, where that was asked."""
    max_accuracy_drop: float | None = None
    """Points, or units of the task's metric, that may be lost, where that was asked."""
    target_latency_ms: float | None = None
    """Median time that may remain, where a time was asked."""
    target_latency_kept: float | None = None
    """Share of the median time that may remain, where a share was asked."""
    latency_tolerance: float = 0.0
    """A target of time is met up to this share above it: times measured twice differ."""
    latency_layers: Mapping[str, Any] = field(default_factory=dict)
    """{nodes_ms, rows}: what each layer cost before and after, or {skipped: why}."""
    latency_plan: Mapping[str, Any] | None = None
    """How the target of time was planned, where one was asked."""
    uncounted_ops: Mapping[str, int] = field(default_factory=dict)
    """Op type -> how many nodes the MAC count leaves out."""
    groups: Sequence[Mapping[str, Any]] = ()
    """One {name, size_before, size_after, layers, frozen, reason} for each channel group."""
    layers: Sequence[Mapping[str, Any]] = ()
    """One {name, kind, before, after}, widths, for each convolution and linear layer."""
    history: Mapping[str, Any] | None = None
    """{metric, samples, higher_is_better, in_points, points: [{name, kind, flops_kept, value}]}:
    check-ups in PyTorch after each phase, on a few held-out images."""
    sensitivity: Mapping[str, Any] | None = None
    """{metric, samples, in_points, higher_is_better, groups: [{name, kept, value}]}: the network
    as given with one group's cut alone, nothing recovered."""
    stages: Sequence[Mapping[str, Any]] = ()
    """One {name, seconds, ...} for each stage."""
    precision: Mapping[str, Any] = field(default_factory=lambda: {"kind": "fp32"})
    """{kind, ...}: fp32, fp16 or int8, and what was chosen for it."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """From `environment()`."""

    def __post_init__(self) -> None:
        unknown = set(self.skipped) - set(CHECKS)
        if unknown:
            raise ValueError(f"skipped names no check: {sorted(unknown)}; checks are {CHECKS}")
        unexcused = [c for c in CHECKS if getattr(self, c) is None and not self.skipped.get(c)]
        if unexcused:
            raise ValueError(f"neither measured nor skipped with a reason: {unexcused}")
        both = [c for c in self.skipped if getattr(self, c) is not None]
        if both:
            raise ValueError(f"both measured and skipped: {both}")
