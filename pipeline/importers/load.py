"""Load the user's model, whatever kind of file it is in.

What enters: a `ModelSource`. What leaves: a `LoadedModel` that has run once at its input size.
Refused: what cannot be read safely, weights without or with the wrong architecture, and models
whose input size is stated nowhere.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from pipeline.config import file_sha256
from pipeline.errors import UsageError, one_line
from pipeline.importers.architectures import EXAMPLES, Architecture
from pipeline.importers.callables import import_path
from pipeline.importers.check import check_forward, num_outputs
from pipeline.importers.detect import FileKind, detect_kind
from pipeline.importers.exported import load_exported
from pipeline.importers.from_onnx import load_onnx, load_torchscript
from pipeline.importers.onnx_in import Interface, import_onnx
from pipeline.importers.preprocessing import InputConfig, input_config
from pipeline.importers.safe_load import load_checkpoint
from pipeline.importers.source import LoadedModel, ModelSource
from pipeline.importers.state_dicts import Weights, arch_hint, fill, unwrap
from pipeline.normalisation import written_normalisation


@dataclass(frozen=True, kw_only=True)
class _Found:
    module: nn.Module
    how: str
    notes: list[str] = field(default_factory=list)
    interface: Interface | None = None
    input_size: tuple[int, int, int] | None = None


def load_network(
    source: ModelSource, first_size: tuple[int, ...] | None
) -> tuple[nn.Module, str, tuple[str, ...]]:
    """The network alone, not run: in eval mode, how it was loaded, and what was done beyond that.

    For inputs of any structure; `source.input_size` is not needed. `first_size`: of the first
    input, without the batch, for files that leave it open. Raises UsageError.
    """
    kind = detect_kind(source.path)
    with import_path(*_code_folders(source)):
        if kind is FileKind.ONNX:
            imported = import_onnx(source.path, first_size)
            found = _Found(
                module=imported.module,
                how=kind.value,
                notes=[*imported.notes, *_unused_arch(source)],
            )
        else:
            found = _find(source, kind)
        notes = [*found.notes, *_convert(found.module, source.path)]
    return found.module, f"{source.path.name}: {found.how}", tuple(notes)


def model_facts(source: ModelSource) -> InputConfig:
    """What the model says of its inputs; it is loaded but not run. Raises UsageError."""
    kind = detect_kind(source.path)
    with import_path(*_code_folders(source)):
        found = _find(source, kind)
    config = _stated(found, source)
    if found.input_size is None:
        return config
    return replace(config, input_size=found.input_size, origin="file's own interface")


def _stated(found: _Found, source: ModelSource) -> InputConfig:
    """What the network's configuration says of its inputs, or the file that `compress` wrote."""
    config = input_config(found.module, source.arch)
    if found.interface is None or config.mean is not None:
        return config
    written = written_normalisation(found.interface.metadata, source.path)
    if written is None:
        return config
    return replace(config, mean=written[0], std=written[1], origin="file's metadata")


def load_model(source: ModelSource) -> LoadedModel:
    """Load, convert and try out the model of `source`.

    Raises UsageError for everything that is wrong with the file, the architecture or the size.
    """
    kind = detect_kind(source.path)
    with import_path(*_code_folders(source)):
        found = _find(source, kind)
        notes = [*found.notes, *_convert(found.module, source.path)]
        config = _stated(found, source)
        input_size = found.input_size or _input_size(source, config, found.interface)
        output = check_forward(found.module, input_size)
    mean, std, origin = config.mean, config.std, config.origin
    if mean is not None and len(mean) != input_size[0]:
        notes.append(f"the {origin} normalises {len(mean)} channels, not {input_size[0]}: not used")
        mean = std = origin = None
    return LoadedModel(
        module=found.module,
        input_size=input_size,
        num_outputs=num_outputs(output),
        mean=mean,
        std=std,
        preprocessing_origin=origin if mean is not None else None,
        sha256=file_sha256(source.path),
        description=f"{source.path.name}: {found.how}",
        warnings=tuple(notes),
        interface=found.interface,
    )


