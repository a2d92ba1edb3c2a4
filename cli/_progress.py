"""How far long work is: a bar on a terminal, a log line every few seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

_LINE_EVERY_SECONDS = 10.0
_LOOK_EVERY = 256


class Steps:
    """Counts steps aloud, on standard error: standard output is the command's result.

    :param total: None where nobody knows.
    """

    def __init__(self, what: str, total: int | None = None, console: Console | None = None) -> None:
        self._what, self._total = what, total
        self._console = console or Console(stderr=True)
        self._n = self._n_shown = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(
                *columns, TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), console=self._console
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, rate="")
        return self

    def advance(self) -> None:
        """One step more."""
        self._n += 1
        # Looking at the clock costs more than a step may.
        if self._n % _LOOK_EVERY == 0:
            self._show()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show()
        if self._bar is not None:
            self._bar.stop()
        else:
            self._line()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._n, rate=self._rate())
        elif time.monotonic() - self._last_line >= _LINE_EVERY_SECONDS:
            self._line()

    def _line(self) -> None:
        self._last_line = time.monotonic()
        of = "" if self._total is None else f" of {self._total:,}"
        sys.stderr.write(f"{self._what}: {self._n:,}{of} ({self._rate()})\n")

    def _rate(self) -> str:
        return f"{self._n / max(time.monotonic() - self._started, 1e-9):,.0f}/s"


class Share:
    """Tells how much of an input has been read, in events and as a share of the whole."""

    def __init__(self, what: str, console: Console | None = None) -> None:
        self._what = what
        self._console = console or Console(stderr=True)
        self._n = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                console=self._console,
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=1.0, rate="")
        return self

    def advance(self, events: int, share: float) -> None:
        """So many events more; ``share`` of the input is read."""
        self._n += events
        rate = f"{self._n:,} events, {self._n / max(time.monotonic() - self._started, 1e-9):,.0f}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=share, rate=rate)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            sys.stderr.write(f"{self._what}: {share:.0%} ({rate})\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
