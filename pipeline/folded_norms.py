"""Batch norms that an exporter folded into convolutions, put back for training and folded again.

Enters: a network made from a file, whose convolutions carry a bias and no norm, and images. Leaves:
the same function with a fresh batch norm after each of them: its statistics are those of the
images, its scale and shift undo what it does to them. Folding writes them into the convolutions
and takes them out. Refused: networks that are no graph, and those without such a convolution.
"""

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

import gbn
from pipeline.data import Batch
from pipeline.errors import UsageError

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_USUAL_LENGTH = 2**0.5


class InsertedNorm1d(nn.BatchNorm1d):
    """A batch norm that the file does not have."""


class InsertedNorm2d(nn.BatchNorm2d):
    """A batch norm that the file does not have."""


class InsertedNorm3d(nn.BatchNorm3d):
    """A batch norm that the file does not have."""


_INSERTED = (InsertedNorm1d, InsertedNorm2d, InsertedNorm3d)


class _Moments:
    """Mean and variance of each channel, over all batches, in float64 (Chan et al. 1979)."""

    def __init__(self, width: int) -> None:
        self._count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self._squares = torch.zeros(width, dtype=torch.float64)
        self.num_places = 0
        """Of one sample: where it is 1, the channels are numbers and no maps."""

    def add(self, outputs: Tensor) -> None:
        """(N, C, ...)."""
        rows = outputs.detach().double().transpose(0, 1).flatten(1)
        self.num_places = outputs[0, 0].numel()
        count, mean = rows.shape[1], rows.mean(1)
        total = self._count + count
        shift = mean - self.mean
        self._squares += (rows - mean[:, None]).square().sum(1)
        self._squares += shift.square() * (self._count * count / total)
        self.mean += shift * (count / total)
        self._count = total

    @property
    def variance(self) -> Tensor:
        """(C,), of all that was seen."""
        return self._squares / max(self._count, 1)


def can_insert(module: nn.Module) -> bool:
    """Whether there is a graph to insert into, and a convolution to insert after."""
    return isinstance(module, fx.GraphModule) and bool(_places(module))


def insert_norms(module: nn.Module, batches: Iterable[Batch]) -> tuple[nn.Module, int]:
    """A copy with a batch norm after each convolution that may have lost one, and how many.

    A norm that was folded has left a bias behind. Convolutions of which each channel is one number
    a sample (squeeze-and-excite) or which make an output had none. Raises UsageError.
    """
    if not can_insert(module):
        raise UsageError(
            "--insert-bn: nothing to insert: it is for networks from ONNX or TorchScript files "
            "with convolutions that carry a bias and are followed by no norm"
        )
    made = copy.deepcopy(module).eval()
    assert isinstance(made, fx.GraphModule), "checked above"
    found = _measured(made, batches)
    count = 0
    for node in _places(made):
        name = str(node.target)
        moments = found.get(name)
        if moments is None or moments.num_places < 2:
            continue
        norm = _identity_norm(made.get_submodule(name), moments)
        path = _free_path(made, f"{name}_norm")
        made.add_submodule(path, norm)
        with made.graph.inserting_after(node):
            normed = made.graph.call_module(path, (node,))
        for user in [user for user in node.users if user is not normed]:
            user.replace_input_with(node, normed)
        count += 1
    made.recompile()
    return made, count


def _places(module: fx.GraphModule) -> list[fx.Node]:
    """Calls of convolutions with a bias, used once, that no norm and no output follows.

    Nor may their weights be those of another layer as well.
    """
    holders = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    calls: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    return [
        nodes[0]
        for name, nodes in calls.items()
        if len(nodes) == 1
        and isinstance(conv := module.get_submodule(name), _CONVS)
        and conv.bias is not None
        and holders[id(conv.weight)] == holders[id(conv.bias)] == 1
        and not any(user.op == "output" or _is_norm(module, user) for user in nodes[0].users)
    ]


