"""What a run learns from: the user's data, or images made from the network itself.

Enters: the measured baseline. Leaves: a `Trainer` on that data with its objective; None where
nothing can be learnt, with the reason said aloud.
"""

import copy
from dataclasses import dataclass, replace

from lightning_fabric import Fabric

from pipeline import checkup
from pipeline.baseline import Baseline
from pipeline.checkup import Checkup
from pipeline.config import RunConfig
from pipeline.console import RunConsole
from pipeline.data import Data
from pipeline.data_free import MadeData, NothingMade, amounts, cannot_learn, make_data
from pipeline.goal import Goal
from pipeline.loggers import make_loggers
from pipeline.objectives import Objective
from pipeline.ranks import Ranks
from pipeline.recipes import RECIPES, Recipe
from pipeline.rundir import RunDirectory
from pipeline.synthetic import DivergedError
from pipeline.tasks import TaskObjective
from pipeline.training import Trainer
from pipeline.training_settings import TrainingSettings

MADE_PEAK_LR = 0.02  # on images that are few
_PHASES = 40  # of a long schedule: twenty ticks, as many tocks


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """trainer: None where there is nothing to learn from; made: None where no
    images are wanted."""

    trainer: Trainer | None
    made: MadeData | NothingMade | None


@dataclass(frozen=True)
class _Lesson:
    """What is learnt, from which images, how fast, and by which recipe."""

    data: Data
    objective: Objective
    peak_lr: float
    recipe: Recipe
    checkup: Checkup


def trainer_on(
    config: RunConfig, baseline: Baseline, data: Data, console: RunConsole, ranks: Ranks
) -> Trainer:
    """Learns from the user's data, together with the other processes of the run."""
    recipe = RECIPES[config.recovery.recipe]
    objective = TaskObjective(
        task=baseline.judge.task,
        distill=config.recovery.distill and recipe.distill,
        score_batch=recipe.score_batch,
    )
    images = checkup.num_images(config.recovery.epochs * data.num_train, _PHASES)
    check = checkup.on_data(data, baseline.judge, images)
    lesson = _Lesson(data, objective, recipe.peak_lr, recipe, check)
    return _trainer(config, baseline, lesson, console, ranks)


def prepare(
    config: RunConfig,
    baseline: Baseline,
    goal: Goal,
    run: RunDirectory,
    console: RunConsole,
    ranks: Ranks,
) -> Recovery:
    """Make images where there is no data, and the trainer."""
    if baseline.data is not None:
        trainer = trainer_on(config, baseline, baseline.data, console, ranks)
        return Recovery(trainer=trainer, made=None)
    if goal.holds_uncut(baseline.groups):
        return Recovery(trainer=None, made=None)
    console.stage("images")
    made = _made(config, baseline, run, console)
    if isinstance(made, NothingMade):
        console.warn(
            f"no images can be made for this network: {made.reason}. It is cut once by the "
            "size of its weights, and nothing is recovered; --data would give more"
        )
        return Recovery(trainer=None, made=made)
    original = copy.deepcopy(baseline.loaded.module)
    check = checkup.against_original(made.compared_on, original, made.classes)
    # augmented here means mixtures of made images, from which the network learns as well
    recipe = replace(goal.recipe, score_augmented=True)
    lesson = _Lesson(made.data, made.objective, MADE_PEAK_LR, recipe, check)
    trainer = _trainer(config, baseline, lesson, console, ranks)
    return Recovery(trainer=trainer, made=made)


def _made(
    config: RunConfig, baseline: Baseline, run: RunDirectory, console: RunConsole
) -> MadeData | NothingMade:
    loaded, seed = baseline.loaded, config.recovery.seed
    reason = cannot_learn(loaded)
    if reason is not None:
        return NothingMade(reason=reason)
    plan = amounts(baseline.cost.num_macs, baseline.device.type, config.data.batch_size)
    try:
        return make_data(loaded, plan, seed, baseline.device, run, console)
    except DivergedError as error:
        return NothingMade(reason=str(error))


def _trainer(
    config: RunConfig, baseline: Baseline, lesson: _Lesson, console: RunConsole, ranks: Ranks
) -> Trainer:
    device = baseline.device
    fabric = Fabric(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        precision="bf16-mixed" if device.type == "cuda" else "32-true",
        loggers=make_loggers(config.logger, config.out) if ranks.leads else [],
    )
    settings = TrainingSettings(
        peak_lr=config.recovery.lr or lesson.peak_lr,
        objective=lesson.objective,
        decay_all=lesson.recipe.decay_all,
        score_augmented=lesson.recipe.score_augmented,
        stream_weight=lesson.recipe.stream_weight if config.recovery.distill else 0.0,
        seed=config.recovery.seed,
        checkup=lesson.checkup,
        accumulate=config.recovery.accumulate,
    )
    return Trainer(fabric, lesson.data, baseline.loaded.module, settings, console, ranks)
