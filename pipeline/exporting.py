"""How the two files of a run, the baseline and the result, are exported: alike but for the cut.

Enters: settings and a loaded model; for a model given as ONNX also what its file promised: names,
types, free sizes, opset and texts. Leaves: an `ExportRequest`, or the baseline's file itself.
Refused: what the exporter refuses. A free height or width that it cannot keep is fixed, and said.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import exporters
from pipeline.config import DEFAULT_OPSET, MAX_OPSET, MIN_OPSET, RunConfig
from pipeline.console import RunConsole
from pipeline.errors import one_line
from pipeline.importers import LoadedModel
from pipeline.importers.onnx_in import Port
from pipeline.importers.onnx_in.interface import larger


def export_request(
    config: RunConfig, loaded: LoadedModel, path: Path, metadata: dict[str, str]
) -> exporters.ExportRequest:
    """How both files are exported, so that they differ in nothing but the cut."""
    interface = loaded.interface
    opset = config.deploy.opset or exported_opset(loaded)
    if interface is None:
        return exporters.ExportRequest(
            example_inputs=(torch.zeros(2, *loaded.input_size),),
            path=path,
            opset=opset,
            metadata=metadata,
        )
    return exporters.ExportRequest(
        example_inputs=(torch.zeros(interface.fixed_batch or 2, *loaded.input_size),),
        path=path,
        input_names=tuple(port.name for port in interface.inputs),
        output_names=tuple(port.name for port in interface.outputs),
        opset=opset,
        dynamic_batch=interface.fixed_batch is None,
        batch_name=interface.batch_name or "batch",
        free_sizes=interface.open_sizes,
        input_dtypes=tuple(_dtype(port) for port in interface.inputs),
        output_dtypes=tuple(_dtype(port) for port in interface.outputs),
        doc_string=interface.doc_string,
        metadata=interface.metadata | metadata,
    )


def _dtype(port: Port) -> str:
    return str(port.dtype).removeprefix("torch.")


def exported_opset(loaded: LoadedModel) -> int:
    """That of a model given as ONNX, or the nearest that can be written; else the default."""
    if loaded.interface is None:
        return DEFAULT_OPSET
    return min(max(loaded.interface.opset, MIN_OPSET), MAX_OPSET)


def counted_shapes(loaded: LoadedModel) -> dict[str, tuple[int, ...]]:
    """The sizes at which a file of this model is counted where it leaves more open than the batch.

    One image of the input size, or as many as the file fixes.
    """
    interface = loaded.interface
    if interface is None or not interface.open_sizes:
        return {}
    return {interface.inputs[0].name: (interface.fixed_batch or 1, *loaded.input_size)}


def at_other_sizes(loaded: LoadedModel, images: Tensor) -> Tensor | None:
    """Random images beside `images` (N, C, H, W), of other sizes; None where none are free."""
    if loaded.interface is None or not loaded.interface.open_sizes:
        return None
    shape = larger(images.shape, loaded.interface.open_sizes)
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(images)))


def export_baseline(
    config: RunConfig, loaded: LoadedModel, path: Path, console: RunConsole
) -> LoadedModel:
    """Write the model as given to `path`; the model, with sizes that cannot stay free now fixed.

    Raises ExportError.
    """
    interface = loaded.interface
    if interface is not None and interface.open_sizes:
        try:
            exporters.export_onnx(loaded.module, export_request(config, loaded, path, {}))
            reason = _differs_elsewhere(config, loaded, path)
        except exporters.ExportError as error:
            reason = one_line(error)
        if reason is None:
            return loaded
        names = ", ".join(interface.open_sizes.values())
        note = f"{names}: cannot stay free, exported as in the input size ({reason})"
        console.warn(note)
        fixed = replace(interface, open_sizes={})
        loaded = replace(loaded, interface=fixed, warnings=(*loaded.warnings, note))
    exporters.export_onnx(loaded.module, export_request(config, loaded, path, {}))
    return loaded


def _differs_elsewhere(config: RunConfig, loaded: LoadedModel, path: Path) -> str | None:
    """Why the file is wrong at other sizes than it was exported at; None if it is right."""
    images = at_other_sizes(loaded, torch.zeros(1, *loaded.input_size))
    assert images is not None, "asked only where sizes are free"
    session = exporters.open_session(path, config.deploy.provider)
    found = exporters.check_parity(loaded.module, session, [images])
    if found.ok:
        return None
    return f"at {list(images.shape)} the file is {found.max_abs_diff:.1e} from the network"
