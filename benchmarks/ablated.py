"""The default recipe with one of its parts taken out, or made as is usual elsewhere.

`python -m benchmarks.ablated NAME ...` is `compress ...`, with that recipe in the default's place.
Which of them are worse, and by how much, is measured by `benchmarks.ablation`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A part of the recipe, changed: in words for the page, and how.

    plays_in: the numbers of passes at which it differs from the default.
    """

    instead: str
    change: Callable[[Recipe], Recipe]
    plays_in: tuple[int, ...] = (0, 1, 5)


_TRAINED = (1, 5)

VARIANTS = {
    "no-refit": Variant(
        instead="statistics of norms are renewed after a cut, nothing is refitted",
        change=lambda recipe: replace(recipe, refit_below=0),
        plays_in=(0, 1),
    ),
    "refit": Variant(
        instead="layers are refitted after a cut, however long the training",
        change=lambda recipe: replace(recipe, refit_below=sys.maxsize),
        plays_in=(5,),
    ),
    "plain-threshold": Variant(
        instead="the lowest scores go, whatever their channels cost",
        change=lambda recipe: replace(recipe, rank="score"),
    ),
    "whole-score-batches": Variant(
        instead="scores are sums over whole batches of 128, not over sixteens",
        change=lambda recipe: replace(recipe, score_batch=None),
    ),
    "one-cut": Variant(
        instead="all goes at once, after the same scoring",
        change=lambda recipe: replace(recipe, schedule=one_cut),
    ),
    "tocks": Variant(
        instead="a quarter of the training lies between the cuts",
        change=lambda recipe: replace(recipe, schedule=with_tocks),
        plays_in=_TRAINED,
    ),
    "no-streams": Variant(
        instead="the original teaches by its outputs alone",
        change=lambda recipe: replace(recipe, stream_weight=0.0),
        plays_in=_TRAINED,
    ),
    "weak-streams": Variant(
        instead="the original's streams weigh 30 in the loss, not "
        f"{RECIPES['default'].stream_weight:g}",
        change=lambda recipe: replace(recipe, stream_weight=30.0),
        plays_in=_TRAINED,
    ),
    "no-teacher": Variant(
        instead="labels alone teach",
        change=lambda recipe: replace(recipe, stream_weight=0.0, distill=False),
        plays_in=_TRAINED,
    ),
    "peak-0.02": Variant(
        instead="a lower peak of the learning rate",
        change=lambda recipe: replace(recipe, peak_lr=0.02),
        plays_in=_TRAINED,
    ),
    "shifted-images": Variant(
        instead="images are mirrored and shifted, as is usual",
        change=lambda recipe: replace(recipe, augment=lambda _epochs: "standard"),
        plays_in=_TRAINED,
    ),
}


def recipe_of(method: str) -> Recipe:
    """Of a recipe's or a variant's name."""
    if method in VARIANTS:
        return VARIANTS[method].change(RECIPES["default"])
    return RECIPES[method]


if __name__ == "__main__":
    RECIPES["default"] = recipe_of(sys.argv[1])  # before anything reads it

    from pipeline.cli import main

    main(sys.argv[2:])
