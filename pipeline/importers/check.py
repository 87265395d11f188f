"""Run a network once, so that a wrong input size shows before any work is done.

What enters: a module and (C, H, W). What leaves: its output.
Refused: an input size that its forward pass does not take.
"""

import torch
from torch import nn

from pipeline.errors import UsageError, one_line
from pipeline.importers.callables import FOREIGN_ERRORS

# Two, so that a batch size fixed in the network shows as well.
CHECK_BATCH = 2


def check_forward(module: nn.Module, input_size: tuple[int, int, int]) -> object:
    """The output of `module`, in eval mode, for zeros of shape (2, C, H, W).

    A classifier gives a tensor (N, classes); other structures are returned as they are.
    Raises UsageError, with the cause in one line, if the forward pass fails.
    """
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return module(torch.zeros(CHECK_BATCH, *input_size))
    except FOREIGN_ERRORS as error:
        size = ",".join(str(n) for n in input_size)
        raise UsageError(
            f"the model does not run on input size {size} at batch {CHECK_BATCH} "
            f"({one_line(error)}); state the right one: --input-size C,H,W"
        ) from error
    finally:
        if was_training:
            module.train()


def num_outputs(output: object) -> int | None:
    """The width of a classifier's output (N, width); None for any other structure."""
    if isinstance(output, torch.Tensor) and output.dim() == 2:
        return output.shape[1]
    return None
