"""`python -m benchmarks.demo` (`make demo`): train a small network, then compress it to half.

Prints the accuracy of the trained network, the command that it runs, and that command's output.
Leaves demo-run/model.pt, demo-run/digits.npz and demo-run/compressed/. Needs scikit-learn for its
bundled digits and nothing from the network. Exits with the exit code of `compress`.
"""

import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.digits_model import INPUT_CONFIG, Arrays, load_digits_arrays, make_model

FOLDER = Path("demo-run")
SEED = 0
EPOCHS = 12
BATCH_SIZE = 64
LEAST_ACCURACY = 0.97
COMMAND = (
    *("compress", "--target-flops", "0.5", "demo-run/model.pt"),
    *("--data", "demo-run/digits.npz", "--epochs", "10", "--max-accuracy-drop", "2"),
    *("--out", "demo-run/compressed"),
)


def train(arrays: Arrays) -> nn.Module:
    """A network trained on the arrays with one cycle of SGD."""
    torch.manual_seed(SEED)
    # On layers this small, threads that wait for each other cost ten times what they save.
    torch.set_num_threads(1)
    model = make_model().train()
    images, labels = normalised(arrays["x_train"]), torch.from_numpy(arrays["y_train"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    num_steps = EPOCHS * (len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=num_steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for indices in order[: len(order) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE):
            loss = F.cross_entropy(model(images[indices]), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def normalised(pixels: np.ndarray) -> Tensor:
    """(N, 8, 8) within 0..1 to (N, 1, 8, 8), as `INPUT_CONFIG` says."""
    mean, std = INPUT_CONFIG["mean"][0], INPUT_CONFIG["std"][0]
    return (torch.from_numpy(pixels)[:, None] - mean) / std


def accuracy(model: nn.Module, arrays: Arrays) -> float:
    """The fraction of test images that is right."""
    with torch.inference_mode():
        chosen = model(normalised(arrays["x_test"])).argmax(1)
    return float((chosen == torch.from_numpy(arrays["y_test"])).float().mean())


def main() -> int:
    """Train, save, compress; the exit code of `compress`, or 1 where training went wrong."""
    FOLDER.mkdir(exist_ok=True)
    arrays = load_digits_arrays(SEED)
    np.savez(FOLDER / "digits.npz", allow_pickle=False, **arrays)
    print(f"training a small residual network on {len(arrays['x_train']):,} digits", flush=True)
    model = train(arrays)
    share = accuracy(model, arrays)
    print(f"trained: {100 * share:.2f} % of {len(arrays['x_test'])} test images are right")
    if share < LEAST_ACCURACY:
        print(f"that is below {100 * LEAST_ACCURACY:.0f} %: training went wrong", file=sys.stderr)
        return 1
    torch.save(model, FOLDER / "model.pt")
    shutil.rmtree(FOLDER / "compressed", ignore_errors=True)
    print(f"\n$ {shlex.join(COMMAND)}", flush=True)
    program = Path(sysconfig.get_path("scripts")) / COMMAND[0]
    return subprocess.run([program, *COMMAND[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
