"""A job small enough for tests: 8x8 images in four classes, a residual network, files on disk."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

ARCH_SOURCE = """
from torch import nn
import torch.nn.functional as F


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.inner_bn = nn.BatchNorm2d(24)
        self.outer = nn.Conv2d(24, 16, 3, padding=1, bias=False)
        self.outer_bn = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, image):
        x = F.relu(self.stem_bn(self.stem(image)))
        y = F.relu(self.inner_bn(self.inner(x)))
        x = F.relu(x + self.outer_bn(self.outer(y)))
        return self.head(x.mean((2, 3)))
"""


def make_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 8, 8): a bright bar whose place is the class, in noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    images = rng.integers(0, 120, (count, 8, 8))
    for image, label in zip(images, labels, strict=True):
        if label < 2:
            image[:, 1 + 4 * label : 3 + 4 * label] += 120
        else:
            image[1 + 4 * (label - 2) : 3 + 4 * (label - 2)] += 120
    return images.astype(np.uint8), labels.astype(np.int64)


def write_job(folder: Path, source: str = ARCH_SOURCE) -> dict[str, Path]:
    """arch.py, model.pt (a state dict of a trained network) and data.npz in `folder`."""
    arch = folder / "arch.py"
    arch.write_text(source)
    scope: dict[str, type[nn.Module]] = {}
    exec(source, scope)
    torch.manual_seed(0)
    model = scope["Tiny"]()
    x, y = make_images(512, 0)
    x_test, y_test = make_images(160, 1)
    images = (torch.from_numpy(x)[:, None].float() / 255 - 0.5) / 0.5
    labels = torch.from_numpy(y)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(40):
        part = slice(64 * (step % 8), 64 * (step % 8) + 64)
        loss = F.cross_entropy(model(images[part]), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / "model.pt")
    np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return {"arch": arch, "model": folder / "model.pt", "data": folder / "data.npz"}


def arguments(job: dict[str, Path], out: Path, *extra: str) -> list[str]:
    """The command line of the main job on this one."""
    return [
        "--target-flops", "0.5", str(job["model"]), "--arch", f"{job['arch']}:Tiny",
        "--input-size", "1,8,8", "--data", str(job["data"]), "--mean", "0.5", "--std", "0.5",
        "--batch-size", "64", "--epochs", "2", "--out", str(out), *extra,
    ]  # fmt: skip
