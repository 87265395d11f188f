"""The demo's network and its data: 8 x 8 images of handwritten digits.

No command: `benchmarks.demo` trains the network. It is put together from classes of torch and
torchvision alone, so that `torch.save(model)` gives a file that loads without `--trust-pickle`.
"""

from collections import OrderedDict

import numpy as np
import numpy.typing as npt
from torch import nn
from torchvision.models.resnet import BasicBlock

INPUT_CONFIG = {"input_size": (1, 8, 8), "mean": (0.3,), "std": (0.37,)}
"""What the network says of its inputs, in timm's words; pixels run from 0 to 1."""

Arrays = dict[str, npt.NDArray[np.generic]]


def make_model() -> nn.Sequential:
    """Fresh weights; (N, 1, 8, 8) to class scores (N, 10)."""
    layers = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(1, 32, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(32),
        relu=nn.ReLU(),
        block1=BasicBlock(32, 32),
        block2=BasicBlock(32, 64, stride=2, downsample=_downsample(32, 64)),
        block3=BasicBlock(64, 64),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Linear(64, 10),
    )
    model = nn.Sequential(layers)
    vars(model)["pretrained_cfg"] = dict(INPUT_CONFIG)
    return model


def _downsample(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def load_digits_arrays(seed: int) -> Arrays:
    """x_train, y_train, x_test, y_test: 1,347 and 450 images (N, 8, 8), float32 within 0..1."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        pixels, labels.astype(np.int64), test_size=450, stratify=labels, random_state=seed
    )
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
