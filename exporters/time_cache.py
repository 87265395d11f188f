"""Measured times, kept between runs: they belong to a machine and its versions, not to a run.

Enters: what was measured and where. Leaves: the stored value, or None. The folder is
`gbn-compress/times` in the user's cache folder (XDG_CACHE_HOME); deleting it is safe at any time.
A file that cannot be read or written counts as not there.
"""

import contextlib
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from exporters.cores import cpuinfo
from exporters.files import write_atomically

_FORMAT = 1


def processor_name() -> str:
    """The processor's own name, as far as the system tells it."""
    told = cpuinfo("model name", "flags", "Features")
    if told:
        return " ".join(dict.fromkeys(told))
    return f"{platform.machine()} {platform.processor()}"


def accelerators() -> tuple[str, ...]:
    """CUDA devices by name, and the CUDA version; nothing where there are none."""
    if not torch.cuda.is_available():
        return ()
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return (*names, str(torch.version.cuda))


class TimeCache:
    """Times on one machine: keys hold whatever else decides a value."""

    def __init__(self, folder: Path | None = None) -> None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._folder = folder or root / "gbn-compress" / "times"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._machine = (
            *(_FORMAT, processor_name(), cores),
            *(accelerators(), onnxruntime.__version__),
        )

    def get(self, *key: object) -> Any | None:
        """What was put under this key on a machine and versions like these."""
        try:
            return json.loads(self._file(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def put(self, value: object, *key: object) -> None:
        """Keep a JSON value."""
        content = json.dumps(value).encode()
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file(key), lambda file: file.write(content))

    def _file(self, key: tuple[object, ...]) -> Path:
        text = repr((self._machine, key))
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
