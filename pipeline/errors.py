"""The errors of this package: each carries the exit code the command line returns for it.

What enters: a message of one line that says what is wrong, where, with which values, and the fix.
`one_line` turns the text of somebody else's exception into a piece of such a message.
"""


class CompressError(Exception):
    """A run could not be finished."""

    exit_code: int = 1


class UsageError(CompressError):
    """The command, the model file or the data is not usable as given; nothing was written."""

    exit_code = 2


class Interrupted(CompressError):  # noqa: N818 - a stop is no error
    """The user stopped the run."""

    exit_code = 130


def one_line(error: BaseException, limit: int = 160) -> str:
    """The kind and the first line of `error`, cut to `limit` characters."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
