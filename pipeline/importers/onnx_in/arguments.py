"""Arguments of calls, which may hold values inside of lists and dicts, seen and changed all over.

What enters: anything that a call takes. What leaves: the same with constants, nodes or tensors in
it replaced. Refused: results larger than any network needs.
"""

from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor, fx

from pipeline.importers.onnx_in.errors import NodeError, label
from pipeline.importers.onnx_in.values import Const, probes_of


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The items of a tuple, list or dict changed; anything else as it is."""
    if isinstance(value, tuple | list):
        return type(value)(change(item) for item in value)
    if isinstance(value, dict):
        return {name: change(item) for name, item in value.items()}
    return value


def nodes_in(value: Any) -> list[fx.Node]:
    """All nodes in it."""
    if isinstance(value, fx.Node):
        return [value]
    if isinstance(value, tuple | list):
        return [node for item in value for node in nodes_in(item)]
    if isinstance(value, dict):
        return nodes_in(list(value.values()))
    return []


def mentions_node(value: Any) -> bool:
    """Whether there is a node in it."""
    return bool(nodes_in(value))


def has_tensor(value: Any) -> bool:
    """Whether there is a tensor in it."""
    if isinstance(value, tuple | list):
        return any(has_tensor(item) for item in value)
    return (
        has_tensor(list(value.values())) if isinstance(value, dict) else isinstance(value, Tensor)
    )


def mapped_consts(value: Any) -> Any:
    """Constants as their tensors."""
    return value.tensor if isinstance(value, Const) else mapped(value, mapped_consts)


def all_meta(value: Any) -> Any:
    """Tensors without values."""
    return without_values(value) if isinstance(value, Tensor) else mapped(value, all_meta)


def without_values(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and kind on the meta device."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def probe(value: Any, index: int) -> Any:
    """Nodes as what they give in trial number `index`."""
    if isinstance(value, fx.Node):
        probes = probes_of(value) or ()
        return probes[min(index, len(probes) - 1)]
    return mapped(value, lambda item: probe(item, index))


def wrapped(result: Any) -> Any:
    """Tensors as constants."""
    if isinstance(result, Tensor):
        return Const(result.detach())
    return tuple(wrapped(item) for item in result) if isinstance(result, tuple | list) else result


def require_size(at: onnx.NodeProto, result: Any, limit: int) -> None:
    """Raises NodeError for a result of more than `limit` bytes."""
    for item in result if isinstance(result, tuple | list) else (result,):
        if isinstance(item, Tensor) and item.numel() * item.itemsize > limit:
            raise NodeError(
                f"{label(at)}: would make a tensor {list(item.shape)} of "
                f"{item.numel() * item.itemsize / 2**30:.1f} GiB: refused"
            )


def asks_values(error: Exception) -> bool:
    """Whether torch failed only since there are no values."""
    text = str(error).lower()
    return "meta" in text or "data-dependent" in text
