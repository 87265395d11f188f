"""Images out of a network's own batch norms, for runs without data.

Enters: a trained network and how many images are wanted. Leaves: images (N, C, H, W) as the network
takes them, normalised.
A batch norm remembers the mean and the variance of what it saw in training. Images start as noise
with the spectrum of photographs and are changed by gradient descent until each batch norm sees its
own memories again, and a classifier its classes with confidence (after Yin et al. 2020,
"DeepInversion", arXiv 1912.08795). A network without batch norms gets the noise as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.errors import CompressError
from pipeline.objectives import class_scores

_LR = 0.1
_CLASS_WEIGHT = 0.1
_SMOOTH_WEIGHT = 0.01
_SIZE_WEIGHT = 0.001
_GREY_SHARE = 0.85  # of the variance: photographs are mostly light and dark, little colour

Advance = Callable[[int], None]


class DivergedError(CompressError):
    """The loss of the images is no number any more."""


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """What is wanted of one batch of images.

    num_classes: of a classifier's output (N, classes); None where the outputs are no class scores.
    probabilities: whether that output went through a softmax.
    steps: of gradient descent.
    """

    num: int
    input_size: tuple[int, int, int]
    num_classes: int | None
    probabilities: bool = False
    steps: int
    seed: int


def remembering_norms(model: nn.Module) -> list[_BatchNorm]:
    """Batch norms that hold statistics of their training."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def photo_noise(num: int, size: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """(N, C, H, W) noise of amplitude 1 / frequency, mean 0 and variance 1 a channel.

    Photographs have this spectrum (Field 1987), and their channels go together.
    """
    channels, height, width = size
    frequency = torch.sqrt(
        torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width)[None].square()
    )
    amplitude = 1 / frequency.clamp(min=1 / max(height, width))
    amplitude[0, 0] = 1 / max(height, width)  # images differ in brightness, a little
    colours = torch.randn(num, channels, height, width, generator=rng)
    grey = torch.randn(num, 1, height, width, generator=rng)
    white = _GREY_SHARE**0.5 * grey + (1 - _GREY_SHARE) ** 0.5 * colours
    images = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(height, width))
    mean, deviation = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    return (images - mean) / deviation.clamp(min=1e-6)


def make_images(model: nn.Module, request: ImageRequest, advance: Advance) -> Tensor:
    """`request.num` images on the CPU; `advance` is told of each step.

    `model` is in eval mode, and its parameters need no gradients. Raises DivergedError.
    """
    rng = torch.Generator().manual_seed(request.seed)
    start = photo_noise(request.num, request.input_size, rng)
    norms = remembering_norms(model)
    if not norms:
        advance(1)
        return start
    assert norms[0].running_mean is not None
    device = norms[0].running_mean.device
    wanted = None
    if request.num_classes is not None:
        wanted = torch.arange(request.num, device=device) % request.num_classes
    images = start.to(device).requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=_LR, betas=(0.5, 0.9))
    with noted_inputs(norms) as mismatches:
        for step in range(request.steps):
            optimizer.param_groups[0]["lr"] = _LR * (1 - step / request.steps)
            mismatches.clear()
            outputs = model(images)
            loss = torch.stack(mismatches).mean() + _prior(images)
            if wanted is not None:
                scores = class_scores(outputs, request.probabilities)
                loss = loss + _CLASS_WEIGHT * F.cross_entropy(scores, wanted)
            if not bool(loss.isfinite()):
                raise DivergedError(f"the images diverged in step {step}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            advance(1)
    return images.detach().cpu()


@contextmanager
def noted_inputs(norms: list[_BatchNorm]) -> Iterator[list[Tensor]]:
    """Inside, each run of the network appends one `mismatch` a batch norm to the list."""
    found: list[Tensor] = []

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        found.append(mismatch(inputs[0], norm))

    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def mismatch(seen: Tensor, norm: _BatchNorm) -> Tensor:
    """How far the statistics of `seen` (N, C, ...) are from those that the norm remembers.

    Mean over channels of the squared differences of means and of standard deviations, in units of
    the remembered standard deviation: 0 where all agree.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    others = [d for d in range(seen.ndim) if d != 1]
    variance, mean = torch.var_mean(seen.float(), dim=others, correction=0)
    remembered = norm.running_var + norm.eps
    off_mean = (mean - norm.running_mean).square() / remembered
    off_deviation = (((variance + norm.eps) / remembered).sqrt() - 1).square()
    return (off_mean + off_deviation).mean()


def _prior(images: Tensor) -> Tensor:
    across = (images[..., 1:] - images[..., :-1]).square().mean()
    down = (images[..., 1:, :] - images[..., :-1, :]).square().mean()
    return _SMOOTH_WEIGHT * (across + down) + _SIZE_WEIGHT * images.square().mean()
