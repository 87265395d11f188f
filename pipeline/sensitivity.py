"""How much each group's cut costs alone: which layer an accuracy was lost in.

Enters: the network as given, its groups, what was kept, and a check-up. Leaves: a plain row for
each group that lost channels, and whether measuring them is a small share of the run.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

import gbn
from gbn.groups import Mask
from pipeline.checkup import Checkup

_SHARE = 0.03  # of the work of training
_TRAINING_COST = 3  # forward passes that a training step is worth


def sensitivity(
    model: nn.Module,
    groups: gbn.ChannelGroups,
    alive: Mask,
    checkup: Checkup,
    check: Callable[[nn.Module], float | None],
) -> dict[str, Any]:
    """The check-up of `model` with one group cut as in `alive` (num_atoms,), for each group.

    Nothing is refitted or trained, so that the cuts compare with each other.
    """
    return {
        "metric": checkup.metric,
        "samples": checkup.samples,
        "in_points": checkup.in_points,
        "higher_is_better": checkup.higher_is_better,
        "groups": [_row(model, groups, group, alive, check) for group in _cut(groups, alive)],
    }


def is_affordable(
    groups: gbn.ChannelGroups, alive: Mask, checkup: Checkup, training_images: int
) -> bool:
    """Whether it costs a small share of training on so many images."""
    cost = len(_cut(groups, alive)) * checkup.samples
    return cost <= _SHARE * _TRAINING_COST * training_images


def _cut(groups: gbn.ChannelGroups, alive: Mask) -> list[gbn.Group]:
    return [group for group in groups.groups if not alive[list(group.atoms)].all()]


def _row(
    model: nn.Module,
    groups: gbn.ChannelGroups,
    group: gbn.Group,
    alive: Mask,
    check: Callable[[nn.Module], float | None],
) -> dict[str, Any]:
    others = np.ones(groups.num_atoms, dtype=np.bool_)
    own = list(group.atoms)
    others[own] = alive[own]
    small = gbn.prune(model, gbn.PrunePlan.of(groups, others))
    return {"name": group.name, "kept": float(alive[own].mean()), "value": check(small)}
