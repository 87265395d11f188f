"""`make bench-scores-alone` (`python -m benchmarks.scores_alone`): what scores are worth alone.

A trained CIFAR-10 network of 20 layers is cut to 60, 40 and 30 % of its MACs by one threshold over
all channels, as You et al. 2019 (arXiv 1909.08174, figure 4) compare scores, and recovers nothing:
no training and no refit; top-1 with norm statistics as they were, and with renewed ones. Three
scores: the gate's Θ, |γ| of the batch norm, and the activation-Taylor score of Molchanov et al.
2017 (arXiv 1611.06440, equation 8, with the l2 normalisation within a layer that they add). Each
goes the same way: at once, or in cuts of a tenth of what is left with scores taken anew. Where
channels can only go together, Θ is their sum, since losses add up; the other two are no losses, and
their mean is taken, as libraries do. Writes docs/scores-alone.md.
"""

import copy
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gbn
from benchmarks.accuracy_data import INPUT, data, prepare, trained_network
from benchmarks.tables import ROOT, markdown_table, measured_with
from gbn.groups import Mask
from gbn.scores import Values, atom_scores
from pipeline.batches import in_small_batches
from pipeline.data import Batch
from pipeline.learning import Frozen
from pipeline.objectives import SCORE_BATCH
from pipeline.renewal import renew_statistics

DOCUMENT = ROOT / "docs" / "scores-alone.md"
KEEPS = (0.6, 0.4, 0.3)
STEP = 0.9
_BATCHES = 16  # of 128 images
_THRESHOLD = gbn.PlanSettings(rank="score")

Score = Callable[[nn.Module, gbn.ChannelGroups, Mask, list[Batch]], gbn.Scores]


def gate(
    model: nn.Module, groups: gbn.ChannelGroups, alive: Mask, batches: list[Batch]
) -> gbn.Scores:
    """Θ, summed over small batches as the default recipe does."""
    return gate_of_large(model, groups, alive, [*_small(batches)])


def gate_of_large(
    model: nn.Module, groups: gbn.ChannelGroups, alive: Mask, batches: list[Batch]
) -> gbn.Scores:
    """Θ, summed over the batches as they come."""
    with gbn.Gates(model, groups) as gates:
        with Frozen(model, keep={id(phi) for phi in gates.phi.values()}):
            for images, labels in batches:
                F.cross_entropy(model(images), labels).backward()
                gates.accumulate()
        return gates.scores(alive)


def gamma(
    model: nn.Module, groups: gbn.ChannelGroups, alive: Mask, batches: list[Batch]
) -> gbn.Scores:
    """|γ|; no images are looked at."""
    del batches
    per_site = {
        site.key: model.get_parameter(site.tensors[0][0]).detach().abs().double().numpy()
        for site in groups.gates
    }
    return _mean_of_atoms(groups, alive, per_site, "gamma")


def activation_taylor(
    model: nn.Module, groups: gbn.ChannelGroups, alive: Mask, batches: list[Batch]
) -> gbn.Scores:
    """|mean over places of activation · gradient|, a mean over images, of unit length a layer.

    Taken at what a norm gives. Where a ReLU alone reads that, the products on its other side are
    the same; where an addition does, this is what the block itself adds.
    """
    seen: dict[str, Tensor] = {}

    def keeper(key: str) -> Any:
        def hook(_norm: nn.Module, _inputs: Any, output: Tensor) -> None:
            output.retain_grad()
            seen[key] = output

        return hook

    totals: dict[str, Values] = {}
    with ExitStack() as hooks:
        for site in groups.gates:
            norm = model.get_submodule(site.tensors[0][0].rpartition(".")[0])
            hooks.callback(norm.register_forward_hook(keeper(site.key)).remove)
        for images, labels in _small(batches):
            # a sum: each image has its own gradient, not a share of the batch's
            F.cross_entropy(model(images), labels, reduction="sum").backward()
            for key, output in seen.items():
                assert output.grad is not None
                products = (output.detach() * output.grad).mean((2, 3)).abs().sum(0)
                totals[key] = totals.get(key, 0.0) + products.double().numpy()
    model.zero_grad(set_to_none=True)
    per_site = {key: total / np.linalg.norm(total) for key, total in totals.items()}
    return _mean_of_atoms(groups, alive, per_site, "activation-Taylor")


