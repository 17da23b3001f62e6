"""How far machine and clock moved between two runs, seen by what did not change itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["SIGMAS", "Drift", "standard_error"]

# As many standard deviations are noise; of a normal distribution 0.3 % is outside.
SIGMAS = 3.0
# Fewer ratios have no spread to speak of.
FEWEST = 5
# Standard deviation between two runs where it cannot be seen: unchanged kernels differed by
# -4 to +1 % between two machines with the same GPU.
UNKNOWN = 0.01
# Other kernels than ours may agree better than ours can: power and clocks depend on the work.
LEAST = 0.003

# Of a normal distribution: its inter-quartile range, median absolute deviation, and the standard
# error of its median, as multiples of the standard deviation (and of 1 / sqrt(n) the latter).
IQR, MAD, MEDIAN = 1.3490, 0.6745, 1.2533


def standard_error(median: float, iqr: float | None, rounds: int) -> float:
    """Return the standard error of a median, relative to it.

    Parameters
    ----------
    median : float
        Not zero.
    iqr : float, optional
        Inter-quartile range of what it is the median of; None where it is not known.
    rounds : int
        Of how many.
    """
    if iqr is None:
        return UNKNOWN
    return MEDIAN * iqr / IQR / math.sqrt(max(rounds, 1)) / median


@dataclass(frozen=True)
class Drift:
    """What times of unchanged code say of two runs.

    Attributes
    ----------
    ratio : float
        Median of the new times as multiples of the old ones; 1 if there are too few.
    spread : float
        Standard deviation of the ratios, robust against some that did change.
    count : int
        Of how many ratios.
    """

    ratio: float
    spread: float
    count: int

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Drift:
        """Summarize new times as multiples of old ones."""
        if len(ratios) < FEWEST:
            return cls(1.0, UNKNOWN, len(ratios))
        logs = np.log(np.asarray(ratios, np.float64))
        middle = np.median(logs)
        spread = np.median(np.abs(logs - middle)) / MAD
        return cls(float(np.exp(middle)), max(float(spread), LEAST), len(ratios))

    @property
    def is_known(self) -> bool:
        """Return whether there were enough ratios to see it."""
        return self.count >= FEWEST

    def threshold(self, *errors: float) -> float:
        """Return the relative change up to which a row is within noise.

        Parameters
        ----------
        *errors : float
            Relative standard errors of the row's medians.
        """
        return SIGMAS * math.hypot(self.spread, *errors)
