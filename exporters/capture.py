"""Capture a torch module as an exported program.

Enters: a module and example inputs. Leaves: a `torch.export.ExportedProgram` of its inference
mode, and the module as it was. Refused: a module that fixes its batch size when a dynamic batch
is asked, and a module torch cannot capture.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from exporters.errors import ExportError, one_line
from exporters.files import write_atomically

# What torch's capture raises for a network it cannot follow; it has no common base of its own.
TORCH_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's and onnxscript's warnings, log lines and prints off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def inference_mode_of(model: nn.Module) -> Iterator[None]:
    """Put every submodule in eval mode; give each its own mode back, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def capture(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    dynamic_batch: bool = True,
    free_sizes: tuple[int, ...] = (),
) -> torch.export.ExportedProgram:
    """The module's inference graph; dimension 0 of every input is one free batch dimension.

    `free_sizes`: dimensions of the first input that are free as well.

    `example_inputs` are (N, ...) tensors on the module's device. torch treats a size of 1 as a
    constant, so a batch of 1 is repeated to 2 when a dynamic batch is asked.
    Raises ExportError, naming the batch where the module fixes it.
    """
    if not example_inputs:
        raise ExportError("cannot capture the model: no example inputs were given")
    if any(x.ndim == 0 for x in example_inputs) and dynamic_batch:
        raise ExportError("an example input is a scalar, so it has no batch: use (N, ...) tensors")
    # Copies: a tensor given twice would be captured as one input read twice.
    example_inputs = tuple(x.detach().clone() for x in example_inputs)
    if dynamic_batch:
        example_inputs = tuple(_at_least_two(x) for x in example_inputs)
    with inference_mode_of(model), quiet():
        try:
            shapes = None
            if dynamic_batch or free_sizes:
                shapes = _dynamic_shapes(model, example_inputs, dynamic_batch, free_sizes)
            return torch.export.export(model, example_inputs, dynamic_shapes=shapes)
        except TORCH_ERRORS as error:
            raise _refusal(error, example_inputs, free_sizes) from error


def _at_least_two(batch: Tensor) -> Tensor:
    return batch.repeat(2, *[1] * (batch.ndim - 1)) if batch.shape[0] == 1 else batch


def _dynamic_shapes(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    dynamic_batch: bool,
    free_sizes: tuple[int, ...],
) -> object:
    # The collection matches tensors to arguments itself, so a forward(*inputs) works too.
    batch = {0: torch.export.Dim("batch")} if dynamic_batch else {}
    # Unlike a named Dim, these may be bound to be even, or large enough, by what the network does.
    sizes = dict.fromkeys(free_sizes, torch.export.Dim.DYNAMIC)
    shapes = torch.export.ShapesCollection()
    for position, tensor in enumerate(example_inputs):
        free = batch | (sizes if position == 0 else {})
        if free:
            shapes[tensor] = free
    return shapes.dynamic_shapes(model, example_inputs)


def _refusal(
    error: BaseException, example_inputs: tuple[Tensor, ...], free_sizes: tuple[int, ...]
) -> ExportError:
    sizes = ", ".join(str(tuple(x.shape)) for x in example_inputs)
    text = str(error)
    if free_sizes:
        return ExportError(
            f"the model cannot be captured with free sizes in dimensions {list(free_sizes)} "
            f"(example inputs {sizes}): {type(error).__name__}: {one_line(text)}"
        )
    if "Constraints violated" in text or "specializ" in text:
        return ExportError(
            f"the model fixes its batch size, so a dynamic batch cannot be exported (example "
            f"inputs {sizes}): in its forward, take the batch from x.shape[0] or flatten(1) in "
            f"place of a written number, or ask for a fixed batch ({one_line(text)})"
        )
    return ExportError(
        f"torch.export cannot capture the model (example inputs {sizes}): "
        f"{type(error).__name__}: {one_line(text)}"
    )


def export_program(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    path: Path,
    free_sizes: tuple[int, ...] = (),
) -> Path:
    """Save the module's inference graph with a dynamic batch as a `.pt2` file.

    `torch.export.load(path).module()` runs it with torch alone, without the original class.
    Raises ExportError as `capture` does.
    """
    program = capture(model, example_inputs, free_sizes=free_sizes)
    with quiet():
        write_atomically(path, lambda file: torch.export.save(program, file))
    return path
