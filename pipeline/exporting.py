"""How the two files of a run, the baseline and the result, are exported: alike but for the cut.

Enters: settings and a loaded model; for a model given as ONNX also what its file promised: names,
types, free sizes, opset and texts. Leaves: an `ExportRequest`, or the baseline's file itself.
Refused: what the exporter refuses. A free height or width that it cannot keep is fixed, and said.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exporters
from pipeline.config import DEFAULT_OPSET, MIN_OPSET, RunConfig
from pipeline.console import RunConsole
from pipeline.errors import one_line
from pipeline.given_onnx import differs_from_given
from pipeline.importers import LoadedModel
from pipeline.importers.onnx_in import Port
from pipeline.importers.onnx_in.interface import larger


def export_request(
    config: RunConfig, loaded: LoadedModel, path: Path, metadata: dict[str, str]
) -> exporters.ExportRequest:
    """How both files are exported, so that they differ in nothing but the cut."""
    interface = loaded.interface
    opset = config.deploy.opset or (interface.opset if interface else DEFAULT_OPSET)
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
    """Write the model as given to `path`; the model, with what could not be kept of its interface.

    Sizes that cannot stay free are now fixed, an opset that cannot be written is now another.
    Raises ExportError.
    """
    if loaded.interface is not None and config.deploy.opset is None:
        own = loaded.interface.opset
        nearest = min(max(own, MIN_OPSET), exporters.newest_opset())
        loaded = loaded if nearest == own else _at_opset(loaded, nearest, console)
    interface = loaded.interface
    if interface is not None and interface.open_sizes:
        try:
            loaded = _written(config, loaded, path, console)
            reason = _differs_from_network(config, loaded, path)
            reason = reason or differs_from_given(config.model.path, loaded, path)
        except exporters.ExportError as error:
            reason = one_line(error)
        if reason is None:
            return loaded
        names = ", ".join(interface.open_sizes.values())
        note = f"{names}: cannot stay free, exported as in the input size ({reason})"
        console.warn(note)
        loaded = _with_interface(loaded, note, open_sizes={})
    return _written(config, loaded, path, console)


def _written(
    config: RunConfig, loaded: LoadedModel, path: Path, console: RunConsole
) -> LoadedModel:
    """Export; where the file's own opset cannot be had, in the one that the exporter gives."""
    try:
        exporters.export_onnx(loaded.module, export_request(config, loaded, path, {}))
    except exporters.OpsetError as error:
        if loaded.interface is None or config.deploy.opset is not None:
            raise
        loaded = _at_opset(loaded, error.possible, console)
        exporters.export_onnx(loaded.module, export_request(config, loaded, path, {}))
    return loaded


def _at_opset(loaded: LoadedModel, opset: int, console: RunConsole) -> LoadedModel:
    assert loaded.interface is not None, "only a file has an opset of its own"
    own = loaded.interface.opset
    note = f"the file is of opset {own}, which cannot be written: exported as {opset}"
    console.warn(note)
    return _with_interface(loaded, note, opset=opset)


def _with_interface(loaded: LoadedModel, note: str, **changed: Any) -> LoadedModel:
    assert loaded.interface is not None, "only a file has an interface"
    interface = replace(loaded.interface, **changed)
    return replace(loaded, interface=interface, warnings=(*loaded.warnings, note))


def _differs_from_network(config: RunConfig, loaded: LoadedModel, path: Path) -> str | None:
    """Why the file is wrong at other sizes than it was exported at; None if it is right."""
    images = at_other_sizes(loaded, torch.zeros(1, *loaded.input_size))
    assert images is not None, "asked only where sizes are free"
    session = exporters.open_session(path, config.deploy.provider)
    found = exporters.check_parity(loaded.module, session, [images])
    if found.ok:
        return None
    return f"at {list(images.shape)} the file is {found.max_abs_diff:.1e} from the network"
