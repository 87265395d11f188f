"""The images and the network of `benchmarks.accuracy`, the same for every method.

No command. What enters: the JPEG copy of CIFAR-10 and a trained network of 20 layers. What leaves:
an .npz file of 10,000 training images (the same 1,000 of each class every time) and all 10,000 test
images, and this project's `Data` over it.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from benchmarks.cifar_models import resnet20
from benchmarks.resnet20_main_job import WEIGHTS, image_folder
from benchmarks.tables import RUNS
from pipeline.data import Data, DataRequest, load_data
from pipeline.recipes import RECIPES

CACHE = RUNS / "accuracy"
FILE = CACHE / "cifar10-subset.npz"
PER_CLASS = 1000
INPUT = (3, 32, 32)
BATCH = 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare() -> Path | None:
    """The .npz file, made where it is not there yet; None where the material is absent."""
    if FILE.is_file():
        return FILE
    folder = image_folder()
    if folder is None or not WEIGHTS.is_file():
        return None
    print("reading 20,000 images", flush=True)
    x_train, y_train = _read(folder / "train", PER_CLASS)
    x_test, y_test = _read(folder / "test", None)
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = FILE.with_suffix(".partial.npz")
    np.savez(partial, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    partial.rename(FILE)
    return FILE


def _read(folder: Path, per_class: int | None) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 32, 32, 3) and int64 (N,); classes in the order of their names."""
    images, labels = [], []
    for label, kind in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        files = np.array(sorted(kind.iterdir()))
        order = np.random.default_rng(label).permutation(len(files))[:per_class]
        for file in files[np.sort(order)]:
            images.append(np.asarray(Image.open(file).convert("RGB")))
            labels.append(label)
    return np.stack(images), np.array(labels, dtype=np.int64)


def data(seed: int, epochs: int) -> Data:
    """Shuffled by `seed`; training images move as in a run of the default recipe so long."""
    return load_data(
        DataRequest(
            source=str(FILE),
            input_size=INPUT,
            mean=MEAN,
            std=STD,
            batch_size=BATCH,
            augment=RECIPES["default"].augment(epochs),
            seed=seed,
        )
    )


def trained_network() -> nn.Module:
    """In eval mode."""
    model = resnet20()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()
