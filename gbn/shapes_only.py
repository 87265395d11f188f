"""Running a model for its shapes alone: tensors on the meta device have sizes but no values.

What enters: a model and inputs. What leaves: the same model, its parameters and buffers replaced
for a while by tensors without values, of their own shapes or of those that a cut leaves. Such a run
costs microseconds an op and no memory, whatever the size of the network.

Refused, with ValuesNeeded: a model that holds tensors of other kinds (lazy, quantised). A forward
that looks at values (a threshold, a loop over what was found) fails in one way or another: who runs
it catches FORWARD_ERRORS and goes on with real tensors.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gbn.aliases import Held, replace_aliases, restore_aliases
from gbn.errors import TraceError
from gbn.walk import named_modules

aten = torch.ops.aten


class ValuesNeeded(TraceError):  # noqa: N818 - what the model asks for
    """The model cannot be run without values."""


@contextlib.contextmanager
def without_values(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Iterator[None]:
    """Every parameter and buffer on the meta device, restored afterwards.

    `shapes`: state-dict names of tensors that shall have another shape meanwhile.
    """
    held: list[tuple[dict[str, Any], dict[str, Any]]] = []
    made: dict[int, Tensor] = {}
    aliases: Held = []
    try:
        for path, module in named_modules(model):
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for table in tables:
                held.append((table, dict(table)))
                for name, tensor in held[-1][1].items():
                    if tensor is not None:
                        full = f"{path}.{name}" if path else name
                        if id(tensor) not in made:
                            made[id(tensor)] = _twin(tensor, (shapes or {}).get(full), full)
                        table[name] = made[id(tensor)]
        aliases = replace_aliases(model, made)
        yield
    finally:
        restore_aliases(aliases)
        for table, tensors in held:
            table.clear()
            table.update(tensors)


def _twin(tensor: Tensor, shape: tuple[int, ...] | None, name: str) -> Tensor:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        raise ValuesNeeded(f"{name!r} is a {type(tensor).__name__}")
    if shape is None or shape == tuple(tensor.shape):
        twin = torch.empty_like(tensor, device="meta", requires_grad=False)
    else:
        twin = torch.empty(shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(twin, tensor.requires_grad) if type(tensor) is nn.Parameter else twin


def inputs_without_values(example_inputs: Any) -> Any:
    """The same structure, its tensors on the meta device."""
    return tree_map(
        lambda v: torch.empty_like(v, device="meta") if isinstance(v, Tensor) else v,
        example_inputs,
    )


def is_meta(value: Any) -> bool:
    """A tensor without values."""
    return isinstance(value, Tensor) and value.is_meta


def execute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an op; the slowest of torch's own shape functions are replaced by shorter ones.

    What others made of tensors without values is remembered until `forget`: blocks repeat
    themselves, and trials repeat runs.
    """
    short = _SHORT.get(func)
    if short is not None and is_meta(args[0]):
        out = short(*args, **kwargs)
        if out is not None:
            return out
    if not _is_pure(func):
        return func(*args, **kwargs)
    try:
        key = (func, _told(args), _told(kwargs))
        known = _REMEMBERED.get(key)
    except (_Untold, TypeError):  # TypeError: an argument that has no hash
        return func(*args, **kwargs)
    if known is None:
        out = func(*args, **kwargs)
        with contextlib.suppress(_Untold):
            _remember(key, _told(out))
        return out
    return _made(known)


class _Untold(Exception):  # noqa: N818 - no failure
    """A value that shapes do not tell all about."""


_REMEMBERED: dict[Any, Any] = {}


def forget() -> None:
    """To be called after a trace."""
    _REMEMBERED.clear()


_MOST = 10_000


def _remember(key: Any, told: Any) -> None:
    if len(_REMEMBERED) >= _MOST:
        _REMEMBERED.clear()
    _REMEMBERED[key] = told


@functools.cache
def _is_pure(func: Any) -> bool:
    """The op writes nowhere, and what it returns shares no memory with what it was given."""
    schema = func._schema
    return all(spec.alias_info is None for spec in (*schema.arguments, *schema.returns))


def _told(value: Any) -> Any:
    """All that an op can know of an argument in a run without values; raises _Untold."""
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter:
        if not value.is_meta or value.layout is not torch.strided or value.is_complex():
            raise _Untold
        return Tensor, value.shape, value.stride(), value.dtype
    if kind is tuple or kind is list:
        return kind, *map(_told, value)
    if kind is dict:
        return kind, *((key, _told(item)) for key, item in value.items())
    if isinstance(value, Tensor):
        raise _Untold
    return kind, value  # 1, 1.0 and True are equal and not the same


def _made(told: Any) -> Any:
    """A value of which this was told."""
    kind, *rest = told
    if kind is Tensor:
        shape, stride, dtype = rest
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    if kind is tuple or kind is list:
        return kind(map(_made, rest))
    return rest[0]


