"""What a network is scored by and trained for where there are no labels: the original network.

Enters: what the network gives for a batch, the labels, and a way to ask the original. Leaves: a
loss. An `Objective` has two: `score`, whose gradient tells what a channel is worth, and `learn`.

At first the network is the original itself. A distance to the original then has no gradient, so no
channel would be worth anything. `score` without labels therefore aims beside what the original says
by a random amount: the gradients are those of the distance's curvature, in expectation (for class
scores the Fisher information, since labels are drawn from the original's own odds).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

SCORE_BATCH = 16  # what a batch says is one draw: small batches are more draws to average

Ask = Callable[[], Any]
"""Gives the original network's outputs for the same images, without gradients."""


class Objective(Protocol):
    """A pair of losses over (N, ...) outputs.

    score_batch: how many images are scored at a time at most; None takes whole batches.
    """

    @property
    def score_batch(self) -> int | None: ...

    def score(self, outputs: Any, labels: Tensor, original: Ask) -> Tensor:
        """The loss whose gradients score channels."""

    def learn(self, outputs: Any, labels: Tensor, original: Ask) -> Tensor:
        """The loss that training makes small."""


@dataclass(frozen=True, kw_only=True)
class OriginalClasses:
    """Class scores (N, classes) against those of the original; labels are not looked at.

    probabilities: the network ends in a softmax, which is taken back first.
    """

    score_batch: int | None = SCORE_BATCH
    probabilities: bool = False
    temperature: float = 3.0

    def score(self, outputs: Any, labels: Tensor, original: Ask) -> Tensor:  # noqa: ARG002
        """Cross-entropy with classes drawn from the original's odds, both softened."""
        taught = class_scores(original(), self.probabilities)
        drawn = torch.multinomial((taught / self.temperature).softmax(1), 1).squeeze(1)
        found = class_scores(outputs, self.probabilities)
        return F.cross_entropy(found / self.temperature, drawn)

    def learn(self, outputs: Any, labels: Tensor, original: Ask) -> Tensor:  # noqa: ARG002
        """The distance to the original's softened outputs."""
        found, taught = (class_scores(t, self.probabilities) for t in (outputs, original()))
        return softened_distance(found, taught, self.temperature)


@dataclass(frozen=True, kw_only=True)
class OriginalOutputs:
    """Outputs of any structure against those of the original; labels are not looked at."""

    score_batch: int | None = SCORE_BATCH

    def score(self, outputs: Any, labels: Tensor, original: Ask) -> Tensor:  # noqa: ARG002
        """`relative_distance` to outputs that are off by noise as large as they are themselves."""
        beside = [t + _size(t) * torch.randn_like(t) for t in float_tensors(original())]
        return relative_distance(float_tensors(outputs), beside)

    def learn(self, outputs: Any, labels: Tensor, original: Ask) -> Tensor:  # noqa: ARG002
        """`relative_distance` to the original's outputs."""
        return relative_distance(float_tensors(outputs), float_tensors(original()))


def are_probabilities(outputs: Tensor) -> bool:
    """Whether rows (N, classes) are shares of one: the outputs of a softmax."""
    sums = outputs.float().sum(1)
    return bool((outputs >= 0).all()) and bool((sums - 1).abs().max() < 1e-3)


def class_scores(outputs: Tensor, probabilities: bool) -> Tensor:
    """Scores in float32 whose softmax is the network's answer."""
    return outputs.float().clamp(min=1e-8).log() if probabilities else outputs.float()


def softened_distance(outputs: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T² · KL(taught ‖ outputs) of class scores (N, classes) softened by T, a mean over N."""
    t = temperature
    divergence = F.kl_div(
        F.log_softmax(outputs.float() / t, 1),
        F.log_softmax(taught.float() / t, 1),
        reduction="batchmean",
        log_target=True,
    )
    return t * t * divergence


def relative_distance(outputs: list[Tensor], taught: list[Tensor]) -> Tensor:
    """Mean squared difference over the mean square of what is taught, a mean over the outputs."""
    distances = [
        (a.float() - b.float()).square().mean() / b.float().square().mean().clamp(min=1e-12)
        for a, b in zip(outputs, taught, strict=True)
    ]
    return torch.stack(distances).mean()


def _size(tensor: Tensor) -> Tensor:
    """Root of the mean square."""
    return tensor.float().square().mean().sqrt()


def float_tensors(outputs: Any) -> list[Tensor]:
    """All floating-point tensors in outputs of any structure."""
    leaves = tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
