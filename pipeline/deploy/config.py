"""What `compress verify` and `compress bench` are asked, checked the moment it is made.

Enters: option values. Leaves: a frozen `VerifyConfig` or `BenchConfig`.
Refused, with `UsageError`: files that are not there, values out of range, and options that have no
effect beside the others.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config_sections import require, require_file
from pipeline.deploy import units
from pipeline.errors import UsageError

DEFAULT_VERIFY_SECONDS = 20.0
DEFAULT_BENCH_SECONDS = 5.0
_MOST = 2**20  # of a batch, or of one size of an input
_SIZE = re.compile(r"(?:(?P<name>[^,]+):)?(?P<sizes>\d+(?:,\d+)*)")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How the files are run. batches: empty takes the file's own, or 1.

    threads: of the CPU, each on a core of its own. input_sizes: (input name, shape without the
    batch) for sizes that the files leave open; the name None means the only input.
    """

    provider: str = "cpu"
    batches: tuple[int, ...] = ()
    threads: int = 1
    max_seconds: float = DEFAULT_VERIFY_SECONDS
    input_sizes: tuple[tuple[str | None, tuple[int, ...]], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for batch in self.batches:
            require(batch >= 1, f"--batch-size: {batch} is below 1")
            require(batch <= _MOST, f"--batch-size: {batch} is above {_MOST:,}")
        repeated = len(set(self.batches)) < len(self.batches)
        require(not repeated, f"--batch-size: a size is given twice: {self.batches}")
        require(self.threads >= 1, f"--threads: {self.threads} is below 1")
        good = math.isfinite(self.max_seconds) and 0.5 <= self.max_seconds <= 3600
        require(good, f"--max-seconds: {self.max_seconds} is outside 0.5 to 3600")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What must hold of the candidate; None is not asked.

    max_regression is a share (0.03 = 3 % slower), max_accuracy_drop in points, min_accuracy a
    fraction, parity_tolerance a share of the output's scale.
    """

    max_size_bytes: int | None = None
    parity_tolerance: float | None = None
    min_accuracy: float | None = None
    max_accuracy_drop: float | None = None
    max_latency_ms: float | None = None
    min_speedup: float | None = None
    max_regression: float | None = None

    def __post_init__(self) -> None:
        drop, parity = self.max_accuracy_drop, self.parity_tolerance
        require(
            drop is None or 0 <= drop <= 100,
            f"--max-accuracy-drop: {drop} is outside 0 to 100 points: 0.5 allows 93.0 % to 92.5 %",
        )
        require(
            parity is None or 0 < parity < 1,
            f"--parity-tolerance: {parity} is not a share of the output's scale between 0 and 1",
        )

    @property
    def on_accuracy(self) -> bool:
        """Whether accuracy must be measured."""
        return self.min_accuracy is not None or self.max_accuracy_drop is not None

    @property
    def on_latency(self) -> bool:
        """Whether latency must be measured."""
        times = (self.max_latency_ms, self.min_speedup, self.max_regression)
        return any(limit is not None for limit in times)

    @property
    def need_a_run(self) -> bool:
        """Whether the files must run."""
        return self.parity_tolerance is not None or self.on_accuracy or self.on_latency

    @property
    def need_baseline(self) -> tuple[str, ...]:
        """The options given that compare with a baseline."""
        asked = {
            "--parity-tolerance": self.parity_tolerance,
            "--max-accuracy-drop": self.max_accuracy_drop,
            "--min-speedup": self.min_speedup,
            "--max-latency-regression": self.max_regression,
        }
        return tuple(option for option, limit in asked.items() if limit is not None)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """One gate: the files, the limits and how to run. mean, std: for --data, as in the main job."""

    candidate: Path
    baseline: Path | None
    limits: Limits
    runtime: RuntimeConfig
    provider_asked: bool = False
    data: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    undecided_passes: bool = False

    def __post_init__(self) -> None:
        require_file(self.candidate, "CANDIDATE", "an ONNX file")
        if self.baseline is not None:
            require_file(self.baseline, "--baseline", "an ONNX file")
        limits = self.limits
        relative = limits.need_baseline
        require(
            not relative or self.baseline is not None,
            f"{', '.join(relative)}: compares with a baseline: give --baseline FILE.onnx",
        )
        require(
            not limits.on_accuracy or self.data is not None,
            "accuracy cannot be checked without labelled images: give --data",
        )
        require(
            limits.on_accuracy or limits.parity_tolerance is not None or self.data is None,
            "--data has no effect: give --min-accuracy, --max-accuracy-drop or --parity-tolerance",
        )
        require(
            limits.on_latency or limits.parity_tolerance is not None or not self.runtime.batches,
            "--batch-size has no effect: it is of latency and parity, and no such limit is given",
        )
        require(
            limits.need_a_run or not self.runtime.input_sizes,
            "--input-size has no effect: no limit is given for which the file must run",
        )
        require(
            limits.need_a_run or limits.max_size_bytes is not None or self.provider_asked,
            "nothing to verify: give a limit, e.g. --max-latency 5ms or --max-size 5MB",
        )
        require((self.mean is None) == (self.std is None), "--mean and --std go together")
        require(
            self.mean is None or self.data is not None,
            "--mean and --std have no effect: they are of the images that --data names",
        )


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """The files that take turns, the first being what the others are compared with."""

    files: tuple[Path, ...]
    providers: tuple[str, ...]
    runtime: RuntimeConfig

    def __post_init__(self) -> None:
        for path in self.files:
            require_file(path, "MODEL", "an ONNX file")


def verify_config(options: Mapping[str, Any]) -> VerifyConfig:
    """The `VerifyConfig` of the command line's values. Raises UsageError."""
    readers: dict[str, tuple[str, Callable[[str, str], float]]] = {
        "max_size": ("max_size_bytes", units.num_bytes),
        "min_accuracy": ("min_accuracy", units.fraction),
        "max_latency": ("max_latency_ms", units.milliseconds),
        "min_speedup": ("min_speedup", units.factor),
        "max_latency_regression": ("max_regression", units.per_cent),
    }
    limits: dict[str, Any] = {
        name: read(options[option], f"--{option.replace('_', '-')}")
        for option, (name, read) in readers.items()
        if options[option] is not None
    }
    return VerifyConfig(
        candidate=Path(options["candidate"]),
        baseline=None if options["baseline"] is None else Path(options["baseline"]),
        limits=Limits(
            parity_tolerance=options["parity_tolerance"],
            max_accuracy_drop=options["max_accuracy_drop"],
            **limits,
        ),
        runtime=runtime_config(options, options["provider"] or "cpu", DEFAULT_VERIFY_SECONDS),
        provider_asked=options["provider"] is not None,
        data=options["data"],
        mean=_floats("--mean", options["mean"]),
        std=_floats("--std", options["std"]),
        undecided_passes=options["on_undecided"] == "pass",
    )


def bench_config(options: Mapping[str, Any]) -> BenchConfig:
    """The `BenchConfig` of the command line's values. Raises UsageError."""
    providers = tuple(dict.fromkeys(options["provider"])) or ("cpu",)
    return BenchConfig(
        files=tuple(Path(name) for name in options["models"]),
        providers=providers,
        runtime=runtime_config(options, providers[0], DEFAULT_BENCH_SECONDS),
    )


def runtime_config(
    options: Mapping[str, Any], provider: str, default_seconds: float
) -> RuntimeConfig:
    """What both commands ask of a run."""
    seconds = options["max_seconds"]
    require(options["seed"] >= 0, f"--seed: {options['seed']} is below 0")
    return RuntimeConfig(
        provider=provider,
        batches=tuple(options["batch_size"]),
        threads=1 if options["threads"] is None else options["threads"],
        max_seconds=default_seconds if seconds is None else seconds,
        input_sizes=tuple(_input_size(text) for text in options["input_size"]),
        seed=options["seed"],
    )


def _input_size(text: str) -> tuple[str | None, tuple[int, ...]]:
    match = _SIZE.fullmatch(text.strip())
    sizes = tuple(int(n) for n in match["sizes"].split(",")) if match else ()
    if match is None or min(sizes) < 1 or max(sizes) > _MOST:
        raise UsageError(f"--input-size: {text!r} is not C,H,W or NAME:C,H,W, as in 3,224,224")
    return match["name"], sizes


def _floats(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option}: cannot read {text!r}: give numbers as 0.485,0.456") from error
    require(all(math.isfinite(v) for v in values), f"{option}: {text!r} is not finite")
    return values
