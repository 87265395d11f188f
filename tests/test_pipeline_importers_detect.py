"""Files that are no usable models are refused by what is in them."""

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import UsageError
from pipeline.importers import LoadedModel, ModelSource, load_model


def load(path: Path) -> LoadedModel:
    return load_model(ModelSource(path=path, input_size=(3, 8, 8)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"hello, this is text", "is no model file"),
        (b"\x80\x02}q\x00", "damaged or no checkpoint"),
        ((10**6).to_bytes(8, "little") + b'{"a": 1}', "truncated safetensors"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "damaged safetensors"),
        (b"\x08\x07\x12\x07pytorch", "holds no graph: it is damaged or no ONNX file"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load(tmp_path / "model.pt")
    assert "\n" not in str(caught.value)


def test_missing_file_and_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "none.pt")
    with pytest.raises(UsageError, match="is a directory"):
        load(tmp_path)


def test_truncated_checkpoint_and_other_archives_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(3, 4, 3), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="truncated or damaged"):
        load(tmp_path / "cut.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "no model")
    with pytest.raises(UsageError, match="zip archive but no model"):
        load(tmp_path / "other.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(UsageError, match="zip bomb"):
        load(tmp_path / "bomb.pt")


def test_checkpoint_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "loss": 0.5}, tmp_path / "model.pt")
    with pytest.raises(UsageError, match="holds a dict with 'epoch', 'loss'"):
        load(tmp_path / "model.pt")
    torch.save([1, 2], tmp_path / "model.pt")
    with pytest.raises(UsageError, match="holds a list"):
        load(tmp_path / "model.pt")
