"""Sizes that modules keep beside their weights: which attribute follows which width.

An op that is told a size (the groups of a convolution, the shape of a view, the parts of a split)
may have it from an int on its module, such as `groups` or `num_heads`. An attribute is bound to a
width when its value is that width and no other width of that module has this value. A wrong guess
shows in the trial cuts, as far as shapes and the numbers of windows and elementwise ops tell it,
and in the proof of every plan.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from gbn.groups import SizeBinding
from gbn.ids import Rows
from gbn.rules.base import SizedUse

# Their sizes follow from their weights; the groups of a convolution and the shape of a norm that
# has no weight do not: the rules of these ops name the attribute.
_OWN_SIZES = (_ConvNd, nn.Linear, _NormBase, nn.LayerNorm, nn.RMSNorm)


def bind_sizes(
    uses: Iterable[SizedUse],
    model: nn.Module,
    dim_of: Callable[[Rows], int | None],
    no_guess: Container[str] = (),
) -> tuple[SizeBinding, ...]:
    """Bindings of all modules. `dim_of`: index of the dim that rows are, None if it is fixed.

    Where a module is told one number both for a width and for what never changes (three heads, and
    three parts: queries, keys, values), the attribute is guessed to be the width; not in the
    modules `no_guess`, where that guess was wrong.
    """
    found: dict[tuple[str, str], dict[int, int | None]] = {}
    ambiguous: set[tuple[str, str, int]] = set()
    guesses: set[tuple[str, str, int]] = set()
    for use in uses:
        sizes = found.setdefault((use.module, use.role), {})
        size, dim = use.rows.shape[1], dim_of(use.rows)
        known = sizes.setdefault(size, dim)
        if known == dim:
            continue
        guess = None in (known, dim) and use.module not in no_guess
        (guesses if guess else ambiguous).add((use.module, use.role, size))
        sizes[size] = dim if known is None else known
    bindings: dict[tuple[str, str, int | None], SizeBinding] = {}
    for (path, role), sizes in found.items():
        for attribute, index, value in _ints(model.get_submodule(path), role):
            dim = sizes.get(value)
            if dim is not None and value > 1 and (path, role, value) not in ambiguous:
                bindings[path, attribute, index] = SizeBinding(
                    module=path,
                    attribute=attribute,
                    index=index,
                    old=value,
                    dim=dim,
                    guessed=(path, role, value) in guesses,
                )
    return tuple(bindings.values())


def told_alike(
    uses: Iterable[SizedUse], module: nn.Module, path: str
) -> dict[tuple[str, str, int], list[Rows]]:
    """Widths of one module whose size one attribute tells: queries' and values' by `head_dim`.

    The attribute can follow them only if they shrink alike. By path, role and size; `uses` are
    those of widths that can shrink.
    """
    found: dict[tuple[str, str, int], dict[bytes, Rows]] = {}
    for use in uses:
        if use.module == path and len(use.rows) == 1:
            key = (path, use.role, use.rows.shape[1])
            found.setdefault(key, {})[use.rows.tobytes()] = use.rows
    return {
        (path, role, size): [*rows.values()]
        for (path, role, size), rows in found.items()
        if len(rows) > 1 and any(value == size for *_, value in _ints(module, role))
    }


def _ints(module: nn.Module, role: str) -> Iterator[tuple[str, int | None, int]]:
    """(attribute, index in it, value) of all ints that a module holds."""
    if isinstance(module, _OWN_SIZES):
        yield from _ints_of(role, getattr(module, role, None) if role else None)
        return
    for attribute, value in vars(module).items():
        if not attribute.startswith("_") and attribute != "training":
            yield from _ints_of(attribute, value)


def _ints_of(attribute: str, value: Any) -> Iterator[tuple[str, int | None, int]]:
    if _is_int(value):
        yield attribute, None, value
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            if _is_int(item):
                yield attribute, index, item


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
