"""Which of several choices are worth making: Pareto's front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["WORTH", "Point", "front"]

# A slower choice has to have so many times less error: outputs in half precision, summed up in
# another order, differ by about 1 %.
WORTH = 1.02


@dataclass(frozen=True)
class Point:
    """A choice.

    Attributes
    ----------
    name : str
    speed : float
        More is better.
    error : float
        Less is better.
    """

    name: str
    speed: float
    error: float


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in both speed and error, the fastest first.

    A point that is slower than another and not `WORTH` more accurate counts as beaten.
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speed, p.error)):
        if not found or point.error * WORTH < found[-1].error:
            found.append(point)
    return found
