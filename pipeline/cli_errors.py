"""Where every error of a run ends: one line on standard error, and an exit code.

Enters: a call, and what is known of the run so far.
Leaves: the call's exit code, or that of the error which stopped it.
An error that is none of ours and no user's mistake passes through, with its traceback.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from pipeline.config import SettingsFile
from pipeline.errors import CompressError, Interrupted, UsageError

EXIT_TARGET_MISSED = 10
EXIT_PROOF_FAILED = 11
EXIT_PROVIDER = 14


@dataclass
class RunState:
    """What the run has told so far; the boundary needs it to word a message."""

    verbose: bool = False
    """Whether a traceback follows an error's line."""
    out: Path | None = None
    """Where the run's stages are, once that is known."""
    settings: SettingsFile | None = None
    """The file of --config, if one is given."""


def guarded(call: Callable[[], int], state: RunState) -> int:
    """Run `call` and return its exit code; report an error in one line and return the error's."""
    try:
        return call()
    except (KeyboardInterrupt, Interrupted):
        return _interrupted(state)
    except click.Abort as error:
        # click takes an EOFError, such as that of an empty model file, for an interruption.
        if isinstance(error.__cause__, EOFError):
            return _failed(_one_line(error.__cause__), UsageError.exit_code, state)
        return _interrupted(state)
    except click.ClickException as error:
        return _failed(error.format_message(), UsageError.exit_code, state)
    except CompressError as error:
        return _failed(_one_line(error), error.exit_code, state)
    except MemoryError as error:
        what = _one_line(error) or "an allocation failed"
        message = f"too little memory ({what}): give a smaller batch or input size"
        return _failed(message, UsageError.exit_code, state)
    except OSError as error:
        from pipeline.atomic import is_disk_full

        if is_disk_full(error):
            advice = "free some space and go on with --resume"
            message = f"disk full while writing {_file_of(error)}: {advice}"
            return _failed(message, UsageError.exit_code, state)
        if error.filename is None:
            raise
        return _failed(f"{_file_of(error)}: {error.strerror}", UsageError.exit_code, state)
    except _library_errors() as error:
        return _failed(_one_line(error), _exit_code(error), state)


def _library_errors() -> tuple[type[Exception], ...]:
    # Evaluated only when an error gets here: the packages are slow to import.
    from exporters.errors import ExportError
    from gbn.errors import GbnError

    return GbnError, ExportError


def _exit_code(error: Exception) -> int:
    from exporters.errors import ProviderError
    from gbn.errors import ProofFailed, UnreachableTarget

    own = getattr(error, "exit_code", None)
    if isinstance(own, int):
        return own
    for kind, code in (
        (ProviderError, EXIT_PROVIDER),
        (ProofFailed, EXIT_PROOF_FAILED),
        (UnreachableTarget, EXIT_TARGET_MISSED),
    ):
        if isinstance(error, kind):
            return code
    return UsageError.exit_code


def _file_of(error: OSError) -> str:
    return f"'{error.filename}'" if error.filename is not None else "an artefact"


def _one_line(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _failed(message: str, exit_code: int, state: RunState) -> int:
    click.echo(f"compress: error: {' '.join(message.split())}", err=True)
    if state.verbose:
        click.echo(traceback.format_exc(), err=True, nl=False)
    return exit_code


def _interrupted(state: RunState) -> int:
    kept = "nothing was written"
    if state.out is not None and state.out.is_dir():
        kept = f"finished stages are in '{state.out}': repeat the command with --resume to go on"
    click.echo(f"compress: interrupted: {kept}", err=True)
    if state.verbose:
        click.echo(traceback.format_exc(), err=True, nl=False)
    return Interrupted.exit_code


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C, so that a stopped container leaves whole stages and says so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:
            sys.exit(128 + signal.SIGTERM)  # A loader process inherits this handler.
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
