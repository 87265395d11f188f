"""The sections of a run's settings, checked the moment they are made.

Enters: values already of the right type. Leaves: frozen sections of a `RunConfig`.
Refused, with `UsageError`: values out of range.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.atomic import require_place
from pipeline.errors import UsageError
from pipeline.target import LatencyTarget, Target

PROVIDERS = ("cpu", "cuda", "tensorrt", "openvino")
PRECISIONS = ("fp32", "fp16", "int8")
RECIPES = ("default", "gbn-2019")
LOGGERS = ("tensorboard", "csv")
AUGMENTATIONS = ("auto", "standard", "flip", "none")
MAX_EVAL_IMAGES = 512
PLOT_SUFFIXES = (".svg", ".png", ".pdf")
MIN_OPSET = 18
DEFAULT_OPSET = 20
NO_SUCH_DATA = (
    "--data {}: no such folder or file; give a folder with train/ and val/, a .npz file, tar "
    "shards, or package.module:FACTORY"
)


def require(holds: bool, message: str) -> None:
    """Raise UsageError with this message unless it holds."""
    if not holds:
        raise UsageError(message)


def require_file(path: Path, what: str, kind: str) -> None:
    """Raise UsageError unless `path` can be read more than once, as `kind` of file."""
    require(not path.is_dir(), f"{what}: '{path}' is a directory, not {kind}")
    require(path.exists(), f"{what}: '{path}' does not exist")
    require(path.is_file(), f"{what}: '{path}' is a pipe or device: write it to a file first")


def require_data_there(source: str | None) -> None:
    """Raise UsageError for a mistyped folder or file, before anything heavy is imported.

    What may be a factory or a pattern is looked up later.
    """
    named = source or ""
    there = ":" in named or named.endswith(".tar") or Path(named).exists()
    require(there, NO_SUCH_DATA.format(named))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Where the trained model comes from."""

    path: Path
    """The file given as MODEL."""
    arch: str | None = None
    """What builds the network for a state dict: timm:NAME, torchvision:NAME, FILE.py:CALLABLE or
    package.module:CALLABLE."""
    input_size: tuple[int, ...] | None = None
    """(C, H, W) of one input; None takes the model's own."""
    trust_pickle: bool = False
    """Whether code inside a pickled module may run."""

    def __post_init__(self) -> None:
        require_file(self.path, "MODEL", "a model file")
        if self.arch is not None:
            source, colon, name = self.arch.rpartition(":")
            require(
                bool(source and colon and name),
                f"--arch: cannot read {self.arch!r}: give timm:NAME, torchvision:NAME,"
                " FILE.py:CALLABLE or package.module:CALLABLE",
            )
        if self.input_size is not None:
            size = ",".join(str(n) for n in self.input_size)
            good = len(self.input_size) == 3 and all(n >= 1 for n in self.input_size)
            require(good, f"--input-size: {size} is not C,H,W: give three whole numbers above 0")


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """What must hold at the end; at least one of the first three is needed."""

    flops: Target | None = None
    """MACs on the exported graph at batch 1."""
    params: Target | None = None
    """Parameters of the exported graph."""
    latency: LatencyTarget | None = None
    """Median time of the exported graph on the run's provider."""
    max_accuracy_drop: float | None = None
    """Largest loss of accuracy, in points (0.5 = from 93.0 % to 92.5 %), or in the units of the
    task's own metric."""

    def __post_init__(self) -> None:
        require(
            any(t is not None for t in (self.flops, self.params, self.latency)),
            "no target: give --target-flops, --target-params or --target-latency, e.g. "
            "--target-flops 0.6",
        )
        drop = self.max_accuracy_drop
        require(drop is None or drop >= 0, f"--max-accuracy-drop: {drop} is outside 0 to 100")

    def asked(self) -> str:
        """What is to stay and what is to go, since tools disagree on which one a target means."""
        counts = ((self.flops, "FLOPs"), (self.params, "parameters"))
        asked = [target.asked(unit) for target, unit in counts if target is not None]
        if self.latency is not None:
            asked.append(self.latency.asked())
        return ", ".join(asked)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The user's data; without a source the run is data-free: it makes its own images."""

    source: str | None = None
    """A folder of images, an .npz file, FILE.py:FACTORY or package.module:FACTORY."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean that is subtracted, on the 0 to 1 scale."""
    std: tuple[float, ...] | None = None
    """Per-channel standard deviation that is divided by, on the 0 to 1 scale."""
    batch_size: int = 128
    """Images in a batch, in training and validation."""
    workers: int = 2
    """Threads that decode images; 0 is one."""
    augment: str = "auto"
    """Of training images: "standard", "flip", "none", or "auto": by the recipe; arrays stay."""
    task: str | None = None
    """What returns loss and metric, FILE.py:FACTORY or package.module:FACTORY; None: classes."""

    def __post_init__(self) -> None:
        for option, values in (("--mean", self.mean), ("--std", self.std)):
            finite = values is None or (len(values) > 0 and all(math.isfinite(v) for v in values))
            require(finite, f"{option}: give one finite number a channel, e.g. 0.485,0.456,0.406")
            require(
                values is None or self.source is not None,
                f"{option} has no effect without --data: give --data, or leave {option} out",
            )
        require(
            self.augment in AUGMENTATIONS,
            f"--augment: {self.augment!r} is not one of {', '.join(AUGMENTATIONS)}",
        )
        require(
            self.source is not None or self.augment == "auto",
            "--augment has no effect without --data: give --data, or leave --augment out",
        )
        require(
            self.source is not None or self.task is None,
            "--task has no effect without --data: give --data, or leave --task out",
        )
        require(
            self.std is None or min(self.std) > 0, "--std: every value must be above 0: it divides"
        )
        require(
            (self.mean is None) == (self.std is None),
            "--mean and --std go together: give both or neither",
        )
        if self.mean is not None and self.std is not None:
            counts = f"{len(self.mean)} and {len(self.std)}"
            require(
                len(self.mean) == len(self.std),
                f"--mean and --std have {counts} values: give one a channel in both",
            )
        require(self.batch_size >= 1, f"--batch-size: {self.batch_size} is below 1")
        require(self.workers >= 0, f"--workers: {self.workers} is below 0")


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig:
    """How lost accuracy is won back."""

    epochs: int = 0
    """The whole training budget, in passes over the training set; without data, over the images
    that the run makes."""
    recipe: str = RECIPES[0]
    """"default", or "gbn-2019": the method as it was published."""
    lr: float | None = None
    """Peak learning rate; None takes the recipe's."""
    distill: bool = True
    """Whether the unpruned network teaches the pruned one."""
    seed: int = 0
    """Seed of every random choice."""
    insert_bn: bool | None = None
    """Whether convolutions of an ONNX file get batch norms while training; None: if data is there
    and a norm may have been folded into them."""
    accumulate: int = 1
    """Parts of a batch that are computed one after another; each step still sees the whole."""

    def __post_init__(self) -> None:
        require(self.epochs >= 0, f"--epochs: {self.epochs} is below 0")
        require(
            self.recipe in RECIPES,
            f"--recipe: {self.recipe!r} is not one of {', '.join(RECIPES)}",
        )
        good_lr = self.lr is None or (math.isfinite(self.lr) and self.lr > 0)
        require(good_lr, f"--lr: {self.lr} is not a finite number above 0")
        require(self.accumulate >= 1, f"--accumulate: {self.accumulate} is below 1")
        require(0 <= self.seed < 2**32, f"--seed: {self.seed} is outside 0 to 4294967295")