def _code_folders(source: ModelSource) -> list[Path]:
    """Where code that the user named may import from; none if no such code was named."""
    folders = [source.path.parent] if source.trust_pickle else []
    place = (source.arch or "").rpartition(":")[0]
    if place.endswith(".py"):
        folders.append(Path(place).parent)
    named_code = source.trust_pickle or place not in ("", "timm", "torchvision")
    return [*folders, Path.cwd()] if named_code else []


def _find(source: ModelSource, kind: FileKind) -> _Found:
    path = source.path
    if kind in (FileKind.ONNX, FileKind.TORCHSCRIPT):
        load = load_onnx if kind is FileKind.ONNX else load_torchscript
        module, interface, notes = load(source)
        return _Found(
            module=module,
            how=kind.value,
            notes=[*notes, *_unused_arch(source)],
            interface=interface if kind is FileKind.ONNX else None,
            input_size=interface.image_size,
        )
    if kind is FileKind.EXPORTED_PROGRAM:
        return _Found(
            module=load_exported(path, trust_pickle=source.trust_pickle),
            how="exported program",
            notes=[
                "an exported program keeps the mode it was captured in: statistics of norms stay "
                "as they are while it is trained",
                *_unused_arch(source),
            ],
        )
    if kind is FileKind.SAFETENSORS:
        return _from_weights(source, _safetensors(path), [], None)
    loaded = load_checkpoint(path, kind, trust_pickle=source.trust_pickle)
    model, notes = unwrap(loaded, path)
    if isinstance(model, nn.Module):
        return _Found(
            module=model,
            how=f"whole module {type(model).__name__}",
            notes=[*notes, *_unused_arch(source)],
        )
    return _from_weights(source, model, notes, arch_hint(loaded))


def _unused_arch(source: ModelSource) -> list[str]:
    if source.arch is None:
        return []
    return [f"--arch {source.arch} was not used to build it: the file holds the whole network"]


def _safetensors(path: Path) -> Weights:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UsageError(
            f"{path}: is a damaged safetensors file ({one_line(error)}); save or download it again"
        ) from error


def _from_weights(
    source: ModelSource, weights: Weights, notes: list[str], hint: str | None
) -> _Found:
    if source.arch is None:
        said = f"; the checkpoint calls its architecture {hint!r}" if hint else ""
        raise UsageError(
            f"{source.path}: holds a state dict ({len(weights)} tensors) without the network; "
            f"give --arch {EXAMPLES}, as in --arch torchvision:NAME{said}"
        )
    architecture = Architecture(source.arch)
    given: dict[str, object] = {}
    if architecture.library == "timm" and source.input_size and source.input_size[0] != 3:
        given["in_chans"] = source.input_size[0]
    try:
        module, fitted = fill(architecture, weights, **given)
    except UsageError as error:
        raise UsageError(f"{source.path}: {error}") from error
    return _Found(
        module=module,
        how=f"state dict in {source.arch}",
        notes=[*notes, *([fitted] if fitted else [])],
    )


def _convert(module: nn.Module, path: Path) -> list[str]:
    """To float32, eval mode and the CPU, in place; what that changed."""
    kinds = {t.dtype for t in module.parameters() if t.is_floating_point()} - {torch.float32}
    notes = [f"converted {str(kind).removeprefix('torch.')} weights to float32" for kind in kinds]
    module.float().cpu().eval()
    parameters = list(module.parameters())
    if not parameters:
        raise UsageError(f"{path}: the model has no parameters: nothing to prune or train")
    frozen = sum(not parameter.requires_grad for parameter in parameters)
    if frozen:
        notes.append(
            f"{frozen} of {len(parameters)} parameters are frozen in the file (requires_grad=False)"
        )
    return notes


def _input_size(
    source: ModelSource, config: InputConfig, interface: Interface | None
) -> tuple[int, int, int]:
    size = source.input_size or config.input_size
    if size is None and interface is not None and interface.inputs[0].dims is not None:
        port = interface.inputs[0]
        raise UsageError(
            f"{source.path}: input {port.name!r} is {list(port.dims or ())}; the main job takes "
            "images, (N, C, H, W); `compress inspect --input-size SHAPE` shows other networks"
        )
    if size is None:
        raise UsageError(
            f"{source.path}: the model does not say its input size; state it as "
            "channels,height,width: --input-size 3,224,224"
        )
    return size
