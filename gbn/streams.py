"""Where a network branches: layers that read what something else reads too.

Such tensors are the residual streams and the trunks of a network. What a pruned network holds there
can be compared with what the original does, channel by channel: a layer's own weight tells which
channels of its input are left.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gbn.prune_plan import PrunePlan
from gbn.readers import Readers
from gbn.running import plain_eval, run_model

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)


@dataclass(frozen=True)
class StreamReader:
    """A layer at `path`. The channels of what it reads lie along `axis`; `plan.kept` has them under
    dim `weight_dim` of its weight."""

    path: str
    axis: int
    weight_dim: int

    def kept(self, plan: PrunePlan) -> tuple[int, ...] | None:
        """Channels of the original's that are left, ascending; None: all of them."""
        return plan.kept.get(f"{self.path}.weight", {}).get(self.weight_dim)


def stream_readers(model: nn.Module, inputs: Any) -> tuple[StreamReader, ...]:
    """One layer for each tensor that more than one op reads, and the last layer that runs.

    In the order of execution. `inputs`: as for `gbn.trace`. Layers that run more than once, and
    those of which the weight does not tell the channels of the input (grouped convolutions), are
    passed over; so is what is written into after it was read.
    """
    readers = Readers()
    known = {path: where for path, m in model.named_modules() if (where := _reads(path, m))}
    calls: Counter[str] = Counter()
    read: dict[str, Tensor] = {}
    versions: dict[str, int] = {}

    def hook_of(path: str) -> Any:
        def hook(_layer: nn.Module, given: tuple[Any, ...]) -> None:
            calls[path] += 1
            if given and isinstance(given[0], Tensor):
                read[path] = readers.watched(given[0])
                versions[path] = given[0]._version

        return hook

    handles = [model.get_submodule(p).register_forward_pre_hook(hook_of(p)) for p in known]
    try:
        with plain_eval(model), readers:
            run_model(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    once = [p for p in read if calls[p] == 1 and read[p]._version == versions[p]]
    found: dict[int, StreamReader] = {}
    for path in once:
        if readers.of(read[path]) > 1 or path == once[-1]:
            found.setdefault(id(read[path]), known[path])
    return tuple(found.values())


def _reads(path: str, layer: nn.Module) -> StreamReader | None:
    # the very classes: what derives from them may have moved its channels elsewhere
    kind = type(layer)
    if kind in _CONVOLUTIONS:
        assert isinstance(layer, _CONVOLUTIONS)
        if layer.groups == 1:
            return StreamReader(path, 1, 1)
        depthwise = layer.groups == layer.in_channels == layer.out_channels
        return StreamReader(path, 1, 0) if depthwise else None
    if kind is nn.Linear:
        return StreamReader(path, -1, 1)
    if isinstance(getattr(layer, "weight", None), Tensor):
        if kind in _NORMS:
            return StreamReader(path, 1, 0)
        if kind is nn.LayerNorm and layer.weight.ndim == 1:
            return StreamReader(path, -1, 0)
    return None
