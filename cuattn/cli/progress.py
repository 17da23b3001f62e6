"""How far a command is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from ..reference.arrays import Progress

__all__ = ["Bar", "duration"]

SECONDS_BETWEEN_UPDATES = 0.1
# Where nobody looks, such as in a log; a command that takes less says nothing.
SECONDS_BETWEEN_LINES = 15.0

BAR = "{desc}  |{bar:24}| {percentage:3.0f}%  {remaining} left"
LINE = "{desc}: {percentage:3.0f} %, {remaining} left"


def duration(seconds: float) -> str:
    """Say how long something takes, to two digits or so."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


class Bar:
    """What shows the current task on stderr; of a bar on a terminal nothing is left afterwards."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._told = time.monotonic()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def task(self, label: str) -> Progress:
        """Begin a task and return the callback, ``callback(done, total)``, that shows it."""
        self._close()
        if self._is_terminal:
            self._bar = tqdm(
                desc=label,
                total=1,
                leave=False,
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=SECONDS_BETWEEN_UPDATES,
                miniters=0,
                bar_format=BAR,
            )
            return self._show
        begun = time.monotonic()

        def tell(done: int, total: int) -> None:
            now = time.monotonic()
            if now - self._told >= SECONDS_BETWEEN_LINES:
                self._told = now
                line = tqdm.format_meter(
                    done, max(total, 1), now - begun, prefix=label, bar_format=LINE
                )
                self.note(line)

        return tell

    def note(self, text: str) -> None:
        """Write a line that stays, above a bar."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def _show(self, done: int, total: int) -> None:
        self._bar.total = max(total, 1)
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
