"""What a file promises to those who run it: names, types, sizes, opset, texts.

What enters: a checked model. What leaves: an `Interface`, which the export gives back, and trial
inputs without values. Refused: inputs that are no tensors, sizes that neither the file nor the
user states.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

import onnx
import torch
from torch import Tensor

from pipeline.importers.onnx_in.errors import UsageError
from pipeline.importers.onnx_in.foreign import nodes_of
from pipeline.importers.onnx_in.read import OnnxSource
from pipeline.importers.onnx_in.tensors import TORCH_DTYPES, torch_dtype

Dims = tuple[int | str | None, ...]
TRIAL_BATCHES = (2, 3)
OTHER_BATCHES = (1, 61)
"""At which whatever was decided by sizes must come out alike: one image, or many, may be a case of
their own."""
SIZE_STEP = 64
"""Most networks halve their sizes five times; the larger trial must stay divisible as the other."""
_MAX_SIZE = 2**24
"""Of one dimension of an input: more is no image, and a forward pass would not end."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output. `dims`: numbers, names of free sizes, None for free ones without."""

    name: str
    dtype: torch.dtype
    dims: Dims | None


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What stays the same for those who run the file."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    opset: int
    doc_string: str
    metadata: dict[str, str]
    open_sizes: dict[int, str] = field(default_factory=dict)
    """Dimensions of the first input, beside the batch, that may have other sizes than the network
    was imported at, and what they are called."""
    in_half: bool = False
    """Whether the file computes with weights in float16: most of their elements are."""

    @property
    def fixed_batch(self) -> int | None:
        """The batch size, where the first input fixes it."""
        dims = self.inputs[0].dims if self.inputs else None
        return dims[0] if dims and isinstance(dims[0], int) else None

    @property
    def batch_name(self) -> str | None:
        """What the file calls its free batch; None if it has no name for it."""
        dims = self.inputs[0].dims if self.inputs else None
        return dims[0] if dims and isinstance(dims[0], str) else None

    @property
    def image_size(self) -> tuple[int, int, int] | None:
        """(C, H, W) of the first input, where the file states all three."""
        dims = (self.inputs[0].dims or ())[1:] if self.inputs else ()
        sizes = [d for d in dims if isinstance(d, int)]
        return (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 == len(dims) else None

    @property
    def free_names(self) -> dict[int, str]:
        """Free dimensions of the first input beside the batch, and their names.

        One that is called as the batch is the batch's size, whatever that is.
        """
        dims = (self.inputs[0].dims or ()) if self.inputs else ()
        usual = {1: "channels", 2: "height", 3: "width"} if len(dims) == 4 else {}
        return {
            i: d or usual.get(i, f"size_{i}")
            for i, d in enumerate(dims)
            if i and not isinstance(d, int) and (d is None or d != dims[0])
        }


def read_interface(source: OnnxSource) -> Interface:
    """The interface of the file."""
    proto = source.proto
    inputs = [value for value in proto.graph.input if value.name not in source.weights]
    return Interface(
        inputs=tuple(_port(value, "input") for value in inputs),
        outputs=tuple(_port(value, "output") for value in proto.graph.output),
        opset=source.opset,
        doc_string=proto.doc_string or proto.graph.doc_string,
        metadata={entry.key: entry.value for entry in proto.metadata_props},
        in_half=_in_half(source),
    )


def _in_half(source: OnnxSource) -> bool:
    """Weights that are only cast are stored in half precision, and not computed with in it."""
    nodes = list(nodes_of(source.proto.graph))
    used = {name for node in nodes if node.op_type != "Cast" for name in node.input}
    found = [(name, tensor.dtype, tensor.numel()) for name, tensor in source.weights.items()]
    found += [
        (node.output[0], TORCH_DTYPES[attribute.t.data_type], prod(attribute.t.dims))
        for node in nodes
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value" and attribute.t.data_type in TORCH_DTYPES
    ]
    sizes: Counter[bool] = Counter()
    for name, dtype, size in found:
        if dtype.is_floating_point:
            sizes[dtype is torch.float16 and name in used] += size
    return sizes[True] > sizes[False]


def _port(value: onnx.ValueInfoProto, kind: str) -> Port:
    where = f"{kind} {value.name!r}"
    if not value.type.HasField("tensor_type"):
        raise UsageError(f"{where}: is a sequence or a map: only tensors are supported")
    tensor = value.type.tensor_type
    dims: Dims | None = None
    if tensor.HasField("shape"):
        dims = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0
            else dim.dim_param or None
            for dim in tensor.shape.dim
        )  # fmt: skip
    return Port(name=value.name, dtype=torch_dtype(tensor.elem_type, where), dims=dims)


def trial_inputs(
    interface: Interface,
    input_size: tuple[int, ...] | None,
    open_sizes: dict[int, str],
    batches: tuple[int, int] = TRIAL_BATCHES,
) -> dict[str, tuple[Tensor, ...]]:
    """Inputs without values, for each trial batch; one alone where no input leaves any size free.

    `input_size`: the first input's sizes without the batch. `open_sizes`: dimensions of the first
    input that differ between the trials as well, so that nothing is taken from them. `batches`: the
    trial sizes of a free batch.
    """
    sizes = {port.name: _sizes(port, input_size if i == 0 else None)
             for i, port in enumerate(interface.inputs)}  # fmt: skip
    free = any(dims and dims[0] is None for dims in sizes.values()) or bool(open_sizes)
    result = {}
    for port in interface.inputs:
        shapes = [
            [batch if size is None else size for size in sizes[port.name]]
            for batch in (batches if free else batches[:1])
        ]
        if port is interface.inputs[0] and open_sizes:
            shapes[1] = larger(shapes[1], open_sizes)
        result[port.name] = tuple(
            torch.empty(shape, dtype=port.dtype, device="meta") for shape in shapes
        )
    return result


def larger(shape: Sequence[int], open_sizes: Iterable[int]) -> list[int]:
    """Another shape that a network takes whose strides and windows take this one."""
    steps = {dim: SIZE_STEP * (i + 1) for i, dim in enumerate(sorted(open_sizes))}
    return [size + steps.get(i, 0) for i, size in enumerate(shape)]


def _sizes(port: Port, input_size: tuple[int, ...] | None) -> list[int | None]:
    """Sizes, None for a free batch."""
    dims = port.dims
    if dims is None:
        if input_size is None:
            raise UsageError(
                f"input {port.name!r} has no shape in the file; state it: --input-size C,H,W"
            )
        dims = (None, *input_size)
    batch = dims[:1]
    sizes: list[int | None] = [d if isinstance(d, int) else None for d in batch]
    if input_size is not None and len(input_size) != len(dims) - 1:
        raise UsageError(
            f"--input-size has {len(input_size)} sizes, input {port.name!r} has {list(dims)}"
        )
    for i, dim in enumerate(dims[1:]):
        given = None if input_size is None else input_size[i]
        if isinstance(dim, int) and given not in (None, dim):
            raise UsageError(
                f"--input-size {','.join(map(str, input_size or ()))} does not fit input "
                f"{port.name!r}, which is {list(dims)}"
            )
        size = dim if isinstance(dim, int) else given
        if size is None and isinstance(dim, str) and dim == batch[0]:
            sizes.append(None)
            continue
        if size is None:
            raise UsageError(
                f"input {port.name!r} leaves sizes open: {list(dims)}; state them: "
                "--input-size C,H,W"
            )
        if size > _MAX_SIZE:
            raise UsageError(f"input {port.name!r} has a size of {size}: refused")
        sizes.append(size)
    return sizes
