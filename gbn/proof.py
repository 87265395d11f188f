"""The proof: gated to zero and physically smaller are the same function.

The reference is the original network with the gates of all removed channels at zero: weights and
biases of the gate sites multiplied by zero there. The candidate is the network after surgery. Both
are run in float64 where they fit, else in float32, and must agree on every output.

A forward that casts to half or float32 itself is run without these casts: see `one_precision`.

A network whose head is still zero agrees with anything. Where the gates move no output, the
comparison is repeated with random values in place of zero parameters, and then of all parameters
and inputs: an input that leaves every activation behind the cut at zero says nothing either.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gbn.choices import Choices, FollowChoices, NoteChoices
from gbn.distance import distance
from gbn.errors import ProofFailed, TraceError
from gbn.one_precision import OnePrecision
from gbn.prune_plan import PrunePlan
from gbn.running import output_tensors, run_model, tracing_mode
from gbn.surgery import prune
from gbn.survivors import survivor_statistics

_FLOAT64_LIMIT = 400_000_000  # parameters; above, two copies in float64 may not fit
_NUM_DRAWS = 3
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


@dataclass(frozen=True, kw_only=True)
class Proof:
    """`max_abs_diff`: largest |difference| as a share of the reference's largest |output|.

    `effect`: how far the gates moved the original's output, in the same unit; where that is 0 the
    inputs say nothing about the removed channels (`vacuous`). `randomised`: the comparison was made
    with random values in place of zeros, since it was vacuous with the network's own.
    `removes`: the plan takes something away at all. `num_overruled`: how many choices by value (the
    best of some scores) the smaller network would have made otherwise, by rounding, and was made to
    follow; see `gbn.choices`.
    """

    max_abs_diff: float
    tolerance: float
    effect: float
    dtype: str
    randomised: bool = False
    removes: bool = True
    num_overruled: int = 0

    @property
    def ok(self) -> bool:
        """The two networks agree, and not because nothing could have told them apart."""
        return self.max_abs_diff <= self.tolerance and not (self.removes and self.vacuous)

    @property
    def vacuous(self) -> bool:
        """Removing the channels changed nothing on these inputs."""
        return self.effect == 0.0


def prove(model: nn.Module, plan: PrunePlan, small: nn.Module, example_inputs: Any) -> Proof:
    """Compare the gated `model` with `small` on the inputs (tensor, tuple or dict; any batch).

    Where that is vacuous, a copy of `model` gets random values for its zeros and for what the plan
    removes, is pruned by the same plan, and is compared in the same way; where that is vacuous as
    well, all of its parameters and the inputs get random values, a few times.

    Raises ProofFailed when `small` does not run or its outputs have another structure; a numeric
    disagreement is returned, see `Proof.ok`.
    """
    proof = _compare(model, plan, small, example_inputs)
    if not plan.kept:
        return replace(proof, removes=False)
    if not proof.vacuous or proof.max_abs_diff > proof.tolerance:
        return proof
    worst = proof.max_abs_diff
    for fresh, inputs in _others(model, plan, example_inputs):
        proof = _compare(fresh, plan, prune(fresh, plan), inputs)
        worst = max(worst, proof.max_abs_diff)
        if not proof.vacuous:
            break
    return replace(proof, max_abs_diff=worst, randomised=True)


def _others(model: nn.Module, plan: PrunePlan, inputs: Any) -> Iterator[tuple[nn.Module, Any]]:
    """Networks of the same shape, and inputs, that may tell what these do not."""
    yield randomised(model, plan), inputs
    for seed in range(_NUM_DRAWS):
        generator = torch.Generator().manual_seed(seed)
        drawn = tree_map(lambda value, by=generator: _moved(value, by), inputs)
        fresh = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.copy_(_moved(parameter, generator))
        yield fresh, drawn


def _moved(value: Any, generator: torch.Generator) -> Any:
    """With noise as large as the values themselves, and some where they are zero."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        return value
    scale = value.detach().double().square().mean().sqrt().item() or 0.1
    return value + scale * torch.randn(value.shape, generator=generator).to(value)


