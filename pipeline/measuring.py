"""The figures of a finished run: both files measured, each check's number or why it has none.

Enters: the baseline, the compressed network and the file that was written. Leaves: `Figures`, the
keywords of `Measurements`. Refused: a provider that did not run the graph.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import exporters
import gbn
from exporters.session import Session
from pipeline import verify
from pipeline.baseline import Baseline, plain
from pipeline.compress import Compressed
from pipeline.config import RunConfig
from pipeline.console import RunConsole
from pipeline.data import Data
from pipeline.data_free import MadeData, NothingMade
from pipeline.exporting import counted_shapes
from pipeline.goal import Goal
from pipeline.latency.layers import layer_report
from pipeline.latency.network import batch_of, place_of
from pipeline.precision import FP32_FILE, precision_of
from pipeline.report import (
    Accuracy,
    BeforeAfter,
    Difference,
    Latency,
    Provider,
    Surgery,
    environment,
)
from pipeline.report.format import showable


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The compressed network, the plan that made it, the images made for it, and what it was to
    reach.

    history, sensitivity: what check-ups found on the way, and of each group's cut alone.
    """

    compressed: Compressed
    plan: gbn.PrunePlan
    made: MadeData | NothingMade | None
    goal: Goal
    history: dict[str, Any] | None
    sensitivity: dict[str, Any] | None


class Measuring:
    """Measures one run's result; `figures` are for the report."""

    def __init__(
        self,
        config: RunConfig,
        baseline: Baseline,
        outcome: Outcome,
        after: Session,
        console: RunConsole,
    ) -> None:
        self._config = config
        self._baseline = baseline
        self._outcome = outcome
        self._after = after
        self._console = console
        self._file = config.out / "model.onnx"

    def figures(self) -> dict[str, Any]:
        """All that `Measurements` takes but precision, groups and stages."""
        baseline, outcome = self._baseline, self._outcome
        accuracy, surgery = self._accuracy(), self._surgery()
        skipped = {}
        if accuracy is None:
            skipped["accuracy"] = "no data was given"
        if surgery is None:
            skipped["surgery"] = "nothing had to be removed"
        provider = self._config.deploy.provider
        return {
            **self._counts(),
            **self._targets(),
            "accuracy": accuracy,
            "fidelity": verify.fidelity(baseline.session, self._after, outcome.made),
            "data_free": outcome.made.described if outcome.made is not None else None,
            "surgery": surgery,
            "parity": self._parity(),
            "latency": self._latency(),
            "latency_layers": layer_report(
                baseline.onnx, self._file, place_of(self._config, baseline)
            ),
            "provider": Provider(requested=provider, ran=(self._after.provider,)),
            "skipped": skipped,
            "environment": self._environment(),
        }

    def _counts(self) -> dict[str, Any]:
        # Counted where weights are floats; what precision changes is the size.
        is_fp32 = precision_of(self._config, self._baseline) == "fp32"
        counted = self._file if is_fp32 else self._config.out / FP32_FILE
        result = exporters.count_macs(counted, counted_shapes(self._baseline.loaded))
        cost, size = self._baseline.cost, exporters.onnx_size_bytes(self._file)
        return {
            "flops": BeforeAfter(before=cost.num_macs, after=result.num_macs),
            "params": BeforeAfter(before=cost.num_params, after=result.num_params),
            "size_bytes": BeforeAfter(before=cost.size_bytes, after=size),
            "uncounted_ops": result.uncounted,
        }

    def _targets(self) -> dict[str, Any]:
        target, cost, timed = self._config.target, self._baseline.cost, self._outcome.goal.latency
        found: dict[str, Any] = {
            "target_flops": target.flops.absolute(cost.num_macs) if target.flops else None,
            "target_params": target.params.absolute(cost.num_params) if target.params else None,
            "max_accuracy_drop": target.max_accuracy_drop,
        }
        asked = target.latency
        if asked is not None and timed is not None:
            found |= {
                "target_latency_ms": None if asked.limit_ms is None else float(asked.limit_ms),
                "target_latency_kept": None if asked.share is None else float(asked.share),
                "latency_tolerance": asked.TOLERANCE,
                "latency_plan": timed.described(),
            }
        return found

    def _accuracy(self) -> Accuracy | None:
        data, before, judge = self._baseline.data, self._baseline.accuracy, self._baseline.judge
        if data is None or before is None:
            return None
        found = verify.accuracy(self._after, data, judge, self._console, "accuracy")
        return verify.accuracies(before, found, judge.task)

    def _surgery(self) -> Surgery | None:
        proofs = self._outcome.compressed.surgery
        if not proofs:
            return None
        worst = max(proofs, key=lambda s: s["max_abs_diff"] / s["tolerance"])
        return Surgery(
            max_abs_diff=worst["max_abs_diff"],
            tolerance=worst["tolerance"],
            num_overruled=sum(cut.get("num_overruled", 0) for cut in proofs),
        )

    def _parity(self) -> Difference:
        """Of the final file; of an int8 one, which accuracy judges, the fp32 file it came from."""
        kind, after = precision_of(self._config, self._baseline), self._after
        if kind == "int8":
            provider = self._config.deploy.provider
            after = exporters.open_session(self._config.out / FP32_FILE, provider)
        tolerance = exporters.FP16_TOLERANCE if kind == "fp16" else 1e-4
        model = self._outcome.compressed.model
        return verify.parity(model, after, self._baseline.probes, tolerance)

    def _latency(self) -> Latency:
        loaded, config = self._baseline.loaded, self._config
        # random, as `compress bench` and the planner of a target in time take them
        generator = torch.Generator().manual_seed(config.recovery.seed)
        shape = (batch_of(self._baseline), *loaded.input_size)
        batch = torch.randn(shape, generator=generator)
        timed = verify.latency(
            self._baseline.onnx, self._file, self._after.provider, batch, config.recovery.seed
        )
        for warning in timed.warnings:
            self._console.warn(f"latency: {warning}")
        return timed

    def _environment(self) -> dict[str, Any]:
        config = self._config
        inputs = {"model": config.model.path, "result": self._file}
        data = _readable(config.data.source)
        if data is not None:
            inputs["data"] = data
        found = environment(
            seed=config.recovery.seed,
            device=self._outcome.compressed.device,
            provider=config.deploy.provider,
            inputs=inputs,
        )
        if config.settings is not None:
            told = config.settings.described().items()
            found["settings"] = {key: showable(value) for key, value in told}
        return found | {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "nodes_on_other_providers": self._after.nodes_elsewhere,
            "model": showable(config.model.path.name),
            "input_size": list(self._baseline.loaded.input_size),
            "data": _data_row(self._baseline.data, config.data.source),
        }


def _readable(source: str | None) -> Path | None:
    """What can be hashed of the data: files and folders, or the file of a factory."""
    if source is None:
        return None
    found = (Path(name) for name in (source, source.rpartition(":")[0]) if name)
    return next((path for path in found if path.exists()), None)


def _data_row(data: Data | None, source: str | None) -> dict[str, Any]:
    if data is None:
        return {"source": "none was given"}
    counts = {"training_images": data.num_train, "validation_images": data.num_val}
    told = {key: plain(value) for key, value in data.preprocessing.items()}
    return {"source": showable(str(source))} | counts | told
