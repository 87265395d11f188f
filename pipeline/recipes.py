"""How a network is compressed: the named recipes of `--recipe`.

What enters: a name. What leaves: a frozen `Recipe`, numbers and pure functions alone.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from gbn.norms import tracked_norms
from gbn.ticktock import Phase, schedule, schedule_2019
from pipeline.objectives import SCORE_BATCH


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What differs between recipes; gates, cuts and proofs are the same.

    schedule: batches and target share to phases. rank: see `gbn.PlanSettings`. distill: the
    original teaches. stream_weight, score_augmented: see `TrainingSettings`. score_batch: see
    `Objective`. refit_below: layers behind a cut are refitted to what they gave where fewer
    batches than this are trained on; bare_refit_below: the same for networks without batch norms.
    augment: what "auto" means for images in files, by the number of passes over them. decay_all:
    weight decay for biases and norms too.
    """

    schedule: Callable[..., tuple[Phase, ...]]
    peak_lr: float
    distill: bool
    stream_weight: float
    refit_below: int
    bare_refit_below: int
    decay_all: bool
    rank: str
    score_batch: int | None
    score_augmented: bool
    augment: Callable[[int], str]

    def refits(self, phases: Iterable[Phase], model: nn.Module) -> bool:
        """Whether layers are refitted after a cut; else batch norms get new statistics alone."""
        trained = sum(phase.batches for phase in phases if phase.kind != "tick")
        return trained < (self.refit_below if tracked_norms(model) else self.bare_refit_below)


# Augmentation keeps a network from learning images by heart. In few passes it cannot, all the less
# with a teacher; then images as they are teach most a step. Measured on CIFAR.
_UNMOVED_EPOCHS, _MIRRORED_EPOCHS = 2, 10


# Batches. A refit is a head start of a few dozen steps where new statistics of norms give most of
# it too: on CIFAR it gained up to a point with 60 batches of training (a tenth by the mean, since
# streams weigh more), nothing with 140 and 210, and cost half a point with 360. Without norms
# nothing else makes a cut good: on digits it gained 1 to 10 points with 150 batches, nothing with
# 470.
_REFIT_BELOW, _BARE_REFIT_BELOW = 100, 400


def _gentle(epochs: int) -> str:
    if epochs <= _UNMOVED_EPOCHS:
        return "none"
    return "flip" if epochs <= _MIRRORED_EPOCHS else "standard"


def _always(_epochs: int) -> str:
    return "standard"


RECIPES = {
    "default": Recipe(
        schedule=schedule,
        peak_lr=0.05,
        distill=True,
        stream_weight=100.0,
        refit_below=_REFIT_BELOW,
        bare_refit_below=_BARE_REFIT_BELOW,
        decay_all=False,
        rank="score per cost",
        score_batch=SCORE_BATCH,
        score_augmented=False,
        augment=_gentle,
    ),
    # You et al. 2019 (arXiv 1909.08174) and the authors' settings
    "gbn-2019": Recipe(
        schedule=schedule_2019,
        peak_lr=0.01,
        distill=False,
        stream_weight=0.0,
        refit_below=0,
        bare_refit_below=0,
        decay_all=True,
        rank="score",
        score_batch=None,
        score_augmented=True,
        augment=_always,
    ),
}