def _compare(model: nn.Module, plan: PrunePlan, small: nn.Module, example_inputs: Any) -> Proof:
    size = sum(p.numel() for p in model.parameters())
    for dtype in (torch.float64, torch.float32):
        if dtype is torch.float64 and size > _FLOAT64_LIMIT:
            continue
        inputs = tree_map(lambda value, to=dtype: cast_floats(value, to), example_inputs)
        try:
            reference, choices = reference_outputs(
                in_precision(gate_to_zero(model, plan), dtype), plan, inputs
            )
        except TraceError:
            if dtype is torch.float32:
                raise
            continue  # a forward that insists on float32 cannot be run in float64
        effect = _effect(
            in_precision(copy.deepcopy(model), dtype), inputs, reference, replace(choices)
        )
        try:
            with FollowChoices(choices):
                result = outputs_of(in_precision(copy.deepcopy(small), dtype), inputs)
        except TraceError as error:
            raise ProofFailed(f"the pruned network does not run: {error}") from error
        return Proof(
            max_abs_diff=max(distance(reference, result), choices.max_abs_diff),
            tolerance=_TOLERANCE[dtype],
            effect=effect,
            dtype=str(dtype).removeprefix("torch."),
            num_overruled=choices.num_overruled,
        )
    raise AssertionError("float32 is always tried")


def _effect(original: nn.Module, inputs: Any, reference: list[Tensor], choices: Choices) -> float:
    """How far the gates moved the outputs; infinite where these are no longer comparable."""
    try:
        with FollowChoices(choices):
            outputs = outputs_of(original, inputs)
        return max(distance(reference, outputs), choices.max_abs_diff)
    except (ProofFailed, TraceError):
        return math.inf


def reference_outputs(
    gated: nn.Module, plan: PrunePlan, inputs: Any
) -> tuple[list[Tensor], Choices]:
    """What the gated network returns, its statistics over channels taken over the survivors.

    And what it chose by value on the way: the network that it is compared with must follow.
    """
    with survivor_statistics(plan), NoteChoices() as notes:
        return outputs_of(gated, inputs), notes.choices


def gate_to_zero(model: nn.Module, plan: PrunePlan) -> nn.Module:
    """A copy of `model` with the gates of removed channels at zero: what the cut must equal.

    γ and β of a batch norm, or weight and bias of what has none, are 0 there; shapes are those of
    `model`. Raises PlanMismatch for a plan of another model.
    """
    gated = copy.deepcopy(model)
    with torch.no_grad():
        for tensor, gone in _removed(gated, plan):
            tensor.masked_fill_(gone, 0.0)
    return gated


def randomised(model: nn.Module, plan: PrunePlan | None = None) -> nn.Module:
    """A copy of `model` whose zero parameters, and what `plan` removes, are normal (0, 0.1)."""
    fresh = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    zeros = [(p, p == 0) for p in fresh.parameters() if p.is_floating_point()]
    with torch.no_grad():
        for tensor, where in [*zeros, *(_removed(fresh, plan) if plan is not None else ())]:
            noise = (0.1 * torch.randn(tensor.shape, generator=generator)).to(tensor)
            tensor.copy_(torch.where(where, noise, tensor))
    return fresh


def _removed(model: nn.Module, plan: PrunePlan) -> Iterator[tuple[Tensor, Tensor]]:
    """Gated tensors, and a mask, broadcast to them, of the channels that the plan removes."""
    for name, axis in plan.gates:
        if axis in plan.kept.get(name, {}):
            tensor = model.get_parameter(name)
            gone = torch.ones(tensor.shape[axis], dtype=torch.bool)
            gone[torch.from_numpy(plan.kept_array(name, axis))] = False
            shape = [-1 if d == axis else 1 for d in range(tensor.ndim)]
            yield tensor, gone.view(shape).to(tensor.device)


def cast_floats(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in the given dtype, complex ones of two such; anything else as it is."""
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        return value.to(dtype.to_complex() if value.is_complex() else dtype)
    return value


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`model`, cast in place; `Module.to` would take the imaginary parts from complex weights."""
    return model._apply(lambda tensor: cast_floats(tensor, dtype))


def outputs_of(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All tensors that the model returns, in order, computed in the precision of its weights."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with tracing_mode(model), OnePrecision(own):
        outputs = run_model(model, inputs)
    return output_tensors(outputs)
