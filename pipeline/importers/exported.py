"""Load an exported program (`.pt2`) as a module that can be trained.

What enters: the path of a file of torch.export.save. What leaves: an `ExportedNetwork`.
Refused: files without `trust_pickle` (torch evaluates the size expressions in the file as code,
and the graph may name any function of torch), and programs without trainable parameters.
"""

import warnings
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import UsageError, one_line
from pipeline.importers.dry_run import PICKLE_ERRORS


class ExportedNetwork(nn.Module):
    """An exported program behind the interface of a module.

    `train()` and `eval()` set the flag alone: the program was captured in one mode and keeps it.
    """

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, images: torch.Tensor) -> object:
        """(N, C, H, W) to whatever the program returns."""
        return self.program(images)

    def train(self, mode: bool = True) -> "ExportedNetwork":
        """Set `training` here only; the program itself refuses to change its mode."""
        self.training = mode
        return self


def load_exported(path: Path, *, trust_pickle: bool) -> ExportedNetwork:
    """The program in `path` with its parameters trainable."""
    if not trust_pickle:
        raise UsageError(
            f"{path}: is an exported program, and torch runs expressions of such a file while "
            "loading it; if you trust its author with your machine, give --trust-pickle"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path).module()
    except PICKLE_ERRORS as error:
        raise UsageError(f"{path}: cannot be read as an exported program: {one_line(error)}") from (
            error
        )
    if not any(parameter.is_floating_point() for parameter in program.parameters()):
        raise UsageError(
            f"{path}: the exported program has no parameters and cannot be retrained; give the "
            "original model"
        )
    return ExportedNetwork(program)
