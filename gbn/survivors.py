"""Statistics over what is left: the reference for networks whose norms run over channels.

A layer norm that loses channels normalises over fewer: no gate makes the full network do the same.
So the network that a pruned one must equal is defined as the gated one, in which each op that takes
statistics over channels takes them over the survivors, and gives zeros for the others.

What enters: a plan. What leaves: a context in which a gated network runs so. Refused: a run whose
ops are not those that the plan was made from.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gbn.errors import ProofFailed
from gbn.prune_plan import PrunePlan, SurvivingStatistics

aten = torch.ops.aten
_LAYER_NORMS = {aten.native_layer_norm, aten.rms_norm, aten._fused_rms_norm}
_NORMS = _LAYER_NORMS | {
    *(aten.native_group_norm, aten.native_batch_norm, aten._native_batch_norm_legit),
    *(aten.cudnn_batch_norm, aten.miopen_batch_norm),
}


@contextlib.contextmanager
def survivor_statistics(plan: PrunePlan) -> Iterator[None]:
    """The statistics of the plan are taken over survivors; raises ProofFailed if any never ran."""
    if not plan.statistics:
        yield
        return
    mode = _Survivors(plan)
    with mode:
        yield
    if mode.left:
        raise ProofFailed(
            f"the network ran without {mode.left[0].op} number {mode.left[0].call}, whose "
            "statistics the plan takes over the remaining channels: trace it again"
        )


class _Survivors(TorchDispatchMode):
    def __init__(self, plan: PrunePlan) -> None:
        super().__init__()
        self._uses = {(use.op, use.call): use for use in plan.statistics}
        self._calls: Counter[str] = Counter()

    @property
    def left(self) -> list[SurvivingStatistics]:
        """Uses that were not met."""
        return list(self._uses.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        op = str(func)
        use = self._uses.pop((op, self._calls[op]), None)
        self._calls[op] += 1
        if use is None:
            return func(*args, **(kwargs or {}))
        x = args[0]
        if any(axis >= x.ndim or x.shape[axis] != size for axis, size in use.sizes.items()):
            raise ProofFailed(
                f"{op} number {use.call} has an input of shape {tuple(x.shape)}, the plan was "
                f"made for sizes {use.sizes}: trace the network again"
            )
        kept = {axis: torch.tensor(k, device=x.device) for axis, k in use.kept.items()}
        out = func(*_selected(func, args, kept), **(kwargs or {}))
        if func.overloadpacket not in _NORMS:
            return out
        if isinstance(out, Tensor):
            return _spread(out, x, kept)
        return type(out)((_spread(out[0], x, kept), *out[1:]))


def _selected(func: Any, args: tuple[Any, ...], kept: dict[int, Tensor]) -> list[Any]:
    """Arguments of the op for the surviving part of its input."""
    x, *rest = args
    small = x
    for axis, index in kept.items():
        small = small.index_select(axis, index)
    packet = func.overloadpacket
    if packet in _LAYER_NORMS:
        first = x.ndim - len(rest[0])
        rest[0] = list(small.shape[first:])
        inner = {axis - first: index for axis, index in kept.items()}
        rest = [_part(v, inner) if isinstance(v, Tensor) else v for v in rest]
    elif packet is aten.native_group_norm:
        # weight, bias, N, C, H * W, groups, epsilon; each group loses equally many
        inner = {0: kept[1]} if 1 in kept else {}
        rest[:2] = [_part(v, inner) if isinstance(v, Tensor) else v for v in rest[:2]]
        rest[3], rest[4] = small.shape[1], small[0, 0].numel()
    return [small, *rest]


def _part(tensor: Tensor, kept: dict[int, Tensor]) -> Tensor:
    for axis, index in kept.items():
        tensor = tensor.index_select(axis, index)
    return tensor


def _spread(normed: Tensor, x: Tensor, kept: dict[int, Tensor]) -> Tensor:
    """A normed tensor in the sizes of the op's input, with zeros for what is removed."""
    for axis, index in kept.items():
        shape = list(normed.shape)
        shape[axis] = x.shape[axis]
        normed = normed.new_zeros(shape).index_copy(axis, index, normed)
    return normed
