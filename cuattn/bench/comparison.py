"""What changed between two runs: the form of the answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..records.record import Shape
from .drift import Drift

__all__ = ["CEILING", "Bound", "Change", "Comparison", "Measure", "Row"]

CEILING = "ceiling"
Measure = Literal["kernel", "end to end", "ceiling", "error"]
Bound = Literal["arithmetic", "memory"]


@dataclass(frozen=True)
class Row:
    """What is the same in both runs.

    Attributes
    ----------
    case : str
        Of a time, the distribution of an error, or `CEILING`.
    implementation : str
        The instruction of a ceiling; empty for errors, whose scheme says it.
    scheme : str
        What a ceiling is of.
    shape : Shape or None
        None for a ceiling.
    """

    case: str
    implementation: str
    scheme: str
    shape: Shape | None


@dataclass(frozen=True)
class Change:
    """A figure that changed beyond noise.

    Attributes
    ----------
    row : Row
    measure : {"kernel", "end to end", "ceiling", "error"}
    old, new : float
        Milliseconds; a ceiling's TOPS or GB/s; a relative L1 error, infinite if there was none.
    ratio : float
        The new time as a multiple of the old one with the common drift taken out, also of a
        ceiling, or the new error of the old one: above 1 is worse.
    threshold : float
        By how much the ratio may differ from 1 within noise.
    """

    row: Row
    measure: Measure
    old: float
    new: float
    ratio: float
    threshold: float


@dataclass
class Comparison:
    """What changed between two runs.

    Attributes
    ----------
    times : list of Change
        Times and ceilings that changed beyond noise, the most changed first.
    errors : list of Change
        Errors that changed, likewise.
    within : int
        Times and ceilings within noise.
    same_errors : int
        Errors that did not change.
    drifts : dict of str to Drift
        Of what arithmetic bounds, and of what memory does.
    only_old, only_new : list of Row
        Rows with a figure that the other run lacks.
    notes : list of str
        What makes the runs less comparable, a sentence each.
    """

    times: list[Change] = field(default_factory=list)
    errors: list[Change] = field(default_factory=list)
    within: int = 0
    same_errors: int = 0
    drifts: dict[Bound, Drift] = field(default_factory=dict)
    only_old: list[Row] = field(default_factory=list)
    only_new: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def faster(self) -> int:
        """Return how many times and ceilings are better beyond noise."""
        return sum(change.ratio < 1 for change in self.times)

    @property
    def slower(self) -> int:
        """Return how many are worse."""
        return len(self.times) - self.faster
