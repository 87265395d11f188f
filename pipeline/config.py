"""The settings of one run, checked the moment they are made.

Enters: values already of the right type (`config_file` makes them from text and TOML).
Leaves: one frozen `RunConfig`, which the stages read and nothing changes.
Refused, with `UsageError`: values out of range, and options that have no effect beside the others.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config_sections import (
    AUGMENTATIONS,
    DEFAULT_OPSET,
    LOGGERS,
    MIN_OPSET,
    PRECISIONS,
    PROVIDERS,
    RECIPES,
    ConstraintConfig,
    DataConfig,
    DeployConfig,
    InspectData,
    ModelConfig,
    RecoveryConfig,
    TargetConfig,
    require,
)
from pipeline.target import Target

__all__ = [
    "AUGMENTATIONS",
    "DEFAULT_OPSET",
    "LOGGERS",
    "MIN_OPSET",
    "PRECISIONS",
    "PROVIDERS",
    "RECIPES",
    "ConstraintConfig",
    "DataConfig",
    "DeployConfig",
    "InspectConfig",
    "InspectData",
    "ModelConfig",
    "RecoveryConfig",
    "RunConfig",
    "SettingsFile",
    "Target",
    "TargetConfig",
    "file_sha256",
]


_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


@dataclass(frozen=True, kw_only=True)
class SettingsFile:
    """The file of `--config` as it was when the run began: it may change, and the run must not."""

    name: str
    content: bytes

    @property
    def text(self) -> str:
        """Decoded; raises UnicodeDecodeError."""
        return self.content.decode("utf-8-sig")

    def described(self) -> dict[str, str]:
        """For `report.json`."""
        digest = hashlib.sha256(self.content).hexdigest()
        return {"name": self.name, "sha256": digest, "content": self.text}


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
    settings: SettingsFile | None = None
    """Where options came from that the command line does not show; they are above already."""

    def __post_init__(self) -> None:
        without_data = self.data.source is None
        require(
            self.recovery.distill or not without_data,
            "--no-distill learns from labels alone: give --data with labels, or leave it out",
        )
        require(
            not (without_data and self.target.max_accuracy_drop is not None),
            "--max-accuracy-drop cannot be checked without --data: give --data with labels",
        )
        require(
            not (without_data and self.deploy.precision == "int8"),
            "--precision int8 needs real images to calibrate: give --data, or --precision fp16",
        )
        require(
            not (without_data and self.recovery.insert_bn),
            "--insert-bn needs data to take statistics from: give --data, or leave it out",
        )
        require(
            not (without_data and self.recovery.recipe != RECIPES[0]),
            f"--recipe {self.recovery.recipe} scores channels by the loss: give --data",
        )
        drop = self.target.max_accuracy_drop
        require(
            drop is None or drop <= 100 or self.data.task is not None,
            f"--max-accuracy-drop: {drop} is outside 0 to 100 points: 0.5 allows 93.0 % to 92.5 %",
        )
        require(
            _DEVICE.fullmatch(self.device) is not None,
            f"--device: {self.device!r} is not auto, cpu, mps, cuda or cuda:N",
        )
        require(
            self.logger is None or self.logger in LOGGERS,
            f"--logger: {self.logger!r} is not one of {', '.join(LOGGERS)}",
        )
        require(self.verbosity in (-1, 0, 1), f"verbosity {self.verbosity} is not -1, 0 or 1")

    def fingerprint(self) -> str:
        """SHA-256, in hex, of all that decides the result, to recognise another run's directory.

        The model counts by its content, so moving it keeps the fingerprint; so does code given as
        a file, FILE.py:NAME, besides its name. Where and how the run is done does not count: `out`,
        `resume`, `dry_run`, `verbosity`, `json`, `logger`, `device`, the number of decoding
        threads and the name of a settings file, so that a run may be resumed on another machine.
        Data counts by its absolute path: hashing it could take hours.
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


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What `compress inspect` is asked to show."""

    model: ModelConfig
    """The model and how to build it."""
    constraints: ConstraintConfig
    """As in the main job: the multiple and the frozen modules."""
    equal_cut: Target
    """Cost at which an equal cut of every width is shown."""
    inputs: tuple[str, ...] = ()
    """Inputs that are not one image: shapes, named shapes, or a callable that returns them."""
    data: InspectData | None = None
    """Images to score by and to judge cuts by, if any."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
