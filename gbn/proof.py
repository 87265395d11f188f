"""The proof: gated to zero and physically smaller are the same function.

The reference is the original network with the gates of all removed channels at zero: weights and
biases of the gate sites multiplied by zero there. The candidate is the network after surgery. Both
are run in float64 where they fit, else in float32, and must agree on every output.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gbn.errors import ProofFailed, TraceError
from gbn.prune_plan import PrunePlan
from gbn.running import run_model, tracing_mode

_FLOAT64_LIMIT = 400_000_000  # parameters; above, two copies in float64 may not fit
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


@dataclass(frozen=True, kw_only=True)
class Proof:
    """`max_abs_diff`: largest |difference| as a share of the reference's largest |output|.

    `effect`: how far the gates moved the original's output, in the same unit; where that is 0 the
    inputs say nothing about the removed channels (`vacuous`).
    """

    max_abs_diff: float
    tolerance: float
    effect: float
    dtype: str

    @property
    def ok(self) -> bool:
        """The two networks agree."""
        return self.max_abs_diff <= self.tolerance

    @property
    def vacuous(self) -> bool:
        """Removing the channels changed nothing on these inputs."""
        return self.effect == 0.0


def prove(model: nn.Module, plan: PrunePlan, small: nn.Module, example_inputs: Any) -> Proof:
    """Compare the gated `model` with `small` on the inputs (tensor, tuple or dict; any batch).

    Raises ProofFailed when `small` does not run or its outputs have another structure; a numeric
    disagreement is returned, see `Proof.ok`.
    """
    size = sum(p.numel() for p in model.parameters())
    for dtype in (torch.float64, torch.float32):
        if dtype is torch.float64 and size > _FLOAT64_LIMIT:
            continue
        inputs = tree_map(lambda value, to=dtype: cast_floats(value, to), example_inputs)
        try:
            original = outputs_of(copy.deepcopy(model).to(dtype), inputs)
        except TraceError:
            if dtype is torch.float32:
                raise
            continue  # a forward that casts to float32 itself cannot be run in float64
        reference = outputs_of(gate_to_zero(model, plan).to(dtype), inputs)
        try:
            result = outputs_of(copy.deepcopy(small).to(dtype), inputs)
        except TraceError as error:
            raise ProofFailed(f"the pruned network does not run: {error}") from error
        return Proof(
            max_abs_diff=distance(reference, result),
            tolerance=_TOLERANCE[dtype],
            effect=distance(reference, original),
            dtype=str(dtype).removeprefix("torch."),
        )
    raise AssertionError("float32 is always tried")


def gate_to_zero(model: nn.Module, plan: PrunePlan) -> nn.Module:
    """A copy of `model` with the gates of removed channels at zero."""
    gated = copy.deepcopy(model)
    with torch.no_grad():
        for name, axis in plan.gates:
            if axis in plan.kept.get(name, {}):
                tensor = gated.get_parameter(name)
                gone = torch.ones(tensor.shape[axis], dtype=torch.bool)
                gone[torch.from_numpy(plan.kept_array(name, axis))] = False
                shape = [-1 if d == axis else 1 for d in range(tensor.ndim)]
                tensor.masked_fill_(gone.view(shape).to(tensor.device), 0.0)
    return gated


def cast_floats(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in the given dtype; anything else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


def outputs_of(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All tensors that the model returns, in order."""
    with tracing_mode(model):
        outputs = run_model(model, inputs)
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def distance(reference: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    """Largest difference over all outputs, each relative to its own largest value."""
    worst = 0.0
    reference, other = list(reference), list(other)
    if len(reference) != len(other):
        raise ProofFailed(f"the pruned network gives {len(other)} outputs, not {len(reference)}")
    for a, b in zip(reference, other, strict=True):
        if a.shape != b.shape:
            raise ProofFailed(f"the pruned network gives {tuple(b.shape)}, not {tuple(a.shape)}")
        if a.numel() == 0:
            continue
        a, b = a.double(), b.double()
        scale = float(a.abs().max())
        difference = float((a - b).abs().max())
        if math.isnan(difference):
            return float("inf")
        worst = max(worst, difference / scale if scale > 0 else difference)
    return worst
