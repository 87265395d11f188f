"""A network whose time is known for every choice of widths.

Enters: the measured baseline and the run's settings. Leaves: a `TimedNetwork`: a cost model in
nanoseconds for the planner, and the time of the whole graph at any widths, measured on the spot.
Refused: networks whose exported graph changes in more than sizes when channels go.
"""

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from scipy.optimize import nnls

import exporters
import gbn
from exporters.node_times import SYNCHRONOUS, NodeTime, Place, node_times, whole_ms
from exporters.resized import Resizable
from exporters.session import Session
from exporters.spread_times import spread
from exporters.time_cache import TimeCache
from exporters.time_model import Sample, TimeFit, fit_times
from gbn.groups import Mask
from pipeline.baseline import Baseline
from pipeline.config import RunConfig
from pipeline.console import RunConsole
from pipeline.exporting import export_request
from pipeline.folded_norms import fold_norms
from pipeline.latency.cuts import sampled_cuts, telling_cuts, uniform_cuts, whole
from pipeline.precision import given_precision, precision_of
from pipeline.verify import LATENCY_THREADS

NS = 1e6  # nanoseconds in a millisecond
_CALIBRATION_S = 3.0
_CONFIRM_S = 2.5


@dataclass(frozen=True, kw_only=True)
class WholeTime:
    """A graph beside the given one, in turns. share: of the given one's time."""

    ms: float
    share: float


@dataclass(frozen=True, kw_only=True)
class TimedNetwork:
    """cost: modelled nanoseconds of the graph in the run's precision. before_ms: measured, of the
    model as given. typical_error: of the model of one node. scale: whole time over the sum of
    nodes, at full width. same_graph: uncut, it is the graph of the model as given.
    """

    groups: gbn.ChannelGroups
    cost: gbn.CostModel
    resizable: Resizable
    before: Session
    place: Place
    before_ms: float
    fit: TimeFit
    scale: float
    same_graph: bool

    def whole_time(self, alive: Mask, seconds: float = _CONFIRM_S) -> WholeTime:
        """Measure the whole graph with these atoms against the model as given."""
        session = self.place.open(self.resizable.at(self.groups.counts(alive)))
        times, shares = _in_turns(self.place, [self.before, session], seconds)
        return WholeTime(ms=times[1], share=shares[1])

    def described(self) -> dict[str, Any]:
        """For the report."""
        return {
            "typical_error": self.fit.typical_error,
            "whole_over_sum_of_nodes": self.scale,
            "before_ms": self.before_ms,
        }


def batch_of(baseline: Baseline) -> int:
    """The batch at which a run measures latency."""
    return exporters.fixed_batch(baseline.session) or 1


def place_of(config: RunConfig, baseline: Baseline) -> Place:
    """Where and at what batch the run measures latency; takes a moment to find quiet cores."""
    return Place(
        provider=config.deploy.provider,
        threads=LATENCY_THREADS,
        cores=exporters.quiet_cores(LATENCY_THREADS),
        batch=batch_of(baseline),
        sizes={baseline.session.input_names[0]: baseline.loaded.input_size},
        seed=config.recovery.seed,
    )


def time_network(
    config: RunConfig, baseline: Baseline, step: int, console: RunConsole
) -> TimedNetwork:
    """Export what tells the widths apart, measure, fit. Raises ExportError."""
    groups, place = baseline.groups, place_of(config, baseline)
    console.say("measuring how long each layer takes at several widths")
    resizable = _resizable(config, baseline)
    cuts = sampled_cuts(groups, step, config.recovery.seed)
    fit = _fitted(resizable, [groups.counts(alive) for alive in cuts], place, console)
    before = place.open(baseline.onnx)
    calibrated = uniform_cuts(groups, step)
    sessions = [place.open(resizable.at(groups.counts(alive))) for alive in calibrated]
    times, shares = _in_turns(place, [before, *sessions], _CALIBRATION_S)
    own = [share * times[0] for share in shares[1:]]
    cost, scale = _calibrated(groups, fit, calibrated, own)
    network = TimedNetwork(
        groups=groups, cost=cost, resizable=resizable, before=before, place=place,
        before_ms=times[0], fit=fit, scale=scale,
        same_graph=precision_of(config, baseline) == given_precision(baseline),
    )  # fmt: skip
    console.say(
        f"baseline: {times[0]:.3g} ms on {place.provider}, batch {place.batch}; its nodes add up "
        f"to {100 / scale:.0f} % of that, modelled within {100 * fit.typical_error:.0f} %"
    )
    return network


