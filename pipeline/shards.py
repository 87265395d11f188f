"""Images in tar files, as WebDataset writes them: KEY.jpg beside KEY.cls, many to a file.

What enters: a `DataRequest` whose source is a folder with train*.tar and val*.tar or test*.tar, or
a pattern of training shards, `DIR/train-{000..099}.tar` or `DIR/train-*.tar`, with val*.tar beside
them. What leaves: `StoredData`. Headers are read once, to know where each image lies; images are
read from there as they are needed, so that shuffling, splitting over processes and repeating are as
for any data, and nothing is unpacked.
Refused, by name: missing shards, compressed ones (they cannot be read from the middle), images
without a class or classes without an image, and what images are refused for.
"""

import re
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from pipeline.data_types import DataRequest
from pipeline.errors import UsageError, one_line
from pipeline.image_folder import Images, check_request, stored_images
from pipeline.stored_data import StoredData

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_HELD_OUT = ("val", "valid", "validation", "test")
_MAX_SHARDS = 100_000


@dataclass(frozen=True)
class TarImage:
    """An image inside of a tar file."""

    shard: Path
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"

    def read(self) -> bytes:
        """Its bytes."""
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def names_shards(source: str) -> bool:
    """Whether a source is a pattern of tar files, or a folder that holds some."""
    path = Path(source)
    return source.endswith(".tar") or (path.is_dir() and any(path.glob("train*.tar")))


def load_shards(request: DataRequest) -> StoredData:
    """The data of `request.source`; UsageError for everything that is wrong with it."""
    check_request(request)
    source = request.source
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    pattern = str(folder / "train*.tar") if Path(source).is_dir() else source
    held_out = next(
        (found for name in _HELD_OUT if (found := [*folder.glob(f"{name}*.tar")])), None
    )
    if held_out is None:
        raise UsageError(f"--data {source}: no val*.tar or test*.tar in '{folder}'")
    val = _indexed(sorted(held_out))
    train = val if request.val_only else _indexed(_expanded(pattern))
    num_classes = int(max(train.labels.max(), val.labels.max())) + 1
    if num_classes < 2:
        raise UsageError(f"--data {source}: all images are of one class; it needs two or more")
    return stored_images(
        request, train, val, num_classes, {"source": "shards", "validation": "held-out shards"}
    )


def _expanded(pattern: str) -> list[Path]:
    """The files that a pattern stands for. Raises UsageError where one is not there."""
    found = _RANGE.search(pattern)
    if found is None:
        path = Path(pattern)
        files = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
        if not files:
            raise UsageError(f"--data {pattern}: no such files")
    else:
        first, last = int(found[1]), int(found[2])
        if not first <= last < first + _MAX_SHARDS:
            raise UsageError(f"--data {pattern}: {found[0]} is no range of shards")
        numbers = (str(number).zfill(len(found[1])) for number in range(first, last + 1))
        begin, end = pattern[: found.start()], pattern[found.end() :]
        files = [Path(f"{begin}{number}{end}") for number in numbers]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UsageError(f"--data: {missing[0]}{more}: no such file")
    return files


def _indexed(shards: list[Path]) -> Images:
    """Where each image lies, and its class."""
    images: list[TarImage] = []
    labels: list[int] = []
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as tar:
                members = [member for member in tar if member.isfile()]
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UsageError(f"{shard}: no plain tar file ({one_line(error, 100)})") from error
        found, classes = _paired(shard, members)
        images += found
        labels += classes
    if not images:
        raise UsageError(f"{shards[0]}: holds no image ({', '.join(IMG_EXTENSIONS)})")
    return Images(files=images, labels=torch.tensor(labels))


def _paired(shard: Path, members: list[tarfile.TarInfo]) -> tuple[list[TarImage], list[int]]:
    images: dict[str, TarImage] = {}
    classes: dict[str, TarImage] = {}
    for member in members:
        path = PurePosixPath(member.name)
        key, _, kind = path.name.partition(".")
        where = TarImage(shard, member.name, member.offset_data, member.size)
        if kind == "cls":
            classes[f"{path.parent}/{key}"] = where
        elif f".{kind.lower()}" in IMG_EXTENSIONS:
            images[f"{path.parent}/{key}"] = where
    alone = sorted(set(images) ^ set(classes))
    if alone:
        what = images.get(alone[0]) or classes[alone[0]]
        raise UsageError(f"{what}: KEY.jpg and KEY.cls must come in pairs, and this one is alone")
    return list(images.values()), [_class_in(classes[key]) for key in images]


def _class_in(where: TarImage) -> int:
    text = where.read()[:40].decode("utf-8", "replace").strip()
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"{where}: holds {text[:20]!r}, which is no class number")
    return int(text)
