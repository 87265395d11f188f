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
from pipeline.report.format import showable

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

    gpu: what the provider ran on; training_gpu: what the network was trained on. Raises OSError
    where an input cannot be read.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return {
        "versions": {"python": platform.python_version()} | _versions(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        "device": device,
        "gpu": _gpu(0) if _on_gpu(provider) else None,
        "training_gpu": _gpu(int(device.removeprefix("cuda:"))) if "cuda:" in device else None,
        "provider": provider,
        "seed": seed,
        "hashes": {role: _hash(path) for role, path in inputs.items()},
        "processes": processes,
        "command": showable(shlex.join([*_program(processes), *sys.argv[1:]])),
    }


def processor() -> str:
    """The processor's own name, as far as the system tells it."""
    names = [line.partition(":")[2].strip() for line in cpuinfo("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _program(processes: int) -> list[str]:
    """What was called, with the launcher of several processes if there was one."""
    if processes == 1:
        return ["compress"]
    own = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    nodes = ["--standalone"] if own == processes else ["--nnodes", str(processes // own)]
    return ["torchrun", *nodes, "--nproc-per-node", str(own), "-m", "pipeline.cli"]


def _on_gpu(provider: str) -> bool:
    """provider: one, or several by commas. Those on a GPU run on the first."""
    return any(device_of(name) == "cuda" for name in provider.split(","))


def _gpu(number: int) -> str | None:
    """The name of a GPU; None where none is there."""
    import torch

    return torch.cuda.get_device_name(number) if torch.cuda.is_available() else None


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