def _is_norm(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(
        module.get_submodule(str(node.target)), nn.modules.batchnorm._NormBase
    )


def _measured(module: fx.GraphModule, batches: Iterable[Batch]) -> dict[str, _Moments]:
    found: dict[str, _Moments] = {}

    def watch(name: str, conv: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_module: nn.Module, _given: object, outputs: Tensor) -> None:
            if name not in found:
                found[name] = _Moments(outputs.shape[1])
            found[name].add(outputs)

        return conv.register_forward_hook(note)

    names = [str(node.target) for node in _places(module)]
    handles = [watch(name, module.get_submodule(name)) for name in names]
    try:
        with torch.no_grad():
            for images, _ in batches:
                module(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _identity_norm(conv: nn.Module, moments: _Moments) -> nn.Module:
    """The norm after `conv`, whose filters are scaled to the length of fresh ones (He et al. 2015).

    Before a norm the length of a filter means nothing but its learning rate, which goes with one
    over its square: folding leaves filters far too short for the usual rates.
    """
    assert isinstance(conv, _CONVS) and conv.bias is not None, "only such are measured"
    scale = _to_usual_length(conv.weight)
    kind = _INSERTED[_CONVS.index(type(conv))]
    norm = kind(conv.out_channels)
    assert norm.running_mean is not None and norm.running_var is not None, "it tracks them"
    with torch.no_grad():
        conv.weight.mul_(scale.view(-1, *[1] * (conv.weight.ndim - 1)))
        conv.bias.mul_(scale)
        norm.running_mean.copy_(moments.mean * scale)
        norm.running_var.copy_(moments.variance * scale.square())
        # Of the rounded statistics, so that scale and shift undo just what the norm does.
        norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt() / scale)
        norm.bias.copy_(norm.running_mean.double() / scale)
    return norm.eval()


def _to_usual_length(weight: Tensor) -> Tensor:
    """(C,): what brings each filter of (C, ...) to the length sqrt(2), but in powers of two.

    These are exact in floating point. A filter of zeros stays.
    """
    length = weight.detach().double().flatten(1).norm(dim=1)
    power = torch.log2(_USUAL_LENGTH / length.clamp_min(1e-30)).round()
    return torch.where(length > 0, 2.0**power, torch.ones_like(length))


def _free_path(module: nn.Module, wished: str) -> str:
    taken = {name for name, _ in module.named_modules()}
    path, number = wished, 1
    while path in taken:
        number += 1
        path = f"{wished}_{number}"
    return path


def fold_norms(module: nn.Module) -> nn.Module:
    """A copy, in eval mode, without the norms that `insert_norms` put in; they live on in weights.

    The module itself where there are none.
    """
    if not _inserted(module):
        return module
    made = copy.deepcopy(module).eval()
    assert isinstance(made, fx.GraphModule), "norms are inserted into graphs only"
    for node in list(made.graph.nodes):
        if node.op != "call_module":
            continue
        norm = made.get_submodule(str(node.target))
        if not isinstance(norm, _INSERTED):
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node), "placed by insert_norms"
        _fold_into(made.get_submodule(str(source.target)), norm)
        node.replace_all_uses_with(source)
        made.graph.erase_node(node)
        made.delete_submodule(str(node.target))
    made.recompile()
    return made


def _fold_into(conv: nn.Module, norm: nn.Module) -> None:
    """In float64, so that two roundings do not add up."""
    assert isinstance(conv, _CONVS) and isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(),
        None if conv.bias is None else conv.bias.double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        norm.weight.double(),
        norm.bias.double(),
    )
    with torch.no_grad():
        conv.weight.copy_(weight)
        assert conv.bias is not None, "norms follow convolutions with a bias"
        conv.bias.copy_(bias)


def _inserted(module: nn.Module) -> dict[str, str]:
    """Inserted norm -> the convolution before it."""
    if not isinstance(module, fx.GraphModule):
        return {}
    return {
        str(node.target): str(node.args[0].target)
        for node in module.graph.nodes
        if node.op == "call_module"
        and isinstance(module.get_submodule(str(node.target)), _INSERTED)
        and isinstance(node.args[0], fx.Node)
    }


def without_norms(plan: gbn.PrunePlan, module: nn.Module) -> gbn.PrunePlan:
    """The plan for the network before norms were inserted; `module` has them.

    Where a norm's channel was gated to zero, the convolution's is.
    """
    convs = _inserted(module)
    if not convs:
        return plan

    def owner(name: str) -> str:
        return name.rpartition(".")[0]

    gates = [
        (f"{convs[owner(name)]}.{tensor}", 0)
        for name, _ in plan.gates
        if owner(name) in convs
        for tensor in ("weight", "bias")
    ]
    gates += [gate for gate in plan.gates if owner(gate[0]) not in convs]
    return replace(
        plan,
        kept={name: dims for name, dims in plan.kept.items() if owner(name) not in convs},
        shapes={name: shape for name, shape in plan.shapes.items() if owner(name) not in convs},
        gates=tuple(dict.fromkeys(gates)),
        sizes=tuple(size for size in plan.sizes if size.module not in convs),
        groups=tuple(
            replace(group, layers=tuple(name for name in group.layers if name not in convs))
            for group in plan.groups
        ),
    )
