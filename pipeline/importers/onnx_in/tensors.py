"""Tensors of an ONNX file as torch tensors, never larger than the bytes that are really there.

What enters: a TensorProto and the folder of the model. What leaves: a `torch.Tensor` of its own.
Refused: announced sizes that the data does not have, external data outside of the model's folder
or beyond the end of its file, and element types that torch does not know.
"""

import math
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from pipeline.importers.onnx_in.errors import FOREIGN, UsageError, one_line

TORCH_DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
}
# The repeated field that holds the values where raw_data does not, and how many make one element.
_FIELDS = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
}
MAX_SPARSE_BYTES = 64 * 2**20
"""A sparse tensor announces its dense size freely: no more than this is believed."""


def dtype_name(code: int) -> str:
    """The name of an element type in the ONNX standard."""
    known = TensorProto.DataType.values()
    return TensorProto.DataType.Name(code) if code in known else f"number {code}"


def torch_dtype(code: int, where: str) -> torch.dtype:
    """The torch type of an ONNX element type. Raises UsageError where there is none."""
    dtype = TORCH_DTYPES.get(code)
    if dtype is None:
        raise UsageError(f"{where}: the element type {dtype_name(code)} is not supported")
    return dtype


def to_torch(tensor: TensorProto, folder: Path | None) -> torch.Tensor:
    """The values of `tensor`; `folder` holds external data, None where none may be used."""
    where = f"tensor {tensor.name!r}"
    dtype = torch_dtype(tensor.data_type, where)
    shape = list(tensor.dims)
    if any(dim < 0 for dim in shape):
        raise UsageError(f"{where}: has a negative size: {shape}")
    count = math.prod(shape)
    size_bytes = count * dtype.itemsize
    if tensor.data_location == TensorProto.EXTERNAL:
        raw: bytes | np.ndarray = _external(tensor, size_bytes, folder)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
        if len(raw) != size_bytes:
            raise UsageError(
                f"{where}: announces {size_bytes} bytes {shape}, the file has {len(raw)}"
            )
    else:
        return _from_field(tensor, count, dtype, where)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    # frombuffer needs memory that may be written to, and the parameters must own theirs.
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


def _from_field(tensor: TensorProto, count: int, dtype: torch.dtype, where: str) -> torch.Tensor:
    field = _FIELDS.get(tensor.data_type, "int32_data")
    found = len(getattr(tensor, field))
    if found != count:
        raise UsageError(
            f"{where}: announces {count} elements {list(tensor.dims)}, the file has {found}"
        )
    try:
        values = numpy_helper.to_array(tensor)
        if dtype is torch.bfloat16:
            return torch.from_numpy(values.astype(np.float32)).to(dtype)
        return torch.from_numpy(np.array(values))
    except FOREIGN as error:
        raise UsageError(f"{where}: cannot be read ({one_line(error)})") from error


def _external(tensor: TensorProto, size_bytes: int, folder: Path | None) -> np.ndarray:
    where = f"tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None or not location:
        raise UsageError(f"{where}: its data is said to be in another file, which is not named")
    file = _inside(folder, location, where)
    offset, length = (
        _number(entries, "offset", 0, where),
        _number(entries, "length", size_bytes, where),
    )
    if length != size_bytes:
        raise UsageError(
            f"{where}: announces {size_bytes} bytes {list(tensor.dims)}, its external data {length}"
        )
    there = file.stat().st_size
    if offset + length > there:
        raise UsageError(
            f"{where}: its data ends at byte {offset + length} of {location!r}, which has {there}"
        )
    if length == 0:
        return np.empty(0, dtype=np.uint8)
    return np.memmap(file, dtype=np.uint8, mode="r", offset=offset, shape=(length,))


def _inside(folder: Path, location: str, where: str) -> Path:
    """The file at `location`; it may not lead out of the model's folder, nor may a link in it."""
    try:
        file = (folder / location).resolve()
        outside = not file.is_relative_to(folder.resolve())
        missing = outside or not file.is_file()
    except (OSError, ValueError) as error:
        raise UsageError(f"{where}: external data at {location!r}: {one_line(error)}") from error
    if outside:
        raise UsageError(
            f"{where}: its external data {location!r} lies outside of the model's folder; move it "
            "beside the model"
        )
    if missing:
        raise UsageError(f"{where}: its external data {location!r} is missing beside the model")
    return file


def _number(entries: dict[str, str], key: str, default: int, where: str) -> int:
    text = entries.get(key, str(default))
    # Bounded, so that no sum of two overflows what a file can hold.
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise UsageError(f"{where}: the {key} of its external data is {text[:40]!r}, no size")
    return int(text)


def from_sparse(sparse: onnx.SparseTensorProto, folder: Path | None) -> torch.Tensor:
    """A sparse tensor of the file as a dense one."""
    name = sparse.values.name
    shape = list(sparse.dims)
    values, indices = to_torch(sparse.values, folder), to_torch(sparse.indices, folder).long()
    if any(dim < 0 for dim in shape) or math.prod(shape) * values.itemsize > MAX_SPARSE_BYTES:
        raise UsageError(f"sparse tensor {name!r}: the size {shape} is not supported")
    if indices.ndim == 2:
        weights = torch.tensor([math.prod(shape[i + 1 :]) for i in range(len(shape))])
        if indices.shape[1] != len(shape):
            raise UsageError(f"sparse tensor {name!r}: its indices do not fit {shape}")
        indices = (indices * weights).sum(1)
    dense = torch.zeros(math.prod(shape), dtype=values.dtype)
    fits = indices.shape == values.shape and (
        indices.numel() == 0 or (int(indices.min()) >= 0 and int(indices.max()) < dense.numel())
    )
    if not fits:
        raise UsageError(f"sparse tensor {name!r}: its indices do not fit {shape}")
    dense[indices] = values
    return dense.reshape(shape)
