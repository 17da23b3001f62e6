"""Error and speed of what was measured on comparable inputs, and the choices worth making."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..records.rows import Accuracy, Shape, Timing, shape_of
from . import prefill
from .results import Results
from .series import Series, end_to_end_tops

__all__ = ["WORTH", "Point", "Tradeoff", "front", "tradeoffs"]

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


@dataclass(frozen=True)
class Tradeoff:
    """The points of one picture.

    Attributes
    ----------
    distribution : str
        Of the inputs on which the errors were measured.
    errors_on, timed_on : Shape
        Errors do not depend on batch and heads, and little on the length; times do.
    points : dict of Series to Point
        Relative L1 errors, and 10¹² operations a second, quantization included.
    """

    distribution: str
    errors_on: Shape
    timed_on: Shape
    points: dict[Series, Point]


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats in both speed and error, the fastest first.

    A point that is slower than another and not `WORTH` more accurate counts as beaten.
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speed, p.error)):
        if not found or point.error * WORTH < found[-1].error:
            found.append(point)
    return found


def tradeoffs(results: Results) -> Iterator[Tradeoff]:
    """Yield one for each distribution and shape of errors that has times of its head dimension."""
    errors: dict[tuple[Shape, str], list[Accuracy]] = {}
    for a in results.accuracy:
        errors.setdefault((shape_of(a), a.distribution), []).append(a)
    for (shape, distribution), rows in errors.items():
        timings = _nearest(results.timings, shape)
        found = {a.scheme: a.metrics.get("relative_l1") for a in rows}
        points = {}
        for t in timings:
            series, speed = Series.of(t), end_to_end_tops(t)
            error = found.get(series.name)
            if error and speed:
                points[series] = Point(series.name, speed, error)
        if points:
            yield Tradeoff(distribution, shape, shape_of(timings[0]), points)


def _nearest(timings: Sequence[Timing], shape: Shape) -> list[Timing]:
    """Return the times of the shape that is most like another one; of these the most work."""
    rows: dict[Shape, list[Timing]] = {}
    for t in timings:
        alike = (t.head_dim, t.is_causal) == (shape.head_dim, shape.is_causal)
        if t.is_plain(prefill.KIND) and alike:
            rows.setdefault(shape_of(t), []).append(t)

    def distance(x: Shape) -> tuple[float, int]:
        apart = abs(math.log(max(x.seqlen_kv, 1) / max(shape.seqlen_kv, 1)))
        return apart, -x.batch * x.num_q_heads

    return rows[min(rows, key=distance)] if rows else []
