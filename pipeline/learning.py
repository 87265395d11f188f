"""How a network learns: which parts, at which rate, with which optimizer.

What enters: a network or its parameters, a phase of the schedule. Leaves: plain torch objects.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gbn.ticktock import Phase
from pipeline.errors import CompressError, UsageError, one_line

_MOMENTUM = 0.9
_WEIGHT_DECAY = 5e-4
_WARMUP_SHARE = 0.05


def sgd(parameters: list[nn.Parameter], lr: float, *, decay_all: bool) -> torch.optim.SGD:
    """Weight decay for weights; for biases and norms, which it only shrinks, where `decay_all`."""
    decayed = [p for p in parameters if p.ndim > 1 or decay_all]
    spared = [p for p in parameters if not (p.ndim > 1 or decay_all)]
    groups = [
        {"params": decayed, "weight_decay": _WEIGHT_DECAY},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=_MOMENTUM, nesterov=True)


class Frozen:
    """Turns gradients of all parameters off but the given ones, and back as they were."""

    def __init__(self, model: nn.Module, keep: set[int]) -> None:
        self._before = [(p, p.requires_grad) for p in model.parameters()]
        self._keep = keep

    def __enter__(self) -> None:
        for parameter, _ in self._before:
            parameter.requires_grad_(id(parameter) in self._keep)

    def __exit__(self, *_: object) -> None:
        for parameter, flag in self._before:
            parameter.requires_grad_(flag)


def learn_in_leaves(model: nn.Module) -> None:
    """Training mode for layers, eval mode for what holds them.

    Layers such as norms and dropout must know that they are being trained. A network that asks
    itself would run auxiliary heads, which the deployed graph does not have and no cut has seen.
    """
    for module in model.modules():
        is_layer = isinstance(module, nn.modules.batchnorm._NormBase)
        module.training = is_layer or next(module.children(), None) is None


def last_linear(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of the last linear layer; none where a network has no such layer."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return list(linear[-1].parameters()) if linear else []


def lr_share(phase: Phase, step: int) -> float:
    """Learning rate at a step as a share of the peak.

    Short warm-up, then a cosine to `lr_to`; or straight to `lr_top` in the middle, and back.
    """
    if phase.lr_top is not None:
        way = step / max(phase.batches - 1, 1)
        end, near = (phase.lr_from, 1 - 2 * way) if way < 0.5 else (phase.lr_to, 2 * way - 1)
        return phase.lr_top + (end - phase.lr_top) * near
    warmup = max(round(_WARMUP_SHARE * phase.batches), 1)
    if step < warmup:
        return phase.lr_from * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(phase.batches - warmup, 1)
    return phase.lr_to + (phase.lr_from - phase.lr_to) * 0.5 * (1 + math.cos(math.pi * progress))


def parts_of(images: Tensor, targets: Any, count: int) -> Iterator[tuple[Tensor, Any, float]]:
    """A batch in `count` parts (fewer where it has fewer images), each with its share of images.

    The shares weight the parts' mean losses, so their gradients add up to the whole batch's.
    Raises CompressError for targets that are not one tensor with a row for each image.
    """
    count = min(count, len(images))
    if count == 1:
        yield images, targets, 1.0
        return
    if not isinstance(targets, Tensor) or len(targets) != len(images):
        raise CompressError(
            "--accumulate splits batches, but the targets are not one tensor with a row for each "
            f"of {len(images)} images: leave it out and lower --batch-size"
        )
    for part, answers in zip(images.chunk(count), targets.chunk(count), strict=True):
        yield part, answers, len(part) / len(images)


@contextlib.contextmanager
def learnable() -> Iterator[None]:
    """What torch says of a network that runs and cannot learn, in one line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UsageError(
            "the device has too little memory for a batch: --accumulate 2 computes it in parts, or "
            "give a smaller --batch-size"
        ) from error
    except RuntimeError as error:
        raise UsageError(
            f"the network runs, but gradients cannot be taken: {one_line(error)}"
        ) from error
