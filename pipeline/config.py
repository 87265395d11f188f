"""The settings of one run, checked the moment they are made.

Enters: values already of the right type (`config_file` makes them from text and TOML).
Leaves: one frozen `RunConfig`, which the stages read and nothing changes.
Refused, with `UsageError`: values out of range, and options that have no effect beside the others.
"""

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.target import LatencyTarget, Target

__all__ = [
    "ConstraintConfig",
    "DataConfig",
    "DeployConfig",
    "ModelConfig",
    "RecoveryConfig",
    "RunConfig",
    "Target",
    "TargetConfig",
    "file_sha256",
]

PROVIDERS = ("cpu", "cuda", "tensorrt", "openvino")
PRECISIONS = ("fp32", "fp16", "int8")
RECIPES = ("default", "gbn-2019")
LOGGERS = ("tensorboard", "csv")
AUGMENTATIONS = ("auto", "standard", "none")
MIN_OPSET = 18
MAX_OPSET = 23
"""The newest that torch's exporter writes."""
DEFAULT_OPSET = 20

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)


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
        _require(not self.path.is_dir(), f"MODEL: '{self.path}' is a directory, not a model file")
        _require(self.path.exists(), f"MODEL: '{self.path}' does not exist")
        if self.arch is not None:
            source, colon, name = self.arch.rpartition(":")
            _require(
                bool(source and colon and name),
                f"--arch: cannot read {self.arch!r}: give timm:NAME, torchvision:NAME,"
                " FILE.py:CALLABLE or package.module:CALLABLE",
            )
        if self.input_size is not None:
            size = ",".join(str(n) for n in self.input_size)
            good = len(self.input_size) == 3 and all(n >= 1 for n in self.input_size)
            _require(good, f"--input-size: {size} is not C,H,W: give three whole numbers above 0")


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
        _require(
            any(t is not None for t in (self.flops, self.params, self.latency)),
            "no target: give --target-flops, --target-params or --target-latency, e.g. "
            "--target-flops 0.6",
        )
        drop = self.max_accuracy_drop
        _require(drop is None or drop >= 0, f"--max-accuracy-drop: {drop} is outside 0 to 100")


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
    workers: int = 0
    """Threads that decode images; 0 takes two."""
    augment: str = "auto"
    """Of training images: "standard", "none", or "auto", which is standard for folders alone."""
    task: str | None = None
    """What returns loss and metric, FILE.py:FACTORY or package.module:FACTORY; None: classes."""

    def __post_init__(self) -> None:
        for option, values in (("--mean", self.mean), ("--std", self.std)):
            finite = values is None or (len(values) > 0 and all(math.isfinite(v) for v in values))
            _require(finite, f"{option}: give one finite number a channel, e.g. 0.485,0.456,0.406")
            _require(
                values is None or self.source is not None,
                f"{option} has no effect without --data: give --data, or leave {option} out",
            )
        _require(
            self.augment in AUGMENTATIONS,
            f"--augment: {self.augment!r} is not one of {', '.join(AUGMENTATIONS)}",
        )
        _require(
            self.source is not None or self.augment == "auto",
            "--augment has no effect without --data: give --data, or leave --augment out",
        )
        _require(
            self.source is not None or self.task is None,
            "--task has no effect without --data: give --data, or leave --task out",
        )
        _require(
            self.std is None or min(self.std) > 0, "--std: every value must be above 0: it divides"
        )
        _require(
            (self.mean is None) == (self.std is None),
            "--mean and --std go together: give both or neither",
        )
        if self.mean is not None and self.std is not None:
            counts = f"{len(self.mean)} and {len(self.std)}"
            _require(
                len(self.mean) == len(self.std),
                f"--mean and --std have {counts} values: give one a channel in both",
            )
        _require(self.batch_size >= 1, f"--batch-size: {self.batch_size} is below 1")
        _require(self.workers >= 0, f"--workers: {self.workers} is below 0")


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

    def __post_init__(self) -> None:
        _require(self.epochs >= 0, f"--epochs: {self.epochs} is below 0")
        _require(
            self.recipe in RECIPES,
            f"--recipe: {self.recipe!r} is not one of {', '.join(RECIPES)}",
        )
        good_lr = self.lr is None or (math.isfinite(self.lr) and self.lr > 0)
        _require(good_lr, f"--lr: {self.lr} is not a finite number above 0")
        _require(0 <= self.seed < 2**32, f"--seed: {self.seed} is outside 0 to 4294967295")


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
        _require(
            multiple == "auto" or (isinstance(multiple, int) and multiple >= 1),
            f"--channel-multiple: {multiple!r} is neither auto nor a whole number above 0",
        )
        _require(all(self.freeze), "--freeze: an empty pattern matches no module: name one")
        _require(self.min_channels >= 1, f"--min-channels: {self.min_channels} is below 1")


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
    latency_batch: int = 1
    """Batch size at which latency is measured."""

    def __post_init__(self) -> None:
        _require(
            self.provider in PROVIDERS,
            f"--provider: {self.provider!r} is not one of {', '.join(PROVIDERS)}",
        )
        _require(
            self.precision is None or self.precision in PRECISIONS,
            f"--precision: {self.precision!r} is not one of {', '.join(PRECISIONS)}",
        )
        _require(
            self.opset is None or self.opset >= MIN_OPSET,
            f"--opset: {self.opset} is below {MIN_OPSET}, the oldest that torch's exporter writes",
        )
        _require(self.latency_batch >= 1, f"latency batch {self.latency_batch} is below 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that one run is asked to do."""

    model: ModelConfig
    target: TargetConfig
    data: DataConfig = field(default_factory=DataConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    constraints: ConstraintConfig = field(default_factory=ConstraintConfig)
    deploy: DeployConfig = field(default_factory=DeployConfig)
    out: Path
    """Directory that receives the artefacts."""
    resume: bool = False
    """Whether to go on from the finished stages in `out`."""
    device: str = "auto"
    """Where the network is trained: auto, cpu, mps, cuda or cuda:N."""
    logger: str | None = None
    """"tensorboard" or "csv": also write curves of loss, learning rate and check-ups."""
    dry_run: bool = False
    """Whether to stop after the plan and write nothing."""
    verbosity: int = 0
    """-1 quiet, 0 normal, 1 verbose."""
    json: bool = False
    """Whether standard output holds the report as JSON and nothing else."""

    def __post_init__(self) -> None:
        without_data = self.data.source is None
        _require(
            self.recovery.distill or not without_data,
            "--no-distill learns from labels alone: give --data with labels, or leave it out",
        )
        _require(
            not (without_data and self.target.max_accuracy_drop is not None),
            "--max-accuracy-drop cannot be checked without --data: give --data with labels",
        )
        _require(
            not (without_data and self.deploy.precision == "int8"),
            "--precision int8 needs real images to calibrate: give --data, or --precision fp16",
        )
        _require(
            not (without_data and self.recovery.insert_bn),
            "--insert-bn needs data to take statistics from: give --data, or leave it out",
        )
        _require(
            not (without_data and self.recovery.recipe != RECIPES[0]),
            f"--recipe {self.recovery.recipe} scores channels by the loss: give --data",
        )
        drop = self.target.max_accuracy_drop
        _require(
            drop is None or drop <= 100 or self.data.task is not None,
            f"--max-accuracy-drop: {drop} is outside 0 to 100 points: 0.5 allows 93.0 % to 92.5 %",
        )
        _require(
            _DEVICE.fullmatch(self.device) is not None,
            f"--device: {self.device!r} is not auto, cpu, mps, cuda or cuda:N",
        )
        _require(
            self.logger is None or self.logger in LOGGERS,
            f"--logger: {self.logger!r} is not one of {', '.join(LOGGERS)}",
        )
        _require(self.verbosity in (-1, 0, 1), f"verbosity {self.verbosity} is not -1, 0 or 1")

    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that decides the result, to recognise another run's directory.

        The model counts by its content, so moving it keeps the fingerprint; so does code given as
        a file, FILE.py:NAME, besides its name. Where and how the run is done does not count: `out`,
        `resume`, `dry_run`, `verbosity`, `json`, `logger`, `device` and the number of decoding
        threads, so that a run may be resumed on another machine. Data counts by its absolute path:
        hashing it could take hours.
        """
        decides: dict[str, Any] = {
            name: dataclasses.asdict(getattr(self, name))
            for name in ("target", "data", "recovery", "constraints", "deploy", "model")
        }
        del decides["data"]["workers"]
        decides["model"]["path"] = file_sha256(self.model.path)
        source = self.data.source
        for what, given in (("arch", self.model.arch), ("data", source), ("task", self.data.task)):
            code = Path((given or "").rpartition(":")[0])
            if code.suffix == ".py" and code.is_file():
                decides[f"{what}_code_sha256"] = file_sha256(code)
        if source is not None and Path(source).exists():
            decides["data"]["source"] = str(Path(source).resolve())
        canonical = json.dumps(decides, sort_keys=True, default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
