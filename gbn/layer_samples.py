"""What enters a layer and what becomes of what it gives, at sampled places of a run.

Enters: a network, layers of it, inputs. Leaves: rows of numbers, of the same places in every
network that is asked. A layer's *end* is what the batch norm gives that alone reads it, or what the
layer itself gives; where the end is added to something else, that and the sum are seen as well.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gbn.norms import tracked_norms
from gbn.readers import Readers, is_sum
from gbn.running import WatchEnded, plain_eval, run_model

_PART = 4096  # rows that are in memory at a time


@dataclass(frozen=True)
class End:
    """norm: the path of the batch norm that alone reads the layer; summed: only an addition does.

    A sum reads the norm's output, or the layer's where there is no norm.
    """

    norm: str | None
    summed: bool


@dataclass(kw_only=True)
class Wanted:
    """Of one layer in the original network, rows (R, C) of what it gives and of the sum, if any.

    `places`: the same in each image, whose rows follow each other, or rows of a linear layer;
    `width`: of the image that they are places of.
    """

    given: Tensor
    places: Tensor
    width: int
    total: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """Of one layer in the pruned network, the same rows.

    taken: parts of (R, groups, inputs of an output), what is multiplied with the weights, places
    before channels; beside (R, C): what its end is added to, if anything.
    """

    taken: Iterator[Tensor]
    beside: Tensor | None


def survey(model: nn.Module, names: set[str], inputs: Any) -> tuple[dict[str, End], Any]:
    """The ends of those layers that run once, and alone read their weight, as they run.

    And what the network gives.
    """
    readers = Readers()
    weights = {name: readers.watched(_weight(model, name)) for name in names}
    calls: Counter[str] = Counter()
    given: dict[str, Tensor] = {}
    norms: dict[int, tuple[str, Tensor]] = {}

    def layer_ran(name: str) -> Any:
        def hook(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            calls[name] += 1
            given[name] = readers.watched(output)

        return hook

    def norm_ran(path: str) -> Any:
        def hook(_norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[path] += 1
            norms[id(inputs[0])] = (path, readers.watched(output))

        return hook

    with plain_eval(model), contextlib.ExitStack() as hooks:
        for paths, ran in ((names, layer_ran), (tracked_norms(model), norm_ran)):
            for path in paths:
                handle = model.get_submodule(path).register_forward_hook(ran(path))
                hooks.callback(handle.remove)
        with readers:
            outputs = run_model(model, inputs)
    ends = {}
    for name, output in given.items():
        norm: str | None = None
        after = output
        if id(output) in norms and readers.of(output) == 1 and calls[norms[id(output)][0]] == 1:
            norm, after = norms[id(output)]
        if calls[name] == readers.of(weights[name]) == 1:
            ends[name] = End(norm, readers.is_only_added(after))
    return ends, outputs


def _weight(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight


def wanted(
    model: nn.Module, ends: Mapping[str, End], inputs: Any, *, rows: int, seed: int
) -> dict[str, Wanted]:
    """About `rows` rows of each layer in the original; the run ends when all have been seen."""
    seen: dict[str, Wanted] = {}
    pending = set(ends)

    def finish(name: str) -> None:
        pending.discard(name)
        if not pending:
            raise WatchEnded

    def layer_ran(name: str) -> Any:
        def hook(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            places = _places(layer, output, rows, seed)
            seen[name] = Wanted(
                given=_at(layer, places, output), places=places, width=output.shape[-1]
            )
            if not ends[name].summed:
                finish(name)

        return hook

    def summed(name: str, add: Callable[[], Tensor], _end: Tensor, _beside: Tensor) -> Tensor:
        total = add()
        seen[name].total = _at(model.get_submodule(name), seen[name].places, total)
        finish(name)
        return total

    sums = _Sums(summed)
    with plain_eval(model), contextlib.ExitStack() as hooks:
        for name, end in ends.items():
            handle = model.get_submodule(name).register_forward_hook(layer_ran(name))
            hooks.callback(handle.remove)
            _expect(model, name, end, sums, hooks)
        with sums, contextlib.suppress(WatchEnded):
            run_model(model, inputs)
    return seen


def visit(
    model: nn.Module,
    ends: Mapping[str, End],
    inputs: Any,
    rows: Mapping[str, Wanted],
    change: Callable[[str, Found], bool],
) -> None:
    """One run of the pruned network in which `change` may give each layer new weights.

    It is called in the order of execution, where a sum follows at the sum; where it returns True
    the run goes on with what the layer gives now. The run ends behind the last layer. Buffers are
    as they were afterwards, also those that `change` wrote.
    """
    given: dict[str, tuple[Tensor, int]] = {}
    pending = set(ends)

    def finish(name: str) -> None:
        pending.discard(name)
        if not pending:
            raise WatchEnded

    def layer_runs(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if name not in pending:
                return
            if ends[name].summed:
                given[name] = (inputs[0], inputs[0]._version)
                return
            change(name, Found(taken=_taken(layer, inputs[0], rows[name]), beside=None))
            finish(name)

        return hook

    def summed(name: str, add: Callable[[], Tensor], end: Tensor, beside: Tensor) -> Tensor:
        layer, (x, version) = model.get_submodule(name), given.pop(name)
        near = _at(layer, rows[name].places, beside)
        is_as_read = x._version == version
        taken = _taken(layer, x, rows[name])
        if is_as_read and change(name, Found(taken=taken, beside=near)):
            renewed = layer.forward(x)  # without the hooks of this run
            norm = ends[name].norm
            end.copy_(renewed if norm is None else model.get_submodule(norm).forward(renewed))
        finish(name)
        return add()

    sums = _Sums(summed)
    with plain_eval(model), contextlib.ExitStack() as hooks:
        for name, end in ends.items():
            handle = model.get_submodule(name).register_forward_pre_hook(layer_runs(name))
            hooks.callback(handle.remove)
            _expect(model, name, end, sums, hooks)
        with sums, contextlib.suppress(WatchEnded):
            run_model(model, inputs)


class _Sums(TorchDispatchMode):
    """Calls `summed(name, add, end, beside)` in place of the addition of an end that is expected.

    `add()` does the addition, which may write into one of the two.
    """

    def __init__(self, summed: Callable[[str, Callable[[], Tensor], Tensor, Tensor], Tensor]):
        super().__init__()
        self._summed = summed
        self._expected: dict[int, tuple[str, Tensor]] = {}

    def expect(self, name: str, end: Tensor) -> None:
        self._expected[id(end)] = (name, end)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        def run() -> Any:
            return func(*args, **(kwargs or {}))

        if not is_sum(func, args, kwargs):
            return run()
        for end, beside in (args[::-1], args):  # where both are ends, the first is met first
            if id(end) in self._expected:
                name, _ = self._expected.pop(id(end))
                run = partial(self._summed, name, run, end, beside)
        return run()


def _expect(
    model: nn.Module, name: str, end: End, sums: _Sums, hooks: contextlib.ExitStack
) -> None:
    if end.summed:
        last = model.get_submodule(name if end.norm is None else end.norm)
        handle = last.register_forward_hook(lambda _last, _in, output: sums.expect(name, output))
        hooks.callback(handle.remove)


def _places(layer: nn.Module, output: Tensor, rows: int, seed: int) -> Tensor:
    """Positions of an image, the same for all of a batch, or rows of a linear layer, to sample."""
    is_image = isinstance(layer, nn.Conv2d)
    total = output[0, 0].numel() if is_image else output.numel() // output.shape[-1]
    wanted = -(-rows // len(output)) if is_image else rows
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return chosen[:wanted].sort().values.to(output.device)


def _at(layer: nn.Module, places: Tensor, tensor: Tensor) -> Tensor:
    """(R, C) of a layer's output, or of what has its shape; image by image."""
    if isinstance(layer, nn.Conv2d):
        picked = tensor.flatten(2).index_select(2, places)  # (N, C, P)
        return picked.mT.reshape(-1, tensor.shape[1])
    return tensor.reshape(-1, tensor.shape[-1])[places]


