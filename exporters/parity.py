"""Does the ONNX file compute what the torch network computes?

Enters: the network, a session and batches. Leaves: a `Parity`. Refused: a network in training
mode, outputs of another number or shape, no batches.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from exporters.errors import ExportError
from exporters.file_parity import Parity, relative_difference, require_same_shapes
from exporters.session import Array, Session

HALF_ROUNDING = 2.0**-11
"""The most that rounding to half precision moves a value, of the value."""


def check_parity(
    reference: Callable[[Tensor], object],
    session: Session,
    batches: Iterable[Tensor],
    tolerance: float = 1e-4,
) -> Parity:
    """Run both on each (N, C, H, W) batch and compare all outputs in float64.

    `reference` gives a tensor or a tuple, list or dict of tensors; a module is fed on its own
    device, with values rounded to the type that the file takes. Outputs in half precision are
    allowed its rounding on top of `tolerance`. Raises ExportError when the two cannot be compared.
    """
    if isinstance(reference, nn.Module) and reference.training:
        raise ExportError("the reference network is in training mode: call its eval() first")
    if session.gives_half:
        tolerance += HALF_ROUNDING
    worst, scale, count = 0.0, 0.0, 0
    for given in batches:
        taken = session.as_taken(given.detach().cpu().numpy())
        batch = given if taken.dtype == np.float32 else torch.from_numpy(taken).to(given.dtype)
        with torch.inference_mode():
            expected = [_to_numpy(t) for t in _tensors(reference(_beside(reference, batch)))]
        actual = session.run_batch(taken)
        require_same_shapes(expected, actual, session)
        for ours, theirs in zip(expected, actual, strict=True):
            difference, output_scale = relative_difference(ours, theirs)
            worst, scale = max(worst, difference), max(scale, output_scale)
        count += 1
    if count == 0:
        raise ExportError("parity cannot be checked: no batches were given")
    return Parity(max_abs_diff=worst, tolerance=tolerance, output_scale=scale, batches=count)


def _beside(reference: object, batch: Tensor) -> Tensor:
    if not isinstance(reference, nn.Module):
        return batch
    parameter = next(reference.parameters(), None)
    return batch if parameter is None else batch.to(parameter.device)


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for item in output:
            yield from _tensors(item)
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
    else:
        raise ExportError(f"the reference network gives a {type(output).__name__}, not tensors")


def _to_numpy(tensor: Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float64).numpy()
