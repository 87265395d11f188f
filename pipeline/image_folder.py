"""Images in folders: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg (or test/).

What enters: a `DataRequest` whose source is a folder. What leaves: `StoredData`.
Sets that fit into `MAX_CACHE_BYTES` are decoded once, up front, into memory; random parts for
training are then taken from the middle of the resized image. Of larger sets every file is
verified up front by Pillow (headers, and checksums where the format has them), and images are
decoded as they are needed.
Refused: missing or empty folders, fewer than two classes, classes that differ between the splits,
images that cannot be read, and networks that take neither 1 nor 3 channels.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from pipeline.augment import flip, random_boxes, shift
from pipeline.data_types import DataRequest
from pipeline.errors import UsageError
from pipeline.image_decode import (
    MODES,
    ImageFile,
    Pixels,
    Target,
    covering,
    decode_all,
    fitted,
    image_sizes,
    part,
    to_tensor,
)
from pipeline.stored_data import Moves, StoredData, TensorSplit, augmentation

VAL_FOLDERS = ("val", "valid", "validation", "test")
MAX_CACHE_BYTES = 4_000_000_000


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images of one split and their classes, int64 (N,); names where classes have some."""

    files: Sequence[ImageFile]
    labels: torch.Tensor
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class FileSplit:
    """A split that is decoded as it is needed; a `Split`.

    moves: see `TensorSplit`.
    """

    paths: Sequence[ImageFile]
    labels: torch.Tensor
    input_size: tuple[int, int, int]
    threads: int
    moves: Moves

    def pixels(self, indices: torch.Tensor, rng: torch.Generator | None) -> torch.Tensor:
        """See `Split`."""
        channels, *_ = self.input_size
        wanted = self.input_size[1:]
        target = Target(inner=wanted, wanted=wanted)
        boxes: list[list[float] | None] = [None] * len(indices)
        if rng is not None and self.moves == "part":
            boxes = list(random_boxes(len(indices), rng).tolist())

        def decode(index: int, box: list[float] | None) -> Pixels:
            if box is None:
                return fitted(self.paths[index], channels, target)
            return part(self.paths[index], channels, box, wanted)

        with ThreadPoolExecutor(self.threads) as pool:
            images = to_tensor(list(pool.map(decode, indices.tolist(), boxes)))
        if rng is None:
            return images
        mirrored = flip(images, rng)
        return shift(mirrored, rng) if self.moves == "shift" else mirrored


def load_image_folder(request: DataRequest) -> StoredData:
    """The data of `request.source`; UsageError for everything that is wrong with it."""
    root = Path(request.source)
    check_request(request)
    validation = _validation_folder(root, request.val_only)
    val = _scan(validation)
    train = val if request.val_only else _scan(root / "train")
    _check_classes(root, train, val, validation.name)
    return stored_images(
        request,
        train,
        val,
        len(train.class_names or ()),
        {"source": "image folder", "validation": validation.name},
    )


def stored_images(
    request: DataRequest,
    train: Images,
    val: Images,
    num_classes: int,
    origin: dict[str, object],
) -> StoredData:
    """Data of images in files, in memory where they fit. `origin`: for the report."""
    wanted = request.input_size[1:]
    exact = image_sizes(train.files, request.workers or 1) == {wanted}
    inner = wanted if exact else covering(wanted)
    num_values = len(train.files) * inner[0] * inner[1] + len(val.files) * wanted[0] * wanted[1]
    cached = num_values * request.input_size[0] <= MAX_CACHE_BYTES
    load = _in_memory if cached else _on_disk
    augment = request.auto_augment if request.augment == "auto" else request.augment
    moves, in_words = augmentation(augment, "shift" if exact else "part")
    resize = "none" if exact else f"to cover {covering(wanted)}, centre crop {wanted}, bilinear"
    return StoredData(
        request=request,
        train=load(train, request, inner, moves),
        val=load(val, request, wanted, moves),
        num_classes=num_classes,
        class_names=train.class_names,
        mean=request.mean,
        std=request.std,
        augmented=augment != "none",
        preprocessing={
            **origin,
            "channels": MODES[request.input_size[0]],
            "resize": resize,
            "augmentation": in_words,
            "decoded": "once, into memory" if cached else "as needed",
            "scale": "pixels / 255",
            "mean": request.mean,
            "std": request.std,
        },
    )


def check_request(request: DataRequest) -> None:
    """Raises UsageError for networks that take no images, or whose images nobody normalises."""
    if request.input_size[0] not in MODES:
        raise UsageError(
            f"--data {request.source}: images have 3 channels or 1, the model takes "
            f"{request.input_size[0]}; use a .npz file or a loader factory"
        )
    if request.mean is None:
        raise UsageError(
            f"--data {request.source}: the model does not say how its inputs are normalised; "
            "state --mean and --std, for pixels scaled to 0..1"
        )


def _in_memory(
    files: Images, request: DataRequest, inner: tuple[int, int], moves: Moves
) -> TensorSplit:
    channels, *_ = request.input_size
    wanted = request.input_size[1:]
    threads = request.workers or 1
    images = decode_all(files.files, channels, Target(inner=inner, wanted=wanted), threads)
    return TensorSplit(images=images, labels=files.labels, height_width=wanted, moves=moves)


def _on_disk(
    files: Images, request: DataRequest, _inner: tuple[int, int], moves: Moves
) -> FileSplit:
    threads = request.workers or 1
    image_sizes(files.files, threads, verify=True)
    return FileSplit(
        paths=files.files,
        labels=files.labels,
        input_size=request.input_size,
        threads=threads,
        moves=moves,
    )


def _validation_folder(root: Path, val_only: bool) -> Path:
    """DIR/val, or what else it may be called; the first of `VAL_FOLDERS` that is there."""
    if not root.is_dir():
        raise UsageError(f"--data {root}: no such folder")
    there = sorted(child.name for child in root.iterdir() if child.is_dir())
    has = f"it has {', '.join(there[:6]) or 'no folders'}"
    if "train" not in there and not val_only:
        raise UsageError(f"--data {root}: has no folder train/; {has}")
    for name in VAL_FOLDERS:
        if name in there:
            return root / name
    raise UsageError(f"--data {root}: has no folder val/ or test/; {has}")


def _scan(folder: Path) -> Images:
    """The images under each class folder, in the order of their names."""
    classes = sorted(
        entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."
    )
    if not classes:
        raise UsageError(f"--data {folder}: has no class folders; it needs CLASS/IMAGE.jpg")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            Path(base, file)
            for base, _, files in os.walk(folder / name, followlinks=True)
            for file in files
            if file.lower().endswith(IMG_EXTENSIONS)
        )
        if not found:
            raise UsageError(f"--data {folder / name}: has no images ({', '.join(IMG_EXTENSIONS)})")
        paths += found
        labels += [label] * len(found)
    return Images(files=paths, labels=torch.tensor(labels), class_names=tuple(classes))


def _check_classes(root: Path, train: Images, val: Images, val_name: str) -> None:
    names, val_names = train.class_names or (), val.class_names or ()
    if len(names) < 2:
        raise UsageError(f"--data {root}: train/ has one class ({names[0]}); it needs two or more")
    differences = [
        f"only in {name}/: {', '.join(sorted(own - other)[:5])}"
        for name, own, other in (
            ("train", set(names), set(val_names)),
            (val_name, set(val_names), set(names)),
        )
        if own - other
    ]
    if differences:
        raise UsageError(f"--data {root}: the class folders differ: {'; '.join(differences)}")