def _taken(layer: nn.Module, x: Tensor, rows: Wanted) -> Iterator[Tensor]:
    """What is multiplied with the weight, in parts of some `_PART` rows."""
    if not isinstance(layer, nn.Conv2d):
        yield from x.reshape(-1, 1, x.shape[-1])[rows.places].split(_PART)
        return
    padded = F.pad(x, _padding(layer))
    corners = (
        rows.places // rows.width * layer.stride[0],
        rows.places % rows.width * layer.stride[1],
    )
    high, wide = (
        corner[:, None] + torch.arange(k, device=x.device) * d
        for corner, k, d in zip(corners, layer.kernel_size, layer.dilation, strict=True)
    )
    window = (high[:, :, None] * padded.shape[3] + wide[:, None, :]).flatten()  # (P * kh * kw,)
    # all channels of a pixel lie together, so that whole runs of memory are copied
    pixels = padded.permute(0, 2, 3, 1).reshape(len(x), -1, padded.shape[1])
    for images in pixels.split(max(_PART // len(rows.places), 1)):
        taken = images.index_select(1, window)  # (n, P * kh * kw, C)
        count = len(images) * len(rows.places)
        grouped = taken.reshape(count, layer.weight[0, 0].numel(), layer.groups, -1)
        yield grouped.transpose(1, 2).reshape(count, layer.groups, -1)


def _padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """left, right, top, bottom"""
    padding = layer.padding
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        before = [0 if padding == "valid" else r // 2 for r in reach]
        after = [0 if padding == "valid" else r - r // 2 for r in reach]
    else:
        before = after = [int(p) for p in padding]
    return before[1], after[1], before[0], after[0]
