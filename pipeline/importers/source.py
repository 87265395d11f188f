"""What the importers take and what they give: a `ModelSource` in, a `LoadedModel` out."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pipeline.config import ModelConfig
from pipeline.errors import UsageError
from pipeline.importers.onnx_in.interface import Interface


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from, as the user stated it.

    path: the model file.
    arch: `timm:NAME`, `torchvision:NAME`, `FILE.py:CALLABLE` or `package.module:CALLABLE`.
    input_size: (C, H, W); None takes it from the model's own configuration.
    trust_pickle: run whatever code the file asks for.
    """

    path: Path
    arch: str | None = None
    input_size: tuple[int, int, int] | None = None
    trust_pickle: bool = False

    def __post_init__(self) -> None:
        size = self.input_size
        if size is not None and (len(size) != 3 or any(n < 1 for n in size)):
            given = ",".join(str(n) for n in size)
            raise UsageError(
                f"--input-size {given}: needs three positive whole numbers, "
                "channels,height,width, as in 3,224,224"
            )


def model_source(config: ModelConfig) -> ModelSource:
    """The model part of a run's settings, as the importers take it."""
    size = config.input_size
    return ModelSource(
        path=config.path,
        arch=config.arch,
        input_size=None if size is None else (size[0], size[1], size[2]),
        trust_pickle=config.trust_pickle,
    )


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A trained network, ready to be traced.

    module: in eval mode, on the CPU, in float32; `requires_grad` is as the file has it.
    input_size: (C, H, W); a forward pass at this size has been run.
    num_outputs: the width of the output when that is one tensor (N, width), else None.
    mean, std: per channel, for inputs scaled to 0..1; None where the model does not state them.
    preprocessing_origin: what stated them, None where nothing did.
    sha256: of the model file.
    description: what was loaded and how, in one line.
    warnings: everything that was done beyond the plain reading of the file.
    interface: of an ONNX file: its names, sizes, opset and texts, which the export gives back.
    """

    module: nn.Module
    input_size: tuple[int, int, int]
    num_outputs: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    preprocessing_origin: str | None
    sha256: str
    description: str
    warnings: tuple[str, ...]
    interface: Interface | None = None