SCORES: dict[str, Score] = {
    "gate, batches of 16": gate,
    "gate, batches of 128": gate_of_large,
    "activation-Taylor": activation_taylor,
    "gamma": gamma,
}


def _small(batches: list[Batch]) -> Iterable[Batch]:
    for images, labels in batches:
        yield from in_small_batches(images, labels, SCORE_BATCH)


def _mean_of_atoms(
    groups: gbn.ChannelGroups, alive: Mask, per_site: dict[str, Values], kind: str
) -> gbn.Scores:
    whole, ones = {}, {}
    for site in groups.gates:
        dim = groups.dims[site.dim]
        whole[site.key] = np.zeros(dim.size)
        whole[site.key][dim.kept(alive)] = per_site[site.key]
        ones[site.key] = np.ones(dim.size)
    members = atom_scores(groups, ones, kind).values
    return gbn.Scores(atom_scores(groups, whole, kind).values / np.maximum(members, 1), kind)


def cuts(keeps: Iterable[float], step: float) -> list[float]:
    """Shares of the MACs, one after another, down to and including each of `keeps`."""
    found, now = [], 1.0
    for keep in sorted(keeps, reverse=True):
        while step and now * step > keep:
            now *= step
            found.append(now)
        now = keep
        found.append(keep)
    return found


def accuracies(
    score: Score, images: list[Batch], tests: Iterable[Batch], step: float
) -> list[float]:
    """Top-1 at each of `KEEPS`, then with renewed statistics; `step` 0: cuts of the original."""
    original = trained_network()
    groups = gbn.trace(original, torch.zeros(1, *INPUT))
    whole = np.ones(groups.num_atoms, dtype=np.bool_)
    bare, renewed = [], []
    model, alive = original, whole
    for keep in cuts(KEEPS, step):
        if not step:
            model, alive = original, whole
        scores = score(model, groups, alive, images)
        alive = gbn.choose(groups, scores, flops=keep, settings=_THRESHOLD, alive=alive)
        model = gbn.prune(original, gbn.PrunePlan.of(groups, alive)).eval()
        if keep in KEEPS:
            bare.append(top1(model, tests))
            settled = copy.deepcopy(model)
            renew_statistics(settled, (batch for batch, _ in images))
            renewed.append(top1(settled.eval(), tests))
    return bare + renewed


def top1(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Of all images."""
    right, total = 0, 0
    with torch.no_grad():
        for images, labels in batches:
            right += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


def main() -> int:
    """Writes the table; 0 also where the material is absent."""
    if prepare() is None:
        print("skipped: the JPEG copy of CIFAR-10 or the trained network is absent")
        return 0
    torch.set_num_threads(1)
    source = data(seed=0, epochs=0)
    images = list(source.calibration_batches(_BATCHES))
    rows = []
    for step, way in ((0.0, "at once"), (STEP, "a tenth at a time")):
        for name, score in SCORES.items():
            found = accuracies(score, images, source.val_loader(), step)
            rows.append((name, way, *(f"{top:.2%}" for top in found)))
            print(rows[-1], flush=True)
    before = top1(trained_network(), source.val_loader())
    kept = [f"{keep:.0%} of the MACs" for keep in KEEPS]
    header = ("score", "cut", *kept, *(f"{name}, renewed" for name in kept))
    DOCUMENT.write_text(
        "# Scores alone\n\n"
        f"`make bench-scores-alone`, {measured_with()}. Before: {before:.2%} top-1.\n\n"
        "A CIFAR-10 network of 20 layers, trained on the JPEG copy, is cut by one threshold over "
        "all channels and recovers nothing: no training, no refit; norm statistics as they were, "
        f"or renewed. Scores are of {sum(len(labels) for _, labels in images):,} training images; "
        "top-1 is of all 10,000 test images, of one draw of images. `gate` is Θ, `gamma` the size "
        "of the norm's scale, `activation-Taylor` that of Molchanov et al. 2017 (arXiv "
        "1611.06440), which is taken image by image. Where channels can only go together, Θ is "
        "their sum, since losses add up, and the other two are their mean.\n\n"
        + markdown_table(header, rows)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
