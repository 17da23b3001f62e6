"""One progress callback for several runs of about the same length."""

from __future__ import annotations

from ..reference.arrays import Progress

__all__ = ["Stages"]

# Steps that a run counts for, so that its own callback has something to divide.
STEPS_PER_RUN = 1000


class Stages:
    """Divide a callback, if there is one, among a number of runs."""

    def __init__(self, progress: Progress | None, runs: int) -> None:
        self._progress = progress
        self._runs = runs
        self._begun = 0

    def next(self, runs: int = 1) -> Progress | None:
        """Return the callback of the next one or few runs."""
        begun, self._begun = self._begun, self._begun + runs
        progress = self._progress
        if progress is None:
            return None
        return lambda done, total: progress(
            STEPS_PER_RUN * begun + STEPS_PER_RUN * runs * done // total, STEPS_PER_RUN * self._runs
        )

    def skip(self) -> None:
        """Count a run that has no callback as done."""
        done = self.next()
        if done is not None:
            done(1, 1)
