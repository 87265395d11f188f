"""ONNX and TorchScript files as models of the main job.

What enters: a `ModelSource`. What leaves: the network, its interface and notes.
Refused: what the importer refuses, files of several inputs, inputs that are no float images, and
networks that fix their batch inside.
"""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from exporters.file_parity import slice_difference
from pipeline.errors import UsageError, one_line
from pipeline.importers.callables import FOREIGN_ERRORS
from pipeline.importers.onnx_in import ImportedOnnx, Interface, import_onnx, import_proto
from pipeline.importers.onnx_in.batch import samples_are_independent
from pipeline.importers.source import ModelSource

_SCRIPT_OPSET = 17
"""Of the ONNX file in between: the newest that torch's TorchScript exporter writes without loss."""
_BATCHES = (1, 3)
_TOLERANCE = 1e-4
_FLOATS = (torch.float32, torch.float16, torch.float64)


def load_onnx(source: ModelSource) -> tuple[fx.GraphModule, Interface, list[str]]:
    """The network in an ONNX file. Raises UsageError."""
    imported = import_onnx(source.path, source.input_size)
    return _for_main_job(imported, source)


def load_torchscript(source: ModelSource) -> tuple[fx.GraphModule, Interface, list[str]]:
    """The network in a TorchScript file, through ONNX; torch's interpreter runs its code.

    Raises UsageError.
    """
    path = source.path
    if source.input_size is None:
        raise UsageError(
            f"{path}: a TorchScript file does not say its input size: --input-size C,H,W"
        )
    try:
        proto = _as_onnx(path, source.input_size)
        imported = import_proto(proto, path.parent, source.input_size)
    except UsageError as error:
        raise type(error)(f"{path}: {error}") from error
    module, interface, notes = _for_main_job(imported, source)
    _require_same(path, module, source.input_size)
    # What the file in between is called and made of says nothing about the user's file.
    return module, replace(interface, metadata={}, doc_string=""), notes


def _as_onnx(path: Path, input_size: tuple[int, int, int]) -> onnx.ModelProto:
    buffer: Any = io.BytesIO()
    try:
        with warnings.catch_warnings(), _native_output_dropped():
            warnings.simplefilter("ignore")
            script = torch.jit.load(path, map_location="cpu").eval()
            torch.onnx.export(
                script,
                (torch.zeros(2, *input_size),),
                buffer,
                dynamo=False,
                opset_version=_SCRIPT_OPSET,
                input_names=["input"],
                dynamic_axes={"input": {0: "batch"}},
                # Norms stay norms, and constants what the file has.
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
            )
    except (*FOREIGN_ERRORS, torch.onnx.errors.OnnxExporterError) as error:
        raise UsageError(f"torch cannot read or translate it ({one_line(error)})") from error
    return onnx.load_model_from_string(buffer.getvalue())


def _require_same(path: Path, module: nn.Module, input_size: tuple[int, ...]) -> None:
    """Neither torch's exporter nor the importer may have changed what the file computes."""
    script = torch.jit.load(path, map_location="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    for batch in _BATCHES:
        images = torch.randn(batch, *input_size, generator=generator)
        with torch.no_grad():
            expected, found = (tree_leaves(net(images)) for net in (script, module))
        pairs = [
            (a.numpy(), b.numpy())
            for a, b in zip(expected, found, strict=False)
            if isinstance(a, torch.Tensor) and a.is_floating_point()
        ]
        if any(a.shape != b.shape or slice_difference(a, b) > _TOLERANCE for a, b in pairs):
            raise UsageError(
                f"{path}: what was read of it gives other values than the script itself at batch "
                f"{batch}, by a fault of the translation to ONNX or of the importer: save the "
                "module itself (torch.save), or a state dict with --arch"
            )


@contextlib.contextmanager
def _native_output_dropped() -> Iterator[None]:
    """torch's C++ prints the whole graph to standard output where it cannot translate one op."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _for_main_job(
    imported: ImportedOnnx, source: ModelSource
) -> tuple[fx.GraphModule, Interface, list[str]]:
    interface, notes, path = imported.interface, list(imported.notes), source.path
    first = interface.inputs[0]
    if len(interface.inputs) > 1:
        names = ", ".join(port.name for port in interface.inputs)
        raise UsageError(
            f"{path}: has {len(interface.inputs)} inputs ({names}): one is supported; "
            "`compress inspect` shows such networks, with an --input-size NAME:SHAPE for each"
        )
    if first.dtype not in _FLOATS:
        kind = str(first.dtype).removeprefix("torch.")
        fix = (
            "convert the file to float32"
            if first.dtype.is_floating_point
            else "export the network without what makes floats of it"
        )
        raise UsageError(
            f"{path}: input {first.name!r} is of type {kind}: float32, float16 and float64 are "
            f"supported; {fix}"
        )
    handed_on = _handed_on(imported)
    if handed_on:
        raise UsageError(
            f"{path}: output {', '.join(handed_on)} is the input as it is: export the network "
            "without it"
        )
    if interface.in_half:
        notes.append(
            "its weights are in half precision, or most are: float32 while it is cut and trained, "
            "all float16 in the exported file (--precision fp32 leaves them wide)"
        )
    elif first.dtype is not torch.float32:
        kind = str(first.dtype).removeprefix("torch.")
        notes.append(
            f"input {first.name!r} is {kind} in the file, and again in the exported one, which "
            "computes in float32"
        )
    batch = interface.fixed_batch
    if batch == 0:
        raise UsageError(f"{path}: its batch is fixed to 0: export it with a free batch, or of 1")
    if batch is not None:
        sizes = source.input_size or interface.image_size or ()
        if not samples_are_independent(imported.module, sizes, batch):
            raise UsageError(
                f"{path}: its batch is fixed to {batch}, also inside the network; export it with a "
                "free batch (dynamic_axes or dynamic_shapes)"
            )
        notes.append(f"its batch is fixed to {batch}: free here, fixed again in the exported file")
    if interface.open_sizes:
        names = ", ".join(interface.open_sizes.values())
        notes.append(f"{names} of {first.name!r} stay free; costs are those of the input size")
    return imported.module, interface, notes


def _handed_on(imported: ImportedOnnx) -> list[str]:
    """Outputs that nothing computes; the exporter does not keep their names apart."""
    results = imported.module.graph.output_node().args[0]
    listed = results if isinstance(results, tuple) else (results,)
    return [
        repr(port.name)
        for port, node in zip(imported.interface.outputs, listed, strict=True)
        if isinstance(node, fx.Node) and node.op == "placeholder"
    ]
