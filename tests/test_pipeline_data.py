"""Data: order, augmentation and normalisation, and every refusal of bad folders, files, loaders."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import image_folder
from pipeline.augment import random_boxes, resized_crop, shift
from pipeline.data import Batch, DataRequest, load_data
from pipeline.errors import UsageError

MEAN, STD = (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)
NUM_PER_CLASS = 5


def request(source: Path | str, **kwargs: object) -> DataRequest:
    given = {"input_size": (3, 8, 8), "mean": MEAN, "std": STD, "batch_size": 4, **kwargs}
    return DataRequest(source=str(source), **given)  # type: ignore[arg-type]


def write_image(path: Path, seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            for number in range(NUM_PER_CLASS):
                write_image(root / split / name / f"{number}.png", 10 * label + number)
    return root


def gather(batches: Iterable[Batch]) -> Batch:
    pairs = list(batches)
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


def expected_image(path: Path) -> torch.Tensor:
    scaled = np.asarray(Image.open(path)).astype(np.float64) / 255
    return torch.from_numpy(((scaled - MEAN) / STD).transpose(2, 0, 1)).float()


def test_folder_images_of_the_input_size_are_normalised_as_they_are(folder: Path) -> None:
    data = load_data(request(folder))
    assert (data.num_train, data.num_val, data.num_classes) == (10, 10, 2)
    assert data.class_names == ("cat", "dog")
    assert data.preprocessing["resize"] == "none"
    images, labels = gather(data.val_loader())
    assert images.shape == (10, 3, 8, 8)
    assert images.dtype == torch.float32
    assert labels.tolist() == [0] * 5 + [1] * 5
    assert labels.dtype == torch.int64
    torch.testing.assert_close(images[7], expected_image(folder / "val" / "dog" / "2.png"))


def test_training_batches_repeat_for_an_epoch_and_differ_between_epochs(folder: Path) -> None:
    data, again = load_data(request(folder)), load_data(request(folder))
    first = gather(data.train_loader(3))
    assert torch.equal(first[0], gather(again.train_loader(3))[0])
    assert not torch.equal(first[0], gather(data.train_loader(4))[0])
    other_seed = load_data(request(folder, seed=1))
    assert not torch.equal(first[0], gather(other_seed.train_loader(3))[0])


def test_incomplete_batch_is_left_out_of_training_only_when_there_is_another(folder: Path) -> None:
    data = load_data(request(folder))
    assert [len(labels) for _, labels in data.train_loader(0)] == [4, 4]
    assert len(data.train_loader(0)) == 2
    assert [len(labels) for _, labels in data.train_loader(0, batch_size=16)] == [10]
    assert [len(labels) for _, labels in data.val_loader()] == [4, 4, 2]
    assert len(data.val_loader(5)) == 2


def test_subset_draws_anew_each_epoch_and_never_more_than_there_is(folder: Path) -> None:
    data = load_data(request(folder, augment="none"))
    drawn = [gather(data.train_loader(epoch, subset=4))[0] for epoch in (0, 1)]
    assert len(drawn[0]) == 4
    assert not torch.equal(drawn[0], drawn[1])
    with pytest.raises(UsageError, match="subset of 11 of 10"):
        data.train_loader(0, subset=11)


def test_calibration_batches_are_fixed_and_not_augmented(folder: Path) -> None:
    data = load_data(request(folder))
    images, _ = gather(data.calibration_batches(2))
    assert len(images) == 8
    assert torch.equal(images, gather(data.calibration_batches(2))[0])
    plain = gather(data.val_loader())[0]
    assert all(any(torch.equal(image, other) for other in plain) for image in images)
    assert len(data.calibration_batches(99)) == 3


def test_without_augmentation_every_training_image_comes_once(folder: Path) -> None:
    data = load_data(request(folder, augment="none", batch_size=5))
    images, labels = gather(data.train_loader(0))
    plain, plain_labels = gather(data.val_loader())
    order = [next(k for k in range(10) if torch.equal(image, plain[k])) for image in images]
    assert sorted(order) == list(range(10))
    assert torch.equal(labels, plain_labels[order])
    assert order != list(range(10))


def test_flip_mirrors_images_and_does_nothing_else(folder: Path) -> None:
    data = load_data(request(folder, augment="flip"))
    plain = gather(data.val_loader())[0]
    images, _ = gather(data.train_loader(0))

    def among(image: torch.Tensor) -> bool:
        return any(torch.equal(image, other) for other in plain)

    found = [(among(image), among(image.flip(-1))) for image in images]
    assert all(as_is or mirrored for as_is, mirrored in found)
    assert not all(as_is for as_is, _ in found)
    assert data.preprocessing["augmentation"] == "flip"


@pytest.mark.parametrize("auto", ["none", "flip", "standard"])
def test_auto_augmentation_is_what_the_recipe_says(folder: Path, auto: str) -> None:
    by_recipe = load_data(request(folder, auto_augment=auto))
    stated = load_data(request(folder, augment=auto))
    assert torch.equal(*(gather(data.train_loader(0))[0] for data in (by_recipe, stated)))
    assert by_recipe.preprocessing == stated.preprocessing


def test_shift_moves_each_image_by_at_most_an_eighth() -> None:
    pixels = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).repeat(200, 1, 1, 1)
    moved = shift(pixels, torch.Generator().manual_seed(0))
    padded = np.pad(pixels[0, 0].numpy(), 1)
    windows = {padded[y : y + 8, x : x + 8].tobytes() for y in range(3) for x in range(3)}
    assert {image[0].numpy().tobytes() for image in moved} == windows


def test_resized_crop_takes_the_stated_part_of_the_image() -> None:
    ramp = torch.linspace(0, 1, 64).repeat(64, 1).view(1, 1, 64, 64).repeat(50, 1, 1, 1)
    boxes = random_boxes(50, torch.Generator().manual_seed(1))
    cropped = resized_crop(ramp, (16, 16), torch.Generator().manual_seed(1))
    middle = boxes[:, 0] + boxes[:, 2] / 2
    torch.testing.assert_close(cropped.mean((1, 2, 3)), middle, atol=0.02, rtol=0)
    area = boxes[:, 2] * boxes[:, 3]
    assert float(area.min()) >= 0.3
    assert float((boxes[:, :2] + boxes[:, 2:]).max()) <= 1 + 1e-6


@pytest.mark.parametrize("cached", [True, False])
def test_larger_images_are_resized_and_cropped_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    # Black on both sides of a white middle: a centre crop of the shorter side sees white alone.
    pixels = np.zeros((80, 240, 3), dtype=np.uint8)
    pixels[:, 76:164] = 255
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / split / name / "0.png")
    if not cached:
        monkeypatch.setattr(image_folder, "MAX_CACHE_BYTES", 0)
    data = load_data(
        request(tmp_path, input_size=(3, 64, 64), mean=(0.0,) * 3, std=(1.0,) * 3, batch_size=2)
    )
    assert data.preprocessing["validation"] == "test"
    assert str(data.preprocessing["resize"]).startswith("to cover (73, 73), centre crop (64, 64)")
    assert torch.equal(gather(data.val_loader())[0], torch.ones(2, 3, 64, 64))
    assert torch.equal(gather(data.calibration_batches(1))[0], torch.ones(2, 3, 64, 64))
    train = gather(data.train_loader(0))[0]
    assert train.shape == (2, 3, 64, 64)
    assert torch.equal(train, gather(data.train_loader(0))[0])


def test_images_decoded_as_needed_equal_those_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = load_data(request(folder))
    monkeypatch.setattr(image_folder, "MAX_CACHE_BYTES", 0)
    as_needed = load_data(request(folder))
    assert as_needed.preprocessing["decoded"] == "as needed"
    assert torch.equal(gather(in_memory.val_loader())[0], gather(as_needed.val_loader())[0])
    assert torch.equal(gather(in_memory.train_loader(1))[0], gather(as_needed.train_loader(1))[0])


@pytest.mark.parametrize(("channels", "mode"), [(3, "L"), (3, "P"), (3, "RGBA"), (1, "RGB")])
def test_images_are_converted_to_the_models_channels(
    folder: Path, channels: int, mode: str
) -> None:
    write_image(folder / "val" / "cat" / "0.png", 1, mode=mode)
    mean, std = MEAN[:channels], STD[:channels]
    data = load_data(request(folder, input_size=(channels, 8, 8), mean=mean, std=std))
    images, _ = gather(data.val_loader())
    assert images.shape == (10, channels, 8, 8)


def remove(*names: str) -> Callable[[Path], object]:
    def act(root: Path) -> None:
        for name in names:
            folder = root / name
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            folder.rmdir()

    return act


def corrupt(root: Path) -> None:
    path = root / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("train"), r"no folder train/; it has val"),
        (remove("val"), r"no folder val/ or test/; it has train"),
        (remove("train/cat", "val/cat"), r"one class \(dog\)"),
        (remove("train/cat", "train/dog"), r"train: has no class folders"),
        (remove("val/cat"), r"class folders differ: only in train/: cat"),
        (lambda root: (root / "val" / "emu").mkdir(), r"emu: has no images"),
        (corrupt, r"dog/3.png: cannot be read as an image"),
        (
            lambda root: (root / "train" / "cat" / "9.jpg").write_bytes(b"no image"),
            r"cat/9.jpg: cannot be read as an image",
        ),
    ],
)
def test_unusable_folders_are_refused_in_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], object],
    message: str,
    cached: bool,
) -> None:
    if not cached:
        monkeypatch.setattr(image_folder, "MAX_CACHE_BYTES", 0)
    spoil(folder)
    with pytest.raises(UsageError, match=message) as caught:
        load_data(request(folder))
    assert "\n" not in str(caught.value)


def test_sixteen_bit_images_and_odd_channel_counts_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="the model takes 4"):
        load_data(request(folder, input_size=(4, 8, 8), mean=None, std=None))
    array = np.full((8, 8), 60_000, dtype=np.uint16)
    Image.fromarray(array).save(folder / "train" / "cat" / "0.png")
    with pytest.raises(UsageError, match=r"cat/0.png: has pixels of mode 'I;16'"):
        load_data(request(folder))


def test_pixels_without_normalisation_ask_for_it(folder: Path) -> None:
    with pytest.raises(UsageError, match="state --mean and --std"):
        load_data(request(folder, mean=None, std=None))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "--batch-size 0"),
        ({"workers": -1}, "--workers -1"),
        ({"augment": "strong"}, "--augment strong: must be one of auto"),
        ({"std": None}, "give both or neither"),
        ({"mean": (0.5,), "std": (0.5,)}, "the model takes 3 channels"),
        ({"std": (0.5, 0.0, 0.5)}, "must be positive"),
    ],
)
def test_impossible_requests_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        request("data", **changed)
