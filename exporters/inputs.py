"""Inputs for a graph whose values do not matter: for latency, and for parity of two files.

Enters: a session, a batch size, and the sizes that the file leaves open. Leaves: arrays by input
name. Refused: open sizes that nobody states, stated ones that contradict the file, element types
that numpy cannot make.
"""

from collections.abc import Mapping

import numpy as np

from exporters.errors import ExportError
from exporters.session import DTYPES, Array, Session

Shape = tuple[int, ...]


def fixed_batch(session: Session) -> int | None:
    """Dimension 0 of the first input that fixes it; None where none does. Raises nothing."""
    first = (shape[0] for shape in session.input_shapes.values() if shape)
    return next((size for size in first if isinstance(size, int)), None)


def random_inputs(
    session: Session,
    batch: int,
    sizes: Mapping[str, Shape] | None = None,
    seed: int = 0,
    *,
    below: int = 1,
) -> dict[str, Array]:
    """Normally distributed floats; whole numbers from 0, which may be indices, to under `below`.

    The largest of them is always among these.

    sizes: input name -> shape without the batch, needed where the file leaves it open.
    Raises ExportError, naming the input.
    """
    rng = np.random.default_rng(seed)
    return {
        name: _values(_element_type(session, name), shape, rng, below)
        for name, shape in _shapes(session, batch, sizes or {}).items()
    }


def _shapes(session: Session, batch: int, sizes: Mapping[str, Shape]) -> dict[str, Shape]:
    unknown = sorted(set(sizes) - set(session.input_names))
    if unknown:
        raise ExportError(
            f"sizes are stated for {', '.join(unknown)}; the inputs are "
            f"{', '.join(session.input_names)}"
        )
    return {
        name: _shape(name, shape, batch, sizes.get(name))
        for name, shape in session.input_shapes.items()
    }


def _shape(name: str, dims: tuple[int | str | None, ...], batch: int, own: Shape | None) -> Shape:
    if not dims:
        return ()
    if isinstance(dims[0], int) and dims[0] != batch:
        raise ExportError(f"input {name!r} has a fixed batch of {dims[0]}, not {batch}")
    rest = dims[1:]
    if own is None:
        open_sizes = [str(d) for d in rest if not isinstance(d, int)]
        if open_sizes:
            raise ExportError(
                f"input {name!r} leaves {', '.join(open_sizes)} open: state its size with "
                f"--input-size C,H,W or --input-size {name}:C,H,W"
            )
        return (batch, *(d for d in rest if isinstance(d, int)))
    fits = len(own) == len(rest) and all(
        not isinstance(d, int) or d == n for d, n in zip(rest, own, strict=True)
    )
    if not fits:
        raise ExportError(f"input {name!r} is {dims}, a size of {own} does not fit it")
    return (batch, *own)


def _element_type(session: Session, name: str) -> np.dtype[np.generic]:
    kind = session.input_types[name]
    if kind not in DTYPES:
        raise ExportError(f"input {name!r} is {kind}: no values can be made up for it")
    return np.dtype(DTYPES[kind])


def _values(
    dtype: np.dtype[np.generic], shape: Shape, rng: np.random.Generator, below: int
) -> Array:
    if np.issubdtype(dtype, np.floating):
        return rng.standard_normal(shape).astype(dtype)
    values = 2 if dtype == np.bool_ else int(np.iinfo(dtype.str).max) + 1
    below = min(below, values)
    whole = rng.integers(0, below, shape).astype(dtype)
    whole.reshape(-1)[:1] = below - 1
    return whole
