"""A progress bar on stderr, if that is a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

from ..reference.arrays import Progress

__all__ = ["Bar", "duration"]

WIDTH = 24
SECONDS_BETWEEN_UPDATES = 0.1
CLEAR_LINE = "\r\x1b[K"


def duration(seconds: float) -> str:
    """Say how long something takes, to two digits or so."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


class Bar:
    """One line that shows the current task and is gone afterwards.

    With stderr in a file or a pipe nothing but notes is written.
    """

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._label = self._line = ""
        self._begun = self._updated = 0.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._write("")

    def task(self, label: str) -> Progress:
        """Begin a task and return the callback, ``callback(done, total)``, that shows it."""
        self._label = label
        self._begun = time.monotonic()
        self._updated = 0.0
        self._show(0, 1)
        return self._show

    def note(self, text: str) -> None:
        """Write a line that stays, above the bar; also where no bar is shown."""
        line = self._line
        self._write("")
        sys.stderr.write(f"{text}\n")
        self._write(line)

    def _show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._updated < SECONDS_BETWEEN_UPDATES:
            return
        self._updated = now
        part = done / max(total, 1)
        left = f"  {duration((now - self._begun) * (1 / part - 1))} left" if part else ""
        filled = round(WIDTH * part)
        self._write(f"{self._label}  [{'#' * filled:{WIDTH}}] {part:4.0%}{left}")

    def _write(self, line: str) -> None:
        self._line = line
        if self._shown:
            # A line that wraps could not be cleared.
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(CLEAR_LINE + line[:width])
            sys.stderr.flush()
