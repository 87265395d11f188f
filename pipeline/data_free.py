"""Data for a run without data: images made from the network itself, kept in the run's stages.

Enters: the network, its cost and its device. Leaves: `MadeData`, or the reason why there is none.
How much is made follows the network's cost, so that making it takes minutes and not hours.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.console import RunConsole
from pipeline.data import Data
from pipeline.errors import UsageError
from pipeline.importers import LoadedModel
from pipeline.importers.callables import FOREIGN_ERRORS
from pipeline.mixed_data import made_images, mixtures
from pipeline.objectives import (
    Objective,
    OriginalClasses,
    OriginalOutputs,
    are_probabilities,
    float_tensors,
)
from pipeline.rundir import RunDirectory
from pipeline.synthetic import Advance, ImageRequest, make_images, photo_noise, remembering_norms

NORM_IMAGES = "statistics of batch norms"
NOISE_IMAGES = "noise with the spectrum of photographs"

_VERSION = version("gbn-compress")
_STAGE = "images"
_STEPS = 40
_MAX_IMAGES = 1024
_MIN_IMAGES = 96
_MIN_BATCH = 32
_LEAST_BATCH = 16  # with fewer, statistics say little
_MIXTURES = 4  # of each image held out
_HELD_OUT_SHARE = 5  # one batch in so many
_BUDGET_MACS = {"cpu": 2.2e12, "cuda": 1e14, "mps": 1e13}  # of forward passes


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How many batches of how many images, by how many steps each; the last ones are held out."""

    batch_size: int
    batches: int
    steps: int

    @property
    def held_out(self) -> int:
        """Batches that nothing is trained on."""
        return max(self.batches // _HELD_OUT_SHARE, 1)


@dataclass(frozen=True, kw_only=True)
class MadeData:
    """Images, and what is learnt on them.

    data: labels are zeros and mean nothing. compared_on: (N, C, H, W) mixtures of images that
    nothing is trained on: on images of one clear class two networks agree too easily.
    classes: whether the network gives class scores. described: for the report.
    """

    data: Data
    compared_on: Tensor
    objective: Objective
    classes: bool
    seconds: float
    described: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class NothingMade:
    """Why no images could be made."""

    reason: str

    @property
    def described(self) -> Mapping[str, Any]:
        """For the report."""
        return {"made_from": None, "images": 0, "held_out": 0, "steps": 0, "reason": self.reason}


def amounts(num_macs: int, device_type: str, batch_size: int) -> Amounts:
    """As many images as the budget of the device allows, at least `_MIN_IMAGES`.

    `batch_size`: the user's, which batches stay under as far as statistics over them make sense.
    """
    affordable = int(_BUDGET_MACS[device_type] / (num_macs * _STEPS))
    images = min(max(affordable, _MIN_IMAGES), _MAX_IMAGES)
    batch = min(max(batch_size, _LEAST_BATCH), max(images // 8, _MIN_BATCH))
    return Amounts(batch_size=batch, batches=max(round(images / batch), 2), steps=_STEPS)


def is_classifier(loaded: LoadedModel) -> bool:
    """Whether the output is (N, classes) of two classes or more."""
    return (loaded.num_outputs or 0) >= 2


def ends_in_softmax(loaded: LoadedModel) -> bool:
    """Whether a classifier's outputs on noise are probabilities."""
    if not is_classifier(loaded):
        return False
    with torch.no_grad():
        outputs: Tensor = loaded.module(_noise(loaded))
    return are_probabilities(outputs)


def _noise(loaded: LoadedModel) -> Tensor:
    return photo_noise(4, loaded.input_size, torch.Generator().manual_seed(0))


def _objective(loaded: LoadedModel) -> Objective:
    if is_classifier(loaded):
        return OriginalClasses(probabilities=ends_in_softmax(loaded))
    return OriginalOutputs()


def cannot_learn(loaded: LoadedModel) -> str | None:
    """Why nothing can be learnt from images made for this network; None where it can."""
    noise = _noise(loaded)
    shapes = []
    for images in (noise[:2], noise[2:]):
        try:
            outputs = float_tensors(loaded.module(images))
        except FOREIGN_ERRORS as error:
            return f"it does not run on noise ({type(error).__name__})"
        if not any(output.requires_grad for output in outputs):
            return "its outputs have no gradient"
        if not all(bool(output.isfinite().all()) for output in outputs):
            return "its outputs on noise are not finite"
        shapes.append([output.shape for output in outputs])
    if shapes[0] != shapes[1]:
        return "the shapes of its outputs depend on the image"
    return None


def make_data(
    loaded: LoadedModel,
    plan: Amounts,
    seed: int,
    device: torch.device,
    run: RunDirectory,
    console: RunConsole,
) -> MadeData:
    """Make what an earlier run has not made yet, one batch after another.

    A run that was begun on another device goes on with that one's `plan`. Raises DivergedError.
    """
    began = monotonic()
    teacher = copy.deepcopy(loaded.module).to(device).eval().requires_grad_(False)
    plan, batches = _made_so_far(plan, run)
    if len(batches) < plan.batches:
        maker = _Maker(teacher, loaded, plan, seed)
        _make_rest(maker, batches, run, console)
    by_norms = bool(remembering_norms(teacher))
    training = torch.cat(batches[: -plan.held_out]).float()
    held_out = torch.cat(batches[-plan.held_out :]).float()
    made_from = NORM_IMAGES if by_norms else NOISE_IMAGES
    console.say(
        f"{len(training)} images to learn from and {len(held_out)} held out, made from {made_from}"
    )
    return MadeData(
        data=made_images(training, held_out, plan.batch_size, seed),
        compared_on=mixtures(held_out, _MIXTURES, seed),
        objective=_objective(loaded),
        classes=is_classifier(loaded),
        seconds=round(monotonic() - began, 2),
        described={
            "made_from": made_from,
            "images": len(training),
            "held_out": len(held_out),
            "steps": plan.steps if by_norms else 0,
            "reason": None,
        },
    )


class _Maker:
    """Makes batches by number, the same whenever it is asked."""

    def __init__(self, teacher: nn.Module, loaded: LoadedModel, plan: Amounts, seed: int) -> None:
        self._teacher = teacher
        self._loaded = loaded
        self._seed = seed
        self.plan = plan
        self.steps = plan.steps if remembering_norms(teacher) else 1

    def batch(self, number: int, advance: Advance) -> Tensor:
        """Half precision: what is kept for a run that is resumed, and used in this one as well."""
        request = ImageRequest(
            num=self.plan.batch_size,
            input_size=self._loaded.input_size,
            num_classes=self._loaded.num_outputs if is_classifier(self._loaded) else None,
            probabilities=ends_in_softmax(self._loaded),
            steps=self.plan.steps,
            seed=self._seed * _MAX_IMAGES + number,
        )
        return make_images(self._teacher, request, advance).half()


def _make_rest(
    maker: _Maker, batches: list[Tensor], run: RunDirectory, console: RunConsole
) -> None:
    plan = maker.plan
    with console.progress("images", total=plan.batches * maker.steps) as advance:
        advance(len(batches) * maker.steps)
        for number in range(len(batches), plan.batches):
            batches.append(maker.batch(number, advance))
            kept = {"made_by": _VERSION, "plan": asdict(plan), "batches": batches}
            run.save_stage(_STAGE, kept)


def _made_so_far(plan: Amounts, run: RunDirectory) -> tuple[Amounts, list[Tensor]]:
    if not run.is_done(_STAGE):
        return plan, []
    saved = run.load_stage(_STAGE)
    if saved["made_by"] != _VERSION:
        raise UsageError(
            f"--resume: the images in '{run.path}' were made by version {saved['made_by']} of this "
            f"tool, not {_VERSION}: start anew with another --out"
        )
    return Amounts(**saved["plan"]), saved["batches"]
