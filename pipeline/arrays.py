"""Images in one .npz file: x_train, y_train, and x_test, y_test (or x_val, y_val).

What enters: a `DataRequest` whose source is such a file. What leaves: `StoredData`.
Images are uint8 or floating point, (N, H, W, C), (N, C, H, W), or (N, H, W) for one channel, at
the input size: arrays are not resized. uint8 and floats within 0..1 are normalised with mean and
std; other floats, or floats without mean and std, are taken as normalised already.
Refused: pickled objects, missing arrays, lengths, types or sizes that do not fit, NaN, labels that
are no whole numbers from 0, and fewer than two classes.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.data_types import DataRequest
from pipeline.errors import UsageError, one_line
from pipeline.stored_data import Moves, StoredData, TensorSplit, augmentation

VAL_NAMES = ("val", "test")
Array = npt.NDArray[np.generic]
READ_ERRORS = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


def load_arrays(request: DataRequest) -> StoredData:
    """The data in the file `request.source`; UsageError for everything that is wrong with it."""
    path = Path(request.source)
    arrays, val_name = _read(path, request.val_only)
    augment = "none" if request.augment == "auto" else request.augment  # they may be no pictures
    moves, in_words = augmentation(augment, "shift")
    val = _split(arrays, val_name, request, moves)
    train = val if request.val_only else _split(arrays, "train", request, moves)
    is_uint8 = train.images.dtype == torch.uint8
    if train.images.dtype != val.images.dtype:
        raise UsageError(
            f"--data {path}: x_train is {train.images.dtype}, x_{val_name} {val.images.dtype}; "
            "they must be of one type"
        )
    num_classes = _num_classes(train.labels, val.labels, val_name, path)
    normalise = request.mean is not None and _is_raw(train.images, val.images)
    if is_uint8 and not normalise:
        raise UsageError(
            f"--data {path}: the model does not say how its inputs are normalised; state "
            "--mean and --std, for pixels scaled to 0..1"
        )
    mean, std = (request.mean, request.std) if normalise else (None, None)
    return StoredData(
        request=request,
        train=train,
        val=val,
        num_classes=num_classes,
        class_names=None,
        mean=mean,
        std=std,
        augmented=augment != "none",
        preprocessing={
            "source": "arrays",
            "validation": val_name,
            "resize": "none",
            "augmentation": in_words,
            "scale": "pixels / 255" if is_uint8 else "as in the file",
            "normalised": "by mean and std" if normalise else "in the file",
            "mean": mean,
            "std": std,
        },
    )


def _split(arrays: dict[str, Array], name: str, request: DataRequest, moves: Moves) -> TensorSplit:
    images = _images(arrays, f"x_{name}", request)
    labels = _labels(arrays, f"y_{name}", Path(request.source))
    if len(images) != len(labels) or len(images) == 0:
        raise UsageError(
            f"--data {request.source}: x_{name} has {len(images)} images, y_{name} {len(labels)} "
            "labels; they must be equally many, and some"
        )
    height_width = request.input_size[1:]
    return TensorSplit(images=images, labels=labels, height_width=height_width, moves=moves)


def _read(path: Path, val_only: bool) -> tuple[dict[str, Array], str]:
    """The arrays of both splits, or of one, and the name of the validation split."""
    if not path.is_file():
        raise UsageError(f"--data {path}: no such file")
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise UsageError(f"--data {path}: is no .npz file; write it with numpy.savez")
        with file:
            there = set(file.files)
            val_name = next((name for name in VAL_NAMES if f"x_{name}" in there), VAL_NAMES[-1])
            names = (val_name,) if val_only else ("train", val_name)
            wanted = [f"{kind}_{name}" for name in names for kind in "xy"]
            missing = [name for name in wanted if name not in there]
            if missing:
                raise UsageError(
                    f"--data {path}: has no array {', '.join(missing)}; it has "
                    f"{', '.join(sorted(there)) or 'none'}"
                )
            return {name: file[name] for name in wanted}, val_name
    except READ_ERRORS as error:
        raise UsageError(
            f"--data {path}: cannot be read ({one_line(error)}); write it again with numpy.savez"
        ) from error


def _images(arrays: dict[str, Array], name: str, request: DataRequest) -> torch.Tensor:
    """uint8 or float32 (N, C, H, W)."""
    array, where = arrays[name], f"--data {request.source}: {name}"
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise UsageError(f"{where} is {array.dtype}; it must be uint8 or floating point")
    channels, height, width = request.input_size
    shape = array.shape[1:]
    if shape == (height, width) and channels == 1:
        array = array[:, None]
    elif shape == (height, width, channels) and shape != (channels, height, width):
        array = array.transpose(0, 3, 1, 2)
    elif shape != (channels, height, width):
        raise UsageError(
            f"{where} has shape {array.shape}; the model takes (N, {height}, {width}, {channels}) "
            f"or (N, {channels}, {height}, {width})"
        )
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array))
    floats = np.ascontiguousarray(array, dtype=np.float32)
    bad = int(np.count_nonzero(~np.isfinite(floats)))
    if bad:
        raise UsageError(f"{where} has {bad} values that are NaN or infinite")
    return torch.from_numpy(floats)


def _labels(arrays: dict[str, Array], name: str, path: Path) -> torch.Tensor:
    """int64 (N,)."""
    array, where = arrays[name], f"--data {path}: {name}"
    if not np.issubdtype(array.dtype, np.integer):
        raise UsageError(f"{where} is {array.dtype}; labels must be whole numbers")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise UsageError(f"{where} has shape {array.shape}; labels must be (N,), one class each")
    if array.size and int(array.min()) < 0:
        raise UsageError(f"{where} has the label {array.min()}; labels start at 0")
    return torch.from_numpy(array.astype(np.int64))


def _num_classes(train: torch.Tensor, val: torch.Tensor, val_name: str, path: Path) -> int:
    num_found = len(train.unique())
    if num_found < 2:
        raise UsageError(f"--data {path}: y_train has {num_found} class; it needs two or more")
    highest = int(train.max())
    if int(val.max()) > highest:
        raise UsageError(
            f"--data {path}: y_{val_name} has the label {int(val.max())}, y_train none above "
            f"{highest}; the classes must agree"
        )
    return highest + 1


def _is_raw(*splits: torch.Tensor) -> bool:
    """Whether pixels still have to be normalised: uint8, or floats within 0..1."""
    return all(
        not images.is_floating_point() or (images.min() >= 0 and images.max() <= 1)
        for images in splits
    )