def _fitted(
    resizable: Resizable, rows: Sequence[np.ndarray], place: Place, console: RunConsole
) -> TimeFit:
    """The model of nodes, from their times at these widths."""
    measured = []
    with console.progress("times", total=len(rows)) as advance:
        for row in rows:
            measured.append(_measured(resizable, row, place))
            advance(1)
    nodes = [found for found, _ in measured]
    if place.provider not in SYNCHRONOUS:
        nodes = spread(nodes, [ms for _, ms in measured])
    return fit_times([Sample(widths=r, nodes=n) for r, n in zip(rows, nodes, strict=True)])


def _resizable(config: RunConfig, baseline: Baseline) -> Resizable:
    groups = baseline.groups
    cuts = telling_cuts(groups, config.recovery.seed)
    with tempfile.TemporaryDirectory() as folder:
        paths = [baseline.onnx]
        for number, alive in enumerate(cuts):
            path = Path(folder, f"cut-{number}.onnx")
            small = gbn.prune(baseline.loaded.module, gbn.PrunePlan.of(groups, alive))
            request = export_request(config, baseline.loaded, path, {})
            exporters.export_onnx(fold_norms(small.eval()), request)
            paths.append(path)
        models = [_in_precision(path, config, baseline, Path(folder)) for path in paths]
    return Resizable.learn(models, np.stack([groups.counts(a) for a in (whole(groups), *cuts)]))


def _in_precision(
    path: Path, config: RunConfig, baseline: Baseline, folder: Path
) -> onnx.ModelProto:
    """As the run will deploy it; of int8 the ranges do not matter, only the graph."""
    kind = precision_of(config, baseline)
    if kind == "fp32" or (path == baseline.onnx and kind == given_precision(baseline)):
        return exporters.load_onnx(path)
    target = folder / f"{path.stem}-{kind}.onnx"
    if kind == "fp16":
        exporters.to_fp16(path, target)
    else:
        place = place_of(config, baseline)
        exporters.like_int8(
            path, target, place.inputs(baseline.session),
            symmetric=config.deploy.provider in ("cuda", "tensorrt"),
        )  # fmt: skip
    return exporters.load_onnx(target)


def _measured(
    resizable: Resizable, widths: np.ndarray, place: Place
) -> tuple[tuple[NodeTime, ...], float]:
    """The nodes at these widths, and where their times say nothing that of the whole graph."""
    cache = TimeCache()
    sizes = sorted((name, *size) for name, size in place.sizes.items())
    where = (place.provider, place.threads, place.batch, sizes)
    key = ("nodes", resizable.signature, widths.tolist(), where)
    # a file that holds something else counts as not there
    with contextlib.suppress(ValueError, TypeError, KeyError):
        known: Any = cache.get(*key)
        entries, ms = known
        return tuple(NodeTime.from_json(entry) for entry in entries), float(ms)
    model = resizable.at(widths)
    nodes = node_times(model, place)
    ms = 0.0 if place.provider in SYNCHRONOUS else whole_ms(model, place)
    cache.put([[node.to_json() for node in nodes], ms], *key)
    return nodes, ms


def _in_turns(
    place: Place, sessions: Sequence[Session], seconds: float
) -> tuple[list[float], list[float]]:
    """Median ms of each, and the median of its share of the first one's, round by round.

    Of undisturbed rounds: the same figures as the run's verdict is made of.
    """
    timed = [
        exporters.Timed(name=str(number), session=session, inputs=place.inputs(session))
        for number, session in enumerate(sessions)
    ]
    settings = exporters.LatencySettings(
        batch=place.batch, min_seconds=seconds, max_seconds=4 * seconds, seed=place.seed
    )
    with exporters.on_core(place.cores):
        found = exporters.measure_latency(timed, settings)
    rows = found.samples_ms[found.undisturbed]
    shares = np.median(rows / rows[:, :1], axis=0)
    return np.median(rows, axis=0).tolist(), shares.tolist()


def _calibrated(
    groups: gbn.ChannelGroups, fit: TimeFit, cuts: Sequence[Mask], times_ms: Sequence[float]
) -> tuple[gbn.CostModel, float]:
    """The model of nodes, stretched and moved so that it gives the times of whole graphs."""
    terms = [gbn.TimeTerm(nanoseconds=NS * t.ms, dims=t.widths, steps=t.steps) for t in fit.terms]
    raw = gbn.CostModel.time(groups, terms)
    sums = np.array([raw.total(alive) / NS for alive in cuts])
    found = np.array(times_ms)
    design = np.stack([sums, np.ones_like(sums)], axis=1)
    (stretch, offset), _ = nnls(design / found[:, None], np.ones_like(found))
    stretched = [
        gbn.TimeTerm(nanoseconds=stretch * t.nanoseconds, dims=t.dims, steps=t.steps) for t in terms
    ]
    cost = gbn.CostModel.time(groups, [*stretched, gbn.TimeTerm(nanoseconds=NS * offset)])
    return cost, float(found[0] / sums[0])
