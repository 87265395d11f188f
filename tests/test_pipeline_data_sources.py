"""Data from .npz files and from the user's loaders: what is taken as it is, what is refused."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.data import Batch, Data, DataRequest, load_data
from pipeline.errors import UsageError
from pipeline.importers.detect import detect_kind

MEAN, STD = (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)


def request(source: Path | str, **kwargs: object) -> DataRequest:
    given = {"input_size": (3, 8, 8), "mean": MEAN, "std": STD, "batch_size": 4, **kwargs}
    return DataRequest(source=str(source), **given)  # type: ignore[arg-type]


def gather(batches: Iterable[Batch]) -> Batch:
    pairs = list(batches)
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


def arrays(**changed: object) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made: dict[str, object] = {
        "x_train": rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8),
        "y_test": np.array([[0], [1], [2]]),
    }
    made.update(changed)
    return {name: np.asarray(value) for name, value in made.items() if value is not None}


def load_npz(tmp_path: Path, made: dict[str, np.ndarray], **kwargs: object) -> Data:
    np.savez(tmp_path / "data.npz", **made)  # type: ignore[arg-type]
    return load_data(request(tmp_path / "data.npz", **kwargs))


def test_arrays_in_either_layout_are_normalised_alike(tmp_path: Path) -> None:
    made = arrays()
    expected = ((made["x_test"] / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    last = load_npz(tmp_path, made)
    assert (last.num_train, last.num_val, last.num_classes) == (6, 3, 3)
    np.testing.assert_allclose(gather(last.val_loader())[0].numpy(), expected, atol=1e-5)
    swapped = {k: v.transpose(0, 3, 1, 2) if v.ndim == 4 else v for k, v in made.items()}
    first = load_npz(tmp_path, swapped)
    assert torch.equal(gather(first.val_loader())[0], gather(last.val_loader())[0])


def test_arrays_are_augmented_only_when_asked(tmp_path: Path) -> None:
    made = arrays()
    plain = load_npz(tmp_path, made, batch_size=6)
    assert plain.preprocessing["augmentation"] == "none"
    images, _ = gather(plain.train_loader(0))
    calibration, _ = gather(plain.calibration_batches(1))
    assert torch.equal(images.sum(0).round(decimals=2), calibration.sum(0).round(decimals=2))
    asked = load_npz(tmp_path, made, batch_size=6, augment="standard")
    assert asked.preprocessing["augmentation"] == "flip, shift by an eighth"


def test_normalised_floats_are_used_as_they_are_and_it_is_said(tmp_path: Path) -> None:
    values = np.linspace(-2, 2, 3 * 64).reshape(3, 8, 8)
    made = arrays(x_train=np.tile(values, (2, 1, 1)), x_test=values)
    data = load_npz(tmp_path, made, input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
    np.testing.assert_allclose(gather(data.val_loader())[0][:, 0].numpy(), values, rtol=1e-6)
    assert data.preprocessing["normalised"] == "in the file"
    assert data.mean is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": None}, r"has no array x_train; it has x_test, y_test, y_train"),
        ({"y_test": None}, r"has no array y_test"),
        ({"y_train": np.arange(5)}, r"x_train has 6 images, y_train 5 labels"),
        ({"y_train": np.linspace(0, 1, 6)}, r"y_train is float64; labels must be whole"),
        ({"y_train": np.eye(6, dtype=int)}, r"y_train has shape \(6, 6\)"),
        ({"y_train": np.array([0, 1, 2, 0, 1, -1])}, r"y_train has the label -1"),
        ({"y_train": np.zeros(6, dtype=int)}, r"has 1 class; it needs two"),
        ({"y_test": np.array([0, 1, 9])}, r"y_test has the label 9, y_train none above 2"),
        ({"x_train": np.zeros((6, 8, 8, 4), np.uint8)}, r"x_train has shape \(6, 8, 8, 4\)"),
        ({"x_train": np.zeros((6, 9, 8, 3), np.uint8)}, r"the model takes \(N, 8, 8, 3\)"),
        ({"x_train": np.zeros((6, 8, 8, 3), np.int64)}, r"x_train is int64; it must be uint8"),
        ({"x_train": np.full((6, 8, 8, 3), np.nan)}, r"x_train has 1152 values that are NaN"),
        ({"x_train": np.zeros((6, 8, 8, 3))}, r"x_train is torch.float32, x_test torch.uint8"),
        ({"x_train": np.array([None] * 6, dtype=object)}, r"cannot be read \(ValueError"),
    ],
)
def test_unusable_arrays_are_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_npz(tmp_path, arrays(**changed))
    assert "\n" not in str(caught.value)


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **arrays())  # type: ignore[arg-type]
    content = (tmp_path / "data.npz").read_bytes()
    (tmp_path / "data.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="cannot be read"):
        load_data(request(tmp_path / "data.npz"))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UsageError, match=r"is no .npz file"):
        load_data(request(tmp_path / "one.npy"))
    with pytest.raises(UsageError, match="no such folder or file"):
        load_data(request(tmp_path / "none"))


FACTORY = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def dataset(n=10, size=8, dtype=torch.int64):
    images = torch.arange(n).view(n, 1, 1, 1).expand(n, 3, size, size).float()
    return TensorDataset(images, torch.arange(n).to(dtype) % 2)

def good():
    return DataLoader(dataset(), batch_size=4, shuffle=True), DataLoader(dataset(6), batch_size=4)

def single(): return DataLoader(dataset())
def unsized(): return iter([]), iter([])
def wrong_size(): return DataLoader(dataset(size=9)), DataLoader(dataset())
def wrong_labels(): return DataLoader(dataset()), DataLoader(dataset(dtype=torch.int32))
def failing(): raise FileNotFoundError("no dataset here")
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    (tmp_path / "loaders.py").write_text(FACTORY)
    return tmp_path / "loaders.py"


def test_factory_loaders_repeat_for_an_epoch_and_can_be_cut(factory: Path) -> None:
    data = load_data(request(f"{factory}:good", mean=None, std=None))
    assert (data.num_train, data.num_val, data.num_classes) == (10, 6, None)
    state = torch.random.get_rng_state()
    first = gather(data.train_loader(0))[0]
    assert torch.equal(first, gather(data.train_loader(0))[0])
    assert not torch.equal(first, gather(data.train_loader(1))[0])
    assert torch.equal(state, torch.random.get_rng_state())
    assert [len(labels) for _, labels in data.train_loader(0, subset=5)] == [4, 1]
    assert len(list(data.calibration_batches(2))) == 2
    with pytest.raises(UsageError, match="makes batches of 4, 8 were asked for"):
        data.val_loader(8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("single", r"returns DataLoader; it must return \(train loader, val loader\)"),
        ("unsized", r"the train loader .* has no length or no dataset"),
        ("wrong_size", r"the train loader gives images torch.float32 \(1, 3, 9, 9\)"),
        ("wrong_labels", r"the val loader gives labels torch.int32"),
        ("failing", r"calling it fails: FileNotFoundError: no dataset here"),
        ("absent", r"has no 'absent'"),
    ],
)
def test_unusable_factories_are_refused(factory: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_data(request(f"{factory}:{name}"))


def test_uint8_arrays_without_normalisation_ask_for_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="state --mean and --std"):
        load_npz(tmp_path, arrays(), mean=None, std=None)


def test_a_pipe_is_no_model_and_no_data(tmp_path: Path) -> None:
    pipe = tmp_path / "model.onnx"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="is a pipe or device: write it to a file first"):
        ModelConfig(path=pipe)
    with pytest.raises(UsageError, match="is no regular file but a pipe or device"):
        detect_kind(pipe)
    with pytest.raises(UsageError, match="no such f"):
        load_data(DataRequest(source=str(pipe), input_size=(3, 8, 8)))
