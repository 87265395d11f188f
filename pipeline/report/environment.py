"""Where and with what a run was done, so that its figures can be repeated.

Enters: what the run chose (seed, device, provider) and the files it read.
Leaves: a dict for `report.json`.
"""

import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from exporters.cores import cpuinfo
from exporters.providers import device_of
from pipeline.config import file_sha256

PACKAGES = (
    "gbn-compress",
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxscript",
    "onnx-graphsurgeon",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "scipy",
    "lightning-fabric",
    "safetensors",
)
"""Distributions whose versions can change a result."""


def environment(
    *, seed: int, device: str, provider: str, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Versions, machine and hashes; `inputs` maps a role ("model", "data") to what was read.

    Raises OSError where an input cannot be read.
    """
    return {
        "versions": {"python": platform.python_version()} | _versions(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        "device": device,
        "gpu": _gpu(device, provider),
        "provider": provider,
        "seed": seed,
        "hashes": {role: _hash(path) for role, path in inputs.items()},
        "command": shlex.join(["compress", *sys.argv[1:]]),
    }


def processor() -> str:
    """The processor's own name, as far as the system tells it."""
    names = [line.partition(":")[2].strip() for line in cpuinfo("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu(device: str, provider: str) -> str | None:
    """The name of the GPU that took part; None where none did. Either may be several, by commas."""
    trained_on = device if device.startswith("cuda:") else "cuda:0"
    runs_on = {device.partition(":")[0], *(device_of(name) for name in provider.split(","))}
    if "cuda" not in runs_on:
        return None
    import torch

    return torch.cuda.get_device_name(trained_on) if torch.cuda.is_available() else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # Only one of the onnxruntime distributions is there.
    return found


def _hash(path: Path) -> str:
    """Of a file its content; of a directory the names and sizes, since content could take hours."""
    if not path.is_dir():
        return f"sha256:{file_sha256(path)}"
    listing = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            listing.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\n".encode())
    return f"sha256-of-names-and-sizes:{listing.hexdigest()}"
