"""What each group's cut would cost, before any training: `compress inspect --data`.

Enters: a classifier, its groups and data. Leaves: for each group that can be pruned its gate score,
and the accuracy with a quarter, half and three quarters of it cut and nothing else done; a picture
of that. Refused: networks that are no classifiers of one image.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

import gbn
from gbn.groups import LEAST_WIDTH, Mask
from pipeline import checkup
from pipeline.batches import in_small_batches
from pipeline.config_sections import InspectData
from pipeline.console import RunConsole
from pipeline.data import Data, DataRequest, load_data
from pipeline.errors import UsageError
from pipeline.importers import LoadedModel
from pipeline.learning import Frozen
from pipeline.objectives import SCORE_BATCH
from pipeline.tasks import CLASSIFICATION, Judge

SHARES = (0.25, 0.5, 0.75)
_SCORE_BATCHES = 4


def cut_alone(
    loaded: LoadedModel, groups: gbn.ChannelGroups, wanted: InspectData, console: RunConsole
) -> dict[str, Any]:
    """Scores and accuracies of all groups that can be pruned; writes the picture, if asked.

    JSON-ready: metric, samples, as_given (a fraction), and groups of {name, score, share_of_scores,
    accuracy: {share removed: fraction, or None where the group cannot lose so much}}.
    """
    model, data = loaded.module.eval(), _data(loaded, wanted)
    check = checkup.on_data(data, Judge(task=CLASSIFICATION), wanted.max_eval_images)
    scores = _scores(model, groups, data, console)
    able = [group for group in groups.groups if group.atoms]
    rows: list[dict[str, Any]] = []
    with torch.no_grad(), console.progress("cuts", total=len(able) * len(SHARES)) as advance:
        given = check.measure(model)
        for group in able:
            accuracy: dict[str, float | None] = {}
            for share in SHARES:
                alive = without(groups, group, scores, share)
                small = None if alive is None else gbn.prune(model, gbn.PrunePlan.of(groups, alive))
                accuracy[f"{share:g}"] = None if small is None else check.measure(small.eval())
                advance(1)
            own = float(scores.values[list(group.atoms)].sum())
            rows.append({"name": group.name, "score": own, "accuracy": accuracy})
    total = sum(row["score"] for row in rows)
    for row in rows:
        row["share_of_scores"] = row["score"] / total if total else 0.0
    found = {
        "metric": check.metric,
        "samples": check.samples,
        "as_given": given,
        "groups": rows,
    }
    if wanted.plot is not None:
        draw(found, wanted.plot)
    return found


def without(
    groups: gbn.ChannelGroups, group: gbn.Group, scores: gbn.Scores, share: float
) -> Mask | None:
    """All atoms but the lowest `share` of this group's; None where a width would become empty."""
    alive: Mask = np.ones(groups.num_atoms, dtype=np.bool_)
    own = np.array(group.atoms)
    order = own[np.argsort(scores.values[own], kind="stable")]
    alive[order[: round(share * len(own))]] = False
    least = np.minimum([dim.size for dim in groups.dims], LEAST_WIDTH)
    return None if (groups.counts(alive) < least).any() or alive.all() else alive


def _data(loaded: LoadedModel, wanted: InspectData) -> Data:
    if loaded.num_outputs is None:
        raise UsageError("--data: the model's output is not (N, classes): leave --data out")
    data = load_data(
        DataRequest(
            source=wanted.source,
            input_size=loaded.input_size,
            mean=wanted.mean or loaded.mean,
            std=wanted.std or loaded.std,
            batch_size=64,
        )
    )
    if (data.num_classes or 0) > loaded.num_outputs:
        raise UsageError(
            f"the data has {data.num_classes} classes, the model only {loaded.num_outputs} outputs"
        )
    return data


def _scores(
    model: nn.Module, groups: gbn.ChannelGroups, data: Data, console: RunConsole
) -> gbn.Scores:
    """Θ as published, over a few batches of training images as they are."""
    with gbn.Gates(model, groups) as gates, console.progress("scores", total=_SCORE_BATCHES) as on:
        with Frozen(model, keep={id(phi) for phi in gates.phi.values()}):
            for images, labels in data.calibration_batches(_SCORE_BATCHES):
                for part, answers in in_small_batches(images, labels, SCORE_BATCH):
                    F.cross_entropy(model(part), answers).backward()
                    gates.accumulate()
                on(1)
        return gates.scores()


def draw(found: dict[str, Any], path: Path) -> None:
    """Accuracy of each group at each share, as bars; the format is the path's suffix."""
    rows = found["groups"]
    figure = Figure(figsize=(8, 1.2 + 0.42 * max(len(rows), 1)), layout="constrained")
    ax = figure.subplots()
    for number, share in enumerate(SHARES):
        values = [100 * (row["accuracy"][f"{share:g}"] or 0.0) for row in rows]
        places = [place + 0.27 * (number - 1) for place in range(len(rows))]
        ax.barh(places, values, height=0.25, label=f"{share:.0%} cut")
    ax.axvline(100 * found["as_given"], color="black", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel(f"{found['metric']}, %, on {found['samples']} images (dashed: as given)")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph that the font lacks
        figure.savefig(path)
