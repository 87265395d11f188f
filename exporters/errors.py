"""The errors of this package. Each message is one line: what, where, the values, the fix."""


class ExportError(Exception):
    """An export, a file or a measurement that cannot be done as asked."""


class ProviderError(ExportError):
    """The requested execution provider did not run the graph."""


class OpsetError(ExportError):
    """The exporter does not write this model in the opset asked, but in `possible`."""

    def __init__(self, message: str, possible: int) -> None:
        super().__init__(message)
        self.possible = possible


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """The text of another library's error, fit for one of our messages."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
