"""Curves of a run for other tools: loss, learning rate and check-ups, by Fabric's own loggers.

Enters: the kind that `--logger` names and the run's directory. Leaves: a Fabric logger that writes
under `logs/` there. Refused, with `UsageError`: a kind whose package is not installed.
"""

from importlib.util import find_spec
from pathlib import Path

from lightning_fabric.loggers import CSVLogger, Logger, TensorBoardLogger

from pipeline.errors import UsageError

_FOLDER = "logs"
_FLUSH_STEPS = 50


def require_logger(kind: str | None) -> None:
    """Raises UsageError before any work where the logger's package is missing."""
    if kind == "tensorboard" and find_spec("tensorboard") is None:
        raise UsageError(
            "--logger tensorboard: the package tensorboard is not installed: "
            "pip install tensorboard, or take --logger csv"
        )


def make_loggers(kind: str | None, out: Path) -> list[Logger]:
    """None or one; a run that is resumed writes into a new version_N."""
    if kind is None:
        return []
    if kind == "csv":
        return [CSVLogger(out, name=_FOLDER, flush_logs_every_n_steps=_FLUSH_STEPS)]
    return [TensorBoardLogger(out, name=_FOLDER)]
