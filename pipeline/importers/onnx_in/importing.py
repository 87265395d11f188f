"""ONNX file -> trainable torch network.

What enters: a path, and the sizes that the file leaves open. What leaves: an `ImportedOnnx`.
Refused, with UsageError in one line: whatever the rooms of this package refuse.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import Tensor, fx

from pipeline.importers.onnx_in.builder import Builder
from pipeline.importers.onnx_in.errors import FOREIGN, NodeError, UsageError, one_line
from pipeline.importers.onnx_in.interface import (
    OTHER_BATCHES,
    TRIAL_BATCHES,
    Interface,
    read_interface,
    trial_inputs,
)
from pipeline.importers.onnx_in.read import OnnxSource, read_onnx, read_proto

_FIX_THE_BATCH = "export it with a fixed batch, or without what depends on it"


@dataclass(frozen=True, kw_only=True)
class ImportedOnnx:
    """A network and what its file promised.

    module: in eval mode, on the CPU, its weights in float32.
    notes: what was done beyond the plain reading.
    """

    module: fx.GraphModule
    interface: Interface
    notes: tuple[str, ...]


def import_onnx(path: Path, input_size: tuple[int, ...] | None = None) -> ImportedOnnx:
    """The network in the file at `path`.

    input_size: of the first input, (C, H, W) without the batch; needed where the file leaves it
    open. Raises UsageError.
    """
    source = read_onnx(path)
    try:
        return _import(source, input_size)
    except UsageError as error:
        raise type(error)(f"{path}: {error}") from error


def import_proto(
    proto: onnx.ModelProto, folder: Path, input_size: tuple[int, ...] | None = None
) -> ImportedOnnx:
    """The network in a model in memory, which is taken apart."""
    return _import(read_proto(proto, folder), input_size)


def _import(source: OnnxSource, input_size: tuple[int, ...] | None) -> ImportedOnnx:
    interface = read_interface(source)
    for kind, ports in (("inputs", interface.inputs), ("outputs", interface.outputs)):
        if not ports:
            raise UsageError(f"has no {kind}: there is nothing to compute")
    free = interface.free_names
    notes: list[str] = []
    # Weights fix the channels of nearly every network, and have nothing to do with the rest.
    channels, others = ({i: free[i] for i in free if (i == 1) is first} for first in (True, False))
    for wanted, given_up in ((free, channels), (others, others)):
        if not given_up:
            continue
        try:
            return _built(source, interface, input_size, wanted, notes)
        except UsageError as error:
            notes.append(
                f"{', '.join(given_up.values())} of {interface.inputs[0].name!r}: cannot stay "
                f"free, fixed to the input size ({error})"
            )
    return _built(source, interface, input_size, {}, notes)


def _built(
    source: OnnxSource,
    interface: Interface,
    input_size: tuple[int, ...] | None,
    open_sizes: dict[int, str],
    notes: Sequence[str] = (),
) -> ImportedOnnx:
    doubles = any(port.dtype is torch.float64 for port in interface.inputs)
    try:
        probes = trial_inputs(interface, input_size, open_sizes)
        with _enough_recursion():
            builder = Builder(source, narrow_doubles=doubles)
            module = builder.build(probes, fixed=True)
            if builder.decisions:
                others = trial_inputs(interface, input_size, open_sizes, OTHER_BATCHES)
                again = Builder(source, narrow_doubles=doubles)
                _require_alike(builder, again, others)
    except UsageError:
        raise
    except FOREIGN as error:
        raise UsageError(f"cannot be imported ({one_line(error)})") from error
    return ImportedOnnx(
        module=module,
        interface=replace(interface, open_sizes=open_sizes),
        notes=(*notes, *builder.notes),
    )


def _require_alike(builder: Builder, again: Builder, probes: dict[str, tuple[Tensor, ...]]) -> None:
    """Build once more with `again` at other batch sizes: it must decide as `builder` did."""
    try:
        again.build(probes, fixed=True)
    except NodeError as error:
        tried = ", ".join(str(batch) for batch in (*TRIAL_BATCHES, *OTHER_BATCHES))
        raise NodeError(f"{error} (tried at batches of {tried}); {_FIX_THE_BATCH}") from error
    for (where, found), (_, elsewhere) in zip(builder.decisions, again.decisions, strict=False):
        if found != elsewhere:
            raise NodeError(f"{where}: is decided by the batch size; {_FIX_THE_BATCH}")


@contextmanager
def _enough_recursion() -> Iterator[None]:
    """Graphs in graphs need some depth; `sorting` bounds them."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 5000))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
