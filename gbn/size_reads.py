"""Whether a forward could know any width: what it neither reads nor tells, a cut cannot upset.

What enters: each function of torch that a forward calls, by a `TorchFunctionMode`, which sees also
the attributes that are read from tensors (`x.shape`). What leaves: the answer whether trial cuts
could show anything.

A forward whose tensors tell it no size does the same in every cut network: the same functions with
the same numbers. If each of these functions works for any width (a convolution, a norm, a sum of
two tensors; no view, slice or pad, which are told sizes), each op of the cut network gives what its
rule says, and a trial would only find that again. Two numbers are left that torch's own layers
pass on to such functions and that follow the widths: groups of convolutions and shapes of norms.
They must be kept by torch's own layers, which do nothing else with them, and nobody else may read
them there.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from gbn.faults import OpRecord
from gbn.groups import ChannelGroups, surviving
from gbn.rules import Facts

# Sizes that follow, and the layers that keep them only to pass them on.
_KEEPERS: dict[str, tuple[type, ...]] = {
    "groups": (_ConvNd,),
    "normalized_shape": (nn.LayerNorm, nn.RMSNorm),
}
_LAYERS = f"{Path(nn.__file__).parent}{os.sep}"


class SizeReads(TorchFunctionMode):
    """Watches the functions of a run. `blind`: the forward read no size and told none."""

    def __init__(self) -> None:
        super().__init__()
        self.blind = True
        self.inside = False

    def __enter__(self) -> "SizeReads":
        for attribute, kinds in _KEEPERS.items():
            for kind in kinds:
                setattr(kind, attribute, _Watched(attribute, self))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for attribute, kinds in _KEEPERS.items():
            for kind in kinds:
                delattr(kind, attribute)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in _OF_ANY_WIDTH:
            self.blind = False
        self.inside = True  # what such a function calls itself is not seen here
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.inside = False

    def note_op(self) -> None:
        """An op runs: one that no watched function called (a script's) may know anything."""
        self.blind = self.blind and self.inside


def untried(
    reads: SizeReads,
    facts: Facts,
    groups: ChannelGroups,
    model: nn.Module,
    records: Sequence[OpRecord],
) -> ChannelGroups | None:
    """The groups, where it is certain that the forward goes the same way in every cut network.

    Of the sizes that modules keep, only those follow that an op was told: to change another that
    happens to be as large as a width could change the forward.
    """
    if not reads.blind or any(_pads_a_width(record, groups) for record in records):
        return None
    told = {
        (use.module, use.role)
        for use in facts.sized
        if use.role and not surviving(use.rows, groups.removable_ids).all()
    }
    sizes = tuple(size for size in groups.sizes if (size.module, size.attribute) in told)
    if len(told) != len({(size.module, size.attribute) for size in sizes}):
        return None
    if not all(isinstance(model.get_submodule(path), _KEEPERS[role]) for path, role in told):
        return None
    return replace(groups, sizes=sizes)


def _pads_a_width(record: OpRecord, groups: ChannelGroups) -> bool:
    """A pad is told numbers, which matter only where they lie beside channels."""
    if "pad" not in record.op or not record.outputs:
        return False
    ndim = len(record.shapes[0])
    padded = range(ndim - len(record.numbers) // 2, ndim)
    return any(
        not surviving(rows, groups.removable_ids).all()
        for dim, rows in record.outputs[0].items()
        if dim in padded
    )


class _Watched:
    """An attribute that says so where other code than torch's own layers reads it."""

    def __init__(self, name: str, reads: SizeReads) -> None:
        self._name = name
        self._reads = reads

    def __get__(self, module: Any, _kind: type) -> Any:
        if module is None or self._name not in vars(module):
            raise AttributeError(self._name)
        if not sys._getframe(1).f_code.co_filename.startswith(_LAYERS):
            self._reads.blind = False
        return vars(module)[self._name]

    def __set__(self, module: Any, value: Any) -> None:
        vars(module)[self._name] = value


def _methods(*names: str) -> Iterator[Any]:
    """Methods, operators and functions of these names, in place and not."""
    for name in names:
        for place in (Tensor, torch, F):
            for form in (name, f"{name}_", f"__{name}__", f"__r{name}__", f"__i{name}__"):
                if (found := getattr(place, form, None)) is not None:
                    yield found


# Functions that give a right result for any width, with numbers that are no widths.
_OF_ANY_WIDTH = frozenset(
    (
        *_methods("conv1d", "conv2d", "conv3d", "linear", "batch_norm", "layer_norm", "bilinear"),
        *_methods("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *_methods("relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "prelu"),
        *_methods("hardtanh", "sigmoid", "hardsigmoid", "hardswish", "tanh", "softplus", "softmax"),
        *_methods("log_softmax", "dropout", "alpha_dropout", "feature_dropout", "dropout2d"),
        *_methods("add", "sub", "mul", "div", "truediv", "neg", "clamp", "exp", "sqrt", "rsqrt"),
        *_methods("iadd", "isub", "imul", "pow", "abs", "sin", "cos", "erf", "maximum", "minimum"),
        *_methods("mean", "sum", "amax", "amin", "cat", "concat", "flatten", "clone", "contiguous"),
        *_methods("permute", "transpose", "t", "unsqueeze", "matmul", "bmm", "mm", "float", "to"),
        *_methods("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d"),
        *_methods("avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "detach"),
        F.pad,  # but see `_pads_a_width`
        *_methods("adaptive_max_pool1d", "adaptive_max_pool2d", "dim", "is_floating_point"),
        torch._assert,  # of what was read from tensors, which is seen
        *(
            getattr(Tensor, name).__get__
            for name in ("ndim", "dtype", "device", "requires_grad", "is_cuda", "is_meta", "layout")
        ),
    )
)
