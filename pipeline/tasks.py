"""What a network is trained for: its loss, its metric, and how its original teaches it.

What enters: nothing, for classification, or the callable that `--task` names. Called without
arguments it returns an object with these attributes:

    loss(outputs, targets)      a scalar tensor that can be differentiated
    metric(outputs, targets)    a number for the batch, or a tensor (N,), one value a sample
    metric_name                 as the report calls it
    higher_is_better            True or False
    distillation(outputs, taught)   optional: a scalar tensor, the distance to the original network

What leaves: a `Task`. `outputs` is what the network returns, `targets` what the loaders give.
Refused, in one line: anything missing or of another kind, functions that fail, and losses that are
not finite scalars.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from pipeline.errors import UsageError, one_line
from pipeline.importers.callables import FOREIGN_ERRORS, resolve_callable
from pipeline.objectives import Ask, float_tensors, relative_distance, softened_distance

Loss = Callable[[Any, Any], Tensor]

_TEMPERATURE = 3.0
_PARTS = {"loss": None, "metric": None, "metric_name": str, "higher_is_better": bool}
_NEEDED = f"it needs {', '.join(_PARTS)} (docs/tasks.md)"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How good outputs are; `function` gives a number for the batch, or values (N,)."""

    name: str
    function: Callable[[Any, Any], Any]
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Task:
    """Loss and distillation are scalar tensors; without a metric it is top-1 of class scores."""

    loss: Loss
    distillation: Loss
    metric: Metric | None = None

    @property
    def is_classification(self) -> bool:
        """Targets are class numbers (N,), outputs one tensor of scores (N, classes)."""
        return self.metric is None


def softened_divergence(outputs: Tensor, taught: Tensor) -> Tensor:
    """`softened_distance` at the usual temperature. Both (N, classes)."""
    return softened_distance(outputs, taught, _TEMPERATURE)


def relative_squared_error(outputs: Any, taught: Any) -> Tensor:
    """`relative_distance` of outputs of any structure."""
    return relative_distance(float_tensors(outputs), float_tensors(taught))


CLASSIFICATION = Task(loss=F.cross_entropy, distillation=softened_divergence)


@dataclass(frozen=True, kw_only=True)
class TaskObjective:
    """The task's own loss scores; it teaches, mostly through the original (Hinton et al. 2015).

    distill: off, the targets alone teach; share: of the original's part.
    """

    task: Task = CLASSIFICATION
    distill: bool = True
    share: float = 0.9
    score_batch: int | None = None

    def score(self, outputs: Any, labels: Any, original: Ask) -> Tensor:  # noqa: ARG002
        """The task's loss alone: near the original the distance to it has no gradient."""
        return self.task.loss(outputs, labels)

    def learn(self, outputs: Any, labels: Any, original: Ask) -> Tensor:
        """The task's loss, and the distance to the original's outputs."""
        own = self.task.loss(outputs, labels)
        if not self.distill:
            return own
        taught = self.task.distillation(outputs, original())
        return self.share * taught + (1 - self.share) * own


def load_task(spec: str | None) -> Task:
    """The task that `spec` names, FILE.py:FACTORY or package.module:FACTORY; None: classification.

    Raises UsageError.
    """
    if spec is None:
        return CLASSIFICATION
    where = f"--task {spec}"
    made: Any = _called(where, resolve_callable(spec, "--task"))
    for name, kind in _PARTS.items():
        if not hasattr(made, name):
            raise UsageError(f"{where}: its {type(made).__name__} has no {name!r}; {_NEEDED}")
        value = getattr(made, name)
        if not (callable(value) if kind is None else isinstance(value, kind)):
            wanted = "callable" if kind is None else f"a {kind.__name__}"
            raise UsageError(f"{where}: {name} is {value!r}; it must be {wanted}")
    distillation = getattr(made, "distillation", None) or relative_squared_error
    if not callable(distillation):
        raise UsageError(f"{where}: distillation is {distillation!r}; it must be callable")
    return Task(
        loss=_scalar(f"{where}: loss", made.loss),
        distillation=_scalar(f"{where}: distillation", distillation),
        metric=Metric(
            name=made.metric_name,
            function=lambda *given: _called(f"{where}: metric", made.metric, *given),
            higher_is_better=made.higher_is_better,
        ),
    )


def _called(where: str, function: Callable[..., object], *given: Any) -> Any:
    try:
        return function(*given)
    except FOREIGN_ERRORS as error:
        raise UsageError(f"{where} fails: {one_line(error)}") from error


def _scalar(where: str, function: Callable[..., object]) -> Loss:
    def checked(outputs: Any, targets: Any) -> Tensor:
        value = _called(where, function, outputs, targets)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            kind = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else value
            raise UsageError(f"{where} gives {kind!r}; it must give one floating-point number")
        return value.reshape(())

    return checked


@dataclass(frozen=True, kw_only=True)
class Judge:
    """By what ONNX files are measured: the task's metric, on outputs put together as the network's.

    structure: of the network's output, which a file gives as a list; None for classification.
    """

    task: Task
    structure: TreeSpec | None = None

    @classmethod
    def make(cls, task: Task, model: nn.Module, batches: Iterable[tuple[Tensor, Any]]) -> "Judge":
        """Try the task on the network as given and a first batch. Raises UsageError."""
        if task.metric is None:
            return cls(task=task)
        images, targets = next(iter(batches))
        outputs = model(images)
        for what, other in (("loss", targets), ("distillation", tree_map(_detached, outputs))):
            value = (task.loss if what == "loss" else task.distillation)(outputs, other)
            if not value.requires_grad or not math.isfinite(float(value.detach())):
                raise UsageError(
                    f"--task: the {what} of the given model is {float(value.detach()):g}"
                    + ("" if value.requires_grad else " and depends on no output by gradients")
                    + "; it must be finite and differentiable"
                )
        with torch.no_grad():
            task.metric.function(outputs, targets)
        return cls(task=task, structure=tree_flatten(outputs)[1])

    def judge(self, arrays: list[npt.NDArray[Any]], targets: Any) -> Any:
        """The metric of one batch of a file's outputs: a number, or an array (N,)."""
        assert self.task.metric is not None and self.structure is not None
        if len(arrays) != self.structure.num_leaves:
            raise UsageError(
                f"--task: the network returns {self.structure.num_leaves} values, its ONNX file "
                f"{len(arrays)} outputs: return tensors alone"
            )
        outputs = tree_unflatten([torch.from_numpy(array) for array in arrays], self.structure)
        with torch.no_grad():
            value = self.task.metric.function(outputs, targets)
        return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
