"""`compress bench`: latency of several ONNX files that take turns.

Enters: a checked `BenchConfig`. Leaves: one `BenchRow` for each provider, batch size and file.
Refused: a provider that does not run a file, batch sizes that a file does not take.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

import exporters
from exporters.intervals import median_interval
from exporters.latency import LatencyStats
from pipeline.deploy.config import BenchConfig, RuntimeConfig
from pipeline.deploy.sessions import Runner, batches_of, same_inputs
from pipeline.report.environment import environment


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One file on one provider at one batch size.

    throughput: samples a second at the median. memory_bytes: by how much loading and running it
    raises a process's peak; None where the system does not tell. speedup, speedup_ci95: against the
    first file.
    """

    file: str
    provider: str
    batch: int
    stats: LatencyStats
    throughput: float
    memory_bytes: int | None
    speedup: float
    speedup_ci95: tuple[float, float]
    nodes_elsewhere: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """All rows, what makes them less certain, and where they were measured."""

    rows: tuple[BenchRow, ...]
    warnings: tuple[str, ...]
    environment: dict[str, Any]

    def to_json(self) -> str:
        """Strict JSON, ending in a line break."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


def run_bench(config: BenchConfig) -> BenchResult:
    """Time all files on all providers and batch sizes. Raises ExportError and UsageError."""
    for path in config.files:
        exporters.load_onnx(path)  # says better than onnxruntime what is no ONNX
    rows: list[BenchRow] = []
    warnings: list[str] = []
    for provider in config.providers:
        one = dataclasses.replace(
            config, runtime=dataclasses.replace(config.runtime, provider=provider)
        )
        found, notes = _on_provider(one, len(config.providers))
        rows += found
        warnings += notes
    return BenchResult(
        rows=tuple(rows),
        warnings=tuple(warnings),
        environment=environment(
            seed=config.runtime.seed,
            device=",".join(config.providers),
            provider=",".join(config.providers),
            inputs={str(path): path for path in config.files},
        )
        | {"threads": config.runtime.threads},
    )


def _on_provider(config: BenchConfig, num_providers: int) -> tuple[list[BenchRow], list[str]]:
    runtime = config.runtime
    runner = Runner(runtime)
    cores = runner.quiet_cores()
    sessions = [runner.open_timed(path, cores) for path in config.files]
    rows: list[BenchRow] = []
    warnings: list[str] = []
    batches = batches_of(runtime, *sessions)
    if any(not same_inputs(sessions[0], other, runner) for other in sessions[1:]):
        warnings.append("the files take different inputs: the speed-up compares different work")
    seconds = runtime.max_seconds / len(batches) / num_providers
    for batch in batches:
        timed = [
            exporters.Timed(name=str(path), session=session, inputs=runner.inputs(session, batch))
            for path, session in zip(config.files, sessions, strict=True)
        ]
        settings = exporters.LatencySettings(
            batch=batch, min_seconds=seconds, max_seconds=seconds, seed=runtime.seed
        )
        with exporters.on_core(cores):
            measured = exporters.measure_latency(timed, settings)
        warnings += [f"{runtime.provider}, batch {batch}: {w}" for w in measured.warnings]
        rows += [_row(timed, index, measured, runtime) for index in range(len(timed))]
    return rows, warnings


def _row(
    timed: list[exporters.Timed],
    index: int,
    measured: exporters.LatencyMeasurement,
    runtime: RuntimeConfig,
) -> BenchRow:
    own, stats = timed[index], measured.stats[index]
    ratios = measured.speedups(index)
    return BenchRow(
        file=own.name,
        provider=measured.provider,
        batch=measured.batch,
        stats=stats,
        throughput=1000 * measured.batch / stats.p50_ms,
        memory_bytes=exporters.peak_memory_bytes(
            Path(own.name), measured.provider, runtime.threads, own.inputs
        ),
        speedup=float(np.median(ratios)),
        speedup_ci95=median_interval(ratios, np.random.default_rng(runtime.seed)),
        nodes_elsewhere=own.session.nodes_elsewhere,
    )


def bench_table(result: BenchResult) -> Group:
    """For the terminal; the speed-up is against the first file."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("file", "on", "batch", "p50 ms", "p90", "p99", "per s", "speed-up", "memory"):
        table.add_column(heading, justify="left" if heading in ("file", "on") else "right")
    for row in result.rows:
        low, high = row.speedup_ci95
        stats = row.stats
        memory = "-" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.1f} MB"
        table.add_row(
            Text(Path(row.file).name), row.provider, str(row.batch), f"{stats.p50_ms:.3g}",
            f"{stats.p90_ms:.3g}", f"{stats.p99_ms:.3g}", f"{row.throughput:,.0f}",
            Text(f"{row.speedup:.3f}x [{low:.3f}, {high:.3f}]"), memory,
        )  # fmt: skip
    return Group(table)
