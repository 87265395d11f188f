"""How much memory a file needs to run.

Enters: an ONNX file, a provider, inputs. Leaves: bytes, measured in a process of its own, since
what an earlier file has freed would hide what the next one takes. None where the system does not
tell (only Linux does).
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from exporters.errors import ExportError, one_line
from exporters.session import Array, open_session

_RUNS = 3
_STATUS = Path("/proc/self/status")


def peak_memory_bytes(
    path: Path, provider: str, threads: int, inputs: dict[str, Array]
) -> int | None:
    """By how many bytes loading the file and running it raises the peak of a process's memory.

    None where the system does not tell. The run is one of its own process, on these inputs by name.
    Raises ExportError where it fails.
    """
    if not _STATUS.is_file():
        return None
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "inputs.npz"
        # By number: an input's name may be no file name.
        arrays: dict[str, Any] = {f"input{i}": v for i, v in enumerate(inputs.values())}
        np.savez(stored, **arrays)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "exporters.memory"),
                *(str(path.resolve()), provider, str(threads), str(stored), *inputs),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).resolve().parent.parent,
        )
    if done.returncode != 0:
        raise ExportError(f"{path}: its memory cannot be measured ({one_line(done.stderr)})")
    return int(done.stdout)


def _peak_bytes() -> int:
    line = next(x for x in _STATUS.read_text(encoding="ascii").splitlines() if "VmHWM" in x)
    return 1024 * int(line.split()[1])


def _main(path: str, provider: str, threads: str, stored: str, *names: str) -> None:
    with np.load(stored) as file:
        inputs = {name: file[f"input{i}"] for i, name in enumerate(names)}
    before = _peak_bytes()
    session = open_session(path, provider, int(threads))
    for _ in range(_RUNS):
        session.run(inputs)
    print(_peak_bytes() - before)


if __name__ == "__main__":
    _main(*sys.argv[1:])
