"""What a person sees while a run goes on.

Enters: stage names, lines, counts of finished steps.
Leaves: text on standard output, or on standard error where standard output is kept for JSON.
Live bars are drawn on a terminal only; elsewhere (CI logs, files) plain lines take their place.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Advance = Callable[[int], None]
"""Tells a progress bar that so many more steps are done."""

PLAIN_WIDTH = 100
"""Columns of tables written to a file or a pipe, which has no width of its own."""

PLAIN_INTERVAL_S = 30.0
"""Seconds between two progress lines where no bar can be drawn."""


SILENT = -2
"""Verbosity of a process beside the one that speaks."""


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed else "-/s", style="progress.data.speed")


class RunConsole:
    """Stage headlines, lines and progress of one run.

    `verbosity` is SILENT, -1 (warnings and the result), 0, or 1 (details too). With `json`,
    everything goes to standard error, since standard output then holds the report alone.
    """

    def __init__(self, *, verbosity: int = 0, json: bool = False) -> None:
        self._verbosity = verbosity
        self._console = Console(stderr=json, highlight=False, soft_wrap=False)
        self._errors = Console(stderr=True, highlight=False)
        if not self._console.is_terminal:
            self._console.width = PLAIN_WIDTH

    def stage(self, name: str) -> None:
        """Headline of the stage that now begins."""
        if self._verbosity >= 0:
            self._print(f"== {name}", style="bold")

    def say(self, line: str) -> None:
        """One line of what was found or done; not shown with -q."""
        if self._verbosity >= 0:
            self._print(line)

    def detail(self, line: str) -> None:
        """One line that only -v shows."""
        if self._verbosity >= 1:
            self._print(line, style="dim")

    def warn(self, line: str) -> None:
        """One line that is shown always but by a SILENT console, on standard error."""
        if self._verbosity > SILENT:
            self._errors.print(f"warning: {line}", style="yellow", markup=False, soft_wrap=True)

    def result(self, renderable: RenderableType) -> None:
        """The outcome; shown always."""
        self._console.print(renderable)

    @contextmanager
    def progress(self, label: str, *, total: int) -> Iterator[Advance]:
        """A bar with rate and remaining time: `with console.progress("tock", total=n) as advance`.

        `advance(k)` says that k more of the `total` steps are done. Not on a terminal: a line
        every half minute and one at the end.
        """
        if self._verbosity < 0:
            yield lambda _steps: None
        elif self._console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(label, total=total)
                yield lambda steps: bar.advance(task, steps)
        else:
            lines = _ProgressLines(label, total, self.say)
            yield lines.advance
            lines.finish()

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )

    def _print(self, line: str, style: str | None = None) -> None:
        # markup off: a module name such as "blocks[0]" must appear as it is written.
        self._console.print(line, style=style, markup=False, soft_wrap=True)


class _ProgressLines:
    """Progress as plain lines, at most one in `PLAIN_INTERVAL_S`."""

    def __init__(self, label: str, total: int, say: Callable[[str], None]) -> None:
        self._label = label
        self._total = total
        self._say = say
        self._done = 0
        self._started_s = self._said_s = time.monotonic()

    def advance(self, steps: int) -> None:
        self._done += steps
        now_s = time.monotonic()
        if now_s - self._said_s < PLAIN_INTERVAL_S or self._done >= self._total:
            return
        self._said_s = now_s
        rate = self._done / (now_s - self._started_s)
        remaining = f"{(self._total - self._done) / rate:.0f} s left" if rate else "no step yet"
        self._say(f"{self._label}: {self._done}/{self._total}, {rate:,.1f}/s, {remaining}")

    def finish(self) -> None:
        seconds = time.monotonic() - self._started_s
        rate = self._done / seconds if seconds > 0 else 0.0
        counted = f"{self._done}/{self._total} in {seconds:.1f} s"
        self._say(f"{self._label}: {counted}, {rate:,.1f}/s")
