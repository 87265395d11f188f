"""The default recipe with one of its parts taken out, or made as is usual elsewhere.

`python -m benchmarks.ablated NAME ...` is `compress ...`, with that recipe in the default's place.
Which of them are worse, and by how much, is measured by `benchmarks.ablation`.
"""

import sys
from collections.abc import Callable
from dataclasses import replace

from gbn.ticktock import Phase, schedule
from pipeline.recipes import RECIPES, Recipe

_TOCK_SHARE = 0.25  # of training, between the ticks


def one_cut(*, budget: int, target: float) -> tuple[Phase, ...]:
    """As `gbn.schedule`, with all scoring before a single cut."""
    phases = schedule(budget=budget, target=target)
    scored = sum(phase.batches for phase in phases if phase.kind == "tick")
    trained = sum(phase.batches for phase in phases if phase.kind != "tick")
    ends = [phase for phase in phases if phase.kind == "finetune"]
    return (
        *((Phase(kind="tick", batches=scored),) if scored else ()),
        *(replace(phase, batches=trained) for phase in ends),
    )


def with_tocks(*, budget: int, target: float) -> tuple[Phase, ...]:
    """As `gbn.schedule`, with a quarter of training between the ticks, however short each is."""
    phases = schedule(budget=budget, target=target)
    ticks = [phase for phase in phases if phase.kind == "tick"]
    ends = [phase for phase in phases if phase.kind == "finetune"]
    if not ends or len(ticks) < 2:
        return phases
    left = sum(phase.batches for phase in phases if phase.kind != "tick")
    tock = max(round(_TOCK_SHARE * left / len(ticks)), 1)
    between = Phase(kind="tock", batches=tock, lr_from=0.5, lr_to=0.5)
    found = [ticks[0]]
    for tick in ticks[1:]:
        found += [between, tick]
    return (*found, replace(ends[0], batches=left - tock * (len(ticks) - 1)))


# What each changes, in words for the page, and how.
VARIANTS: dict[str, tuple[str, Callable[[Recipe], Recipe]]] = {
    "no-refit": (
        "statistics of norms are renewed after a cut, nothing is refitted",
        lambda recipe: replace(recipe, refit=False),
    ),
    "plain-threshold": (
        "the lowest scores go, whatever their channels cost",
        lambda recipe: replace(recipe, rank="score"),
    ),
    "whole-score-batches": (
        "scores are sums over whole batches of 128, not over sixteens",
        lambda recipe: replace(recipe, score_batch=None),
    ),
    "one-cut": (
        "all goes at once, after the same scoring",
        lambda recipe: replace(recipe, schedule=one_cut),
    ),
    "tocks": (
        "a quarter of the training lies between the cuts",
        lambda recipe: replace(recipe, schedule=with_tocks),
    ),
    "no-streams": (
        "the original teaches by its outputs alone",
        lambda recipe: replace(recipe, stream_weight=0.0),
    ),
    "no-teacher": (
        "labels alone teach",
        lambda recipe: replace(recipe, stream_weight=0.0, distill=False),
    ),
    "peak-0.02": (
        "a lower peak of the learning rate",
        lambda recipe: replace(recipe, peak_lr=0.02),
    ),
    "shifted-images": (
        "images are mirrored and shifted, as is usual",
        lambda recipe: replace(recipe, augment=lambda _epochs: "standard"),
    ),
}
UNTRAINED = ("no-refit", "plain-threshold", "whole-score-batches", "one-cut")
"""Those that matter where nothing is trained."""


def recipe_of(method: str) -> Recipe:
    """Of a recipe's or a variant's name."""
    if method in VARIANTS:
        return VARIANTS[method][1](RECIPES["default"])
    return RECIPES[method]


if __name__ == "__main__":
    RECIPES["default"] = recipe_of(sys.argv[1])  # before anything reads it

    from pipeline.cli import main

    main(sys.argv[2:])
