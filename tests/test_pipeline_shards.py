"""Images in tar shards are those that were put into them, and wrong shards are refused by name."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import DataRequest, load_data
from pipeline.errors import UsageError


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def png(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels(number)).save(out, format="PNG")
    return out.getvalue()


def write_shards(folder: Path) -> Path:
    """Training images 0 .. 11 in three shards, 100 .. 103 held out; classes are number % 3."""
    for shard in range(3):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as tar:
            for number in range(4 * shard, 4 * shard + 4):
                add(tar, f"part/{number:04}.png", png(number))
                add(tar, f"part/{number:04}.cls", b"%d\n" % (number % 3))
    with tarfile.open(folder / "val-000.tar", "w") as tar:
        for number in range(100, 104):
            add(tar, f"{number}.cls", b"%d" % (number % 3))
            add(tar, f"{number}.png", png(number))
    return folder


def request(source: object, **extra: object) -> DataRequest:
    return DataRequest(
        source=str(source), input_size=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, batch_size=4,
        augment="none", **extra,
    )  # fmt: skip


@pytest.mark.parametrize("form", ["", "train-{000..002}.tar", "train-*.tar"])
def test_every_image_comes_once_a_pass_with_its_class(form: str, tmp_path: Path) -> None:
    data = load_data(request(write_shards(tmp_path) / form if form else write_shards(tmp_path)))
    assert (data.num_train, data.num_val, data.num_classes) == (12, 4, 3)
    seen = {}
    for images, labels in data.train_loader(0):
        for image, label in zip(images, labels.tolist(), strict=True):
            key = (image * 255).round().byte().permute(1, 2, 0).numpy().tobytes()
            seen[key] = label
    assert seen == {pixels(number).tobytes(): number % 3 for number in range(12)}
    _, labels = next(iter(data.val_loader()))
    assert labels.tolist() == [number % 3 for number in range(100, 104)]


def test_some_of_the_shards_may_be_asked_for(tmp_path: Path) -> None:
    assert load_data(request(write_shards(tmp_path) / "train-{001..002}.tar")).num_train == 8


def test_images_that_do_not_fit_into_memory_are_read_as_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_data(request(write_shards(tmp_path)))
    monkeypatch.setattr("pipeline.image_folder.MAX_CACHE_BYTES", 0)
    needed = load_data(request(tmp_path))
    assert needed.preprocessing["decoded"] == "as needed"
    for (a, one), (b, other) in zip(whole.train_loader(1), needed.train_loader(1), strict=True):
        assert torch.equal(a, b) and torch.equal(one, other)


def test_wrong_shards_are_refused_by_name(tmp_path: Path) -> None:
    write_shards(tmp_path)

    def refused(source: object) -> str:
        with pytest.raises(UsageError) as caught:
            load_data(request(source))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "train-003.tar and 1 more: no such file" in refused(tmp_path / "train-{001..004}.tar")
    assert "{3..1} is no range of shards" in refused(tmp_path / "train-{3..1}.tar")
    assert "no such files" in refused(tmp_path / "other-*.tar")
    with tarfile.open(tmp_path / "train-003.tar", "w") as tar:
        add(tar, "a.png", png(0))
    assert "train-003.tar: a.png: KEY.jpg and KEY.cls must come in pairs" in refused(tmp_path)
    with tarfile.open(tmp_path / "train-003.tar", "w") as tar:
        add(tar, "a.png", png(0))
        add(tar, "a.cls", b"cat")
    assert "train-003.tar: a.cls: holds 'cat', which is no class number" in refused(tmp_path)
    with tarfile.open(tmp_path / "train-003.tar", "w") as tar:
        add(tar, "a.png", b"no image")
        add(tar, "a.cls", b"1")
    assert "train-003.tar: a.png: cannot be read as an image" in refused(tmp_path)
    with tarfile.open(tmp_path / "train-003.tar", "w:gz") as tar:
        add(tar, "a.png", png(0))
    assert "train-003.tar: no plain tar file" in refused(tmp_path)
    (tmp_path / "train-003.tar").write_bytes(b"")
    assert "train-003.tar: no plain tar file" in refused(tmp_path)
    (tmp_path / "train-003.tar").unlink()
    (tmp_path / "val-000.tar").unlink()
    assert "no val*.tar or test*.tar" in refused(tmp_path)