@dataclass(frozen=True, kw_only=True)
class ConstraintConfig:
    """Which channels may go, and in what steps."""

    channel_multiple: int | str = "auto"
    """Surviving widths are multiples of this; "auto" takes what suits the provider."""
    freeze: tuple[str, ...] = ()
    """Patterns of module names that keep all channels."""
    min_channels: int = 1
    """Fewest channels that a layer keeps."""
    prune_norms: bool = False
    """Norms over channels may lose some: then they normalise over what is left."""

    def __post_init__(self) -> None:
        multiple = self.channel_multiple
        require(
            multiple == "auto" or (isinstance(multiple, int) and multiple >= 1),
            f"--channel-multiple: {multiple!r} is neither auto nor a whole number above 0",
        )
        require(all(self.freeze), "--freeze: an empty pattern matches no module: name one")
        require(self.min_channels >= 1, f"--min-channels: {self.min_channels} is below 1")


@dataclass(frozen=True, kw_only=True)
class DeployConfig:
    """The runtime that the exported file is for."""

    provider: str = "cpu"
    """The onnxruntime execution provider that must run the graph."""
    precision: str | None = None
    """Of weights and computation; inputs and outputs keep their types. None: as the file has it
    that was given, so fp16 for an ONNX file in half precision, else fp32."""
    ort: bool = False
    """Whether model.ort, for onnxruntime's mobile builds, is written beside model.onnx."""
    opset: int | None = None
    """Version of ONNX's operator set; None takes that of a model given as ONNX, where it can be
    written, else the default."""

    def __post_init__(self) -> None:
        require(
            self.provider in PROVIDERS,
            f"--provider: {self.provider!r} is not one of {', '.join(PROVIDERS)}",
        )
        require(
            self.precision is None or self.precision in PRECISIONS,
            f"--precision: {self.precision!r} is not one of {', '.join(PRECISIONS)}",
        )
        require(
            self.opset is None or self.opset >= MIN_OPSET,
            f"--opset: {self.opset} is below {MIN_OPSET}, the oldest that torch's exporter writes",
        )


@dataclass(frozen=True, kw_only=True)
class InspectData:
    """Images that `compress inspect` scores and judges by; where its picture goes."""

    source: str
    """As of --data."""
    mean: tuple[float, ...] | None = None
    """Subtracted, one a channel."""
    std: tuple[float, ...] | None = None
    """Divided by, one a channel."""
    max_eval_images: int = MAX_EVAL_IMAGES
    """Validation images that each cut is judged by."""
    plot: Path | None = None
    """A picture of it all: .svg, .png or .pdf."""

    def __post_init__(self) -> None:
        require(self.max_eval_images > 0, f"--max-eval-images: {self.max_eval_images} is below 1")
        if self.plot is not None:
            kinds = ", ".join(PLOT_SUFFIXES)
            require(
                self.plot.suffix.lower() in PLOT_SUFFIXES,
                f"--plot: '{self.plot}' must end in {kinds}",
            )
            require_place(self.plot, "--plot")
