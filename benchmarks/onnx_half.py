"""Networks in half precision, as onnxruntime's converter makes them, in and out again.

No command: `benchmarks.onnx_in` uses it. What enters: a network of `benchmarks.onnx_torchvision`.
What leaves: a row of figures. The network is imported, exported and turned back as the main job
does it before any cut.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16

import exporters
from benchmarks.onnx_torchvision import LARGEST_FILE, Way, exported
from exporters.capture import quiet
from exporters.session import Session
from pipeline.importers.onnx_in import import_onnx

HALVED = ("convnext_tiny", "mobilenet_v3_small", "resnet18", "resnet50")
_OPSET = 17
Figures = list[str]


def half_rows(scratch: Path) -> list[Figures]:
    """Each network with ports in half precision, and with ports in float32."""
    return [_row(name, wide, scratch) for name in HALVED for wide in (False, True)]


def _row(name: str, wide_ports: bool, scratch: Path) -> Figures:
    head = [name, "float32" if wide_ports else "float16"]
    source = exported(Way(name=name, dynamo=False, opset=_OPSET))
    if isinstance(source, str):
        return [*head, "", "", "", "", f"torch does not export it: {source}"]
    path, back = scratch / "half.onnx", scratch / "back.onnx"
    with quiet():
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=wide_ports), path)
    imported = import_onnx(path)
    kinds = [
        tuple(str(port.dtype).removeprefix("torch.") for port in ports)
        for ports in (imported.interface.inputs, imported.interface.outputs)
    ]
    size = imported.interface.image_size or ()
    batch = torch.randn(3, *size, generator=torch.Generator().manual_seed(1))
    request = exporters.ExportRequest(
        example_inputs=(batch[:2],), path=back, input_dtypes=kinds[0], output_dtypes=kinds[1]
    )
    exporters.export_onnx(imported.module, request)
    exporters.to_fp16(back, back)
    original, again = exporters.open_session(path, threads=1), exporters.open_session(back)
    with torch.inference_mode():
        network = imported.module(batch).double().numpy()
    expected = _outputs(original, batch)
    differences = [_relative(found, expected) for found in (network, _outputs(again, batch))]
    ratio = back.stat().st_size / path.stat().st_size
    kept = onnx.load(back).graph.initializer
    wide = sum(t.data_type == onnx.TensorProto.FLOAT for t in kept)
    ok = max(differences) <= exporters.FP16_TOLERANCE and ratio <= LARGEST_FILE
    numbers = [f"{differences[0]:.1e}", f"{differences[1]:.1e}", f"{ratio:.3f}", str(wide)]
    return [*head, *numbers, "yes" if ok else "**no**"]


def _outputs(session: Session, batch: torch.Tensor) -> np.ndarray:
    return session.run_batch(session.as_taken(batch.numpy()))[0].astype(np.float64)


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())
