"""Markdown tables and the line that says with what a figure was measured.

No command. What enters: cells as text. What leaves: Markdown.
"""

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.report.environment import processor as processor_name

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
RUNS = ROOT / "bench-runs"

_PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are escaped; ends with a line break."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(
        f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in line)} |\n"
        for line in lines
    )


def measured_with() -> str:
    """Versions and processor, in one line."""
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue  # Only one of the onnxruntime distributions is there.
    return f"{', '.join(found)}; {processor()}"


def processor() -> str:
    """The CPU's own name where the system tells it, and the number of cores torch may use."""
    import torch

    return f"{processor_name()}, {torch.get_num_threads()} threads"
