"""One implementation with one scheme: what has a line in a picture and a row in a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..records.rows import Shape, Timing, shape_of
from . import ours

__all__ = ["Series", "by_shape", "end_to_end_tops"]


@dataclass(frozen=True)
class Series:
    """Whose figures they are.

    Attributes
    ----------
    implementation : str
        "cuattn" or a baseline.
    scheme : str
    """

    implementation: str
    scheme: str

    @classmethod
    def of(cls, timing: Timing) -> Series:
        """Return the series that a time belongs to."""
        return cls(timing.implementation, timing.scheme)

    @property
    def is_ours(self) -> bool:
        """Return whether it is one of this package's."""
        return self.implementation == ours.NAME

    @property
    def name(self) -> str:
        """Return what rows of errors call it: our scheme, or the baseline."""
        return self.scheme if self.is_ours else self.implementation


def by_shape(timings: Iterable[Timing]) -> dict[Shape, dict[Series, Timing]]:
    """Return the times of each shape, in the order in which they come."""
    found: dict[Shape, dict[Series, Timing]] = {}
    for t in timings:
        found.setdefault(shape_of(t), {})[Series.of(t)] = t
    return found


def end_to_end_tops(timing: Timing) -> float | None:
    """Return the speed from float16 inputs, in 10¹² operations a second."""
    if not timing.end_to_end_ms:
        return None
    return timing.operations / timing.end_to_end_ms * 1e-9
