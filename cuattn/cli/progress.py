"""A progress bar on stderr, if that is a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType

from cuattn.reference.arrays import Progress

__all__ = ["Bar"]

WIDTH = 24
SECONDS_BETWEEN_UPDATES = 0.1
CLEAR_LINE = "\r\x1b[K"


class Bar:
    """One line that shows the current task and is gone afterwards.

    With stderr in a file or a pipe nothing is written.
    """

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._label = ""
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

    def _show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._updated < SECONDS_BETWEEN_UPDATES:
            return
        self._updated = now
        part = done / max(total, 1)
        left = f"{(now - self._begun) * (1 / part - 1):5.0f} s left" if part else ""
        filled = round(WIDTH * part)
        self._write(f"{self._label}  [{'#' * filled:{WIDTH}}] {part:4.0%}{left}")

    def _write(self, line: str) -> None:
        if self._shown:
            # A line that wraps could not be cleared.
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(CLEAR_LINE + line[:width])
            sys.stderr.flush()
