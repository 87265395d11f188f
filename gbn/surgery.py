"""Model + plan -> smaller model.

What enters: a model whose tensors have the shapes that the plan was made for. What leaves: the same
class with the kept channels alone, and the sizes that modules keep beside their weights updated.
Nothing is approximated: `gbn.proof` checks that the result equals the gated network.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gbn.aliases import replace_aliases
from gbn.errors import PlanMismatch
from gbn.prune_plan import PrunePlan, SizeChange


def prune(model: nn.Module, plan: PrunePlan) -> nn.Module:
    """A new, smaller module of the same classes; the given one is untouched.

    Parameters and buffers lose the positions that the plan drops, and sizes kept beside them
    (`out_channels`, `num_heads`, ...) follow. Raises PlanMismatch where `model` is not what the
    plan was made for.
    """
    return apply_plan(copy.deepcopy(model), plan)


def apply_plan(model: nn.Module, plan: PrunePlan) -> nn.Module:
    """Reshape `model` in place to what the plan keeps, and return it.

    For a fresh instance of the class that was pruned: afterwards `load_state_dict` takes the pruned
    weights. Raises PlanMismatch, before anything is changed, where a tensor or a size kept beside
    the weights is missing or other than the plan was made for.
    """
    _check(model, plan)
    done: dict[int, Tensor] = {}
    for name in plan.kept:
        _shrink(model, name, plan, done)
    replace_aliases(model, done)
    set_sizes(model, plan.sizes)
    return model


def set_sizes(model: nn.Module, changes: Iterable[SizeChange]) -> None:
    """Bring what modules keep beside their weights to the sizes that their weights have now."""
    for change in changes:
        _set_size(model, change)
    for module in model.modules():
        _refresh_sizes(module)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return dict(named)


def _check(model: nn.Module, plan: PrunePlan) -> None:
    tensors = _tensors(model)
    for name, shape in plan.shapes.items():
        if name not in tensors:
            raise PlanMismatch(f"the plan prunes {name!r}, which this model does not have")
        if tuple(tensors[name].shape) != tuple(shape):
            raise PlanMismatch(
                f"the plan was made for {name!r} of shape {tuple(shape)}, "
                f"here it is {tuple(tensors[name].shape)}"
            )
    modules = dict(model.named_modules(remove_duplicate=False))
    for change in plan.sizes:
        held: Any = getattr(modules.get(change.module), change.attribute, None)
        if change.index is not None:
            inside = isinstance(held, tuple | list) and change.index < len(held)
            held = held[change.index] if inside else None
        if held != change.old:
            raise PlanMismatch(
                f"the plan was made for {change.attribute!r} = {change.old} on "
                f"{change.module or 'the model itself'}, here it is {held}"
            )


def _shrink(model: nn.Module, name: str, plan: PrunePlan, done: dict[int, Tensor]) -> None:
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    tensor: Tensor = getattr(module, attribute)
    if id(tensor) not in done:
        small = tensor.detach()
        for axis in plan.kept[name]:
            index = torch.from_numpy(plan.kept_array(name, axis)).to(small.device)
            small = small.index_select(axis, index)
        small = small.contiguous()
        if isinstance(tensor, nn.Parameter):
            small = nn.Parameter(small, requires_grad=tensor.requires_grad)
        done[id(tensor)] = small
        done[id(small)] = small
    table = module._parameters if attribute in module._parameters else module._buffers
    table[attribute] = done[id(tensor)]  # type: ignore[assignment]


def _set_size(model: nn.Module, change: SizeChange) -> None:
    module = model.get_submodule(change.module)
    if change.index is None:
        setattr(module, change.attribute, change.new)
        return
    value = getattr(module, change.attribute)
    items = list(value)
    items[change.index] = change.new
    named = getattr(type(value), "_make", type(value))
    setattr(module, change.attribute, named(items))


def _refresh_sizes(module: nn.Module) -> None:
    """Sizes that torch's own layers keep beside their weights follow from the weights."""
    if isinstance(module, _ConvNd) and isinstance(module.weight, Tensor):
        outer, inner = module.weight.shape[0], module.weight.shape[1] * module.groups
        swap = isinstance(module, _ConvTransposeNd)
        module.in_channels, module.out_channels = (outer, inner) if swap else (inner, outer)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        held = module.weight if module.weight is not None else module.running_mean
        if isinstance(held, Tensor):
            module.num_features = held.shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = module.weight.shape[0]