def _empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Of the kind of `x`; torch's own `new_empty` takes ten times as long here."""
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _like(x: Tensor) -> Tensor:
    return _empty(x, x.shape) if x.is_contiguous() else torch.empty_like(x)


def _convolution(
    x: Tensor,
    weight: Tensor,
    _bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    _output_padding: list[int],
    groups: int,
) -> Tensor | None:
    fits = x.ndim == weight.ndim and x.shape[1] == weight.shape[1] * groups
    if transposed or not fits or weight.shape[0] % groups or x.dtype != weight.dtype:
        return None  # the long way: its errors are those that users know
    if not x.is_contiguous() or x.numel() == 0:
        return None
    spatial = []
    for i, (size, kernel) in enumerate(zip(x.shape[2:], weight.shape[2:], strict=True)):
        k = i if len(stride) > 1 else 0
        reach = dilation[k] * (kernel - 1) + 1
        spatial.append((size + 2 * padding[k] - reach) // stride[k] + 1)
    if min(spatial) < 1:
        return None
    return _empty(x, (x.shape[0], weight.shape[0], *spatial))


def _batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    *parameters, training, _momentum, _epsilon = rest
    size = x.shape[1:2]
    if training or not all(p is None or p.shape == size for p in parameters):
        return None
    statistics = _empty(x, (0,))
    return _like(x), statistics, statistics


def _layer_norm(
    x: Tensor, shape: list[int], weight: Any, bias: Any, _epsilon: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    if not x.is_contiguous() or list(x.shape[x.ndim - len(shape) :]) != list(shape):
        return None
    if any(isinstance(p, Tensor) and list(p.shape) != list(shape) for p in (weight, bias)):
        return None
    kept = (*x.shape[: x.ndim - len(shape)], *[1] * len(shape))
    return _like(x), _empty(x, kept), _empty(x, kept)


def _addmm(bias: Tensor, x: Tensor, y: Tensor, **_scales: Any) -> Tensor | None:
    fits = x.ndim == y.ndim == 2 and x.shape[1] == y.shape[0] and x.dtype == y.dtype == bias.dtype
    fits = fits and tuple(bias.shape) in ((y.shape[1],), (1, y.shape[1]))
    return _empty(x, (x.shape[0], y.shape[1])) if fits else None


def _broadcast(x: Any, y: Any, **options: Any) -> Tensor | None:
    """Of equal kinds, and dense in one order; sums of two kinds or orders take torch's own way."""
    if not isinstance(y, Tensor) or x.dtype != y.dtype or not x.is_floating_point():
        return None
    if x.shape == y.shape:
        return _like(x) if x.stride() == y.stride() and not options else None
    if options or not (x.is_contiguous() and y.is_contiguous() and y.is_meta):
        return None
    ndim = max(x.ndim, y.ndim)
    pairs = [*zip(_wide(x, ndim), _wide(y, ndim), strict=True)]
    if not all(m == n or 1 in (m, n) for m, n in pairs):
        return None
    return _empty(x, [n if m == 1 else m for m, n in pairs])


def _wide(x: Tensor, ndim: int) -> tuple[int, ...]:
    return (1,) * (ndim - x.ndim) + tuple(x.shape)


def _mean(x: Tensor, dims: list[int] | None, keepdim: bool = False, **options: Any) -> Any:
    if not dims or options or not x.is_contiguous() or not x.is_floating_point():
        return None
    over = {dim % x.ndim for dim in dims}
    sizes = [1 if dim in over else size for dim, size in enumerate(x.shape)]
    return _empty(x, [s for dim, s in enumerate(sizes) if keepdim or dim not in over])


def _in_place(x: Tensor, *_: Any) -> Tensor:
    return x


def _same_shape(x: Tensor, *_: Any, **_options: Any) -> Tensor | None:
    return _like(x) if x.is_floating_point() else None


_SHORT: dict[Any, Callable[..., Any]] = {
    aten.addmm.default: _addmm,
    # torch computes the shapes of these by running their definitions: milliseconds each
    **dict.fromkeys(
        (
            *(aten.hardtanh_.default, aten.hardswish_.default, aten.hardsigmoid_.default),
            *(aten.silu_.default, aten.relu_.default, aten.leaky_relu_.default, aten.elu_.default),
        ),
        _in_place,
    ),
    **dict.fromkeys(
        (
            *(aten.hardtanh.default, aten.hardswish.default, aten.hardsigmoid.default),
            *(aten.silu.default, aten.relu.default, aten.gelu.default, aten.sigmoid.default),
            *(aten.leaky_relu.default, aten.elu.default, aten.clamp.default, aten.tanh.default),
            *(aten.mul.Scalar, aten._softmax.default),
        ),
        _same_shape,
    ),
    **dict.fromkeys(
        (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.div.Tensor), _broadcast
    ),
    aten.mean.dim: _mean,
    aten.roll.default: _same_shape,
    aten._safe_softmax.default: _same_shape,
    aten.convolution.default: _convolution,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
}
