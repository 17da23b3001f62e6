"""Names beside points, where they hide neither points nor each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .labels import FONT, Label

__all__ = ["Box", "Place", "beside", "label_points"]

# Left, lower, right and upper edge, in points.
Box = tuple[float, float, float, float]

# Of a name: its height, and the width of a character; of a mark, from its middle.
LINE, WIDTH = 9.0, 4.4
MARK = 3.0
# Directions from the mark, and where the name begins, in widths of it; the best place first.
PLACES = (
    *((1, 0, 0.0), (-1, 0, -1.0), (0, 1, -0.5), (0, -1, -0.5)),
    *((1, 1, 0.0), (1, -1, 0.0), (-1, 1, -1.0), (-1, -1, -1.0)),
)
DISTANCES = (5.0, 8.0, 12.0, 18.0, 26.0)
# From here on nobody sees to which mark a name belongs.
APART = 10.0


class Place(NamedTuple):
    """Where a name stands: from its point to its left end, at half its height, in points.

    Attributes
    ----------
    x, y : float
    is_apart : bool
        Whether it has to be led to.
    """

    x: float
    y: float
    is_apart: bool


def label_points(axes: Any, labels: Sequence[Label], hidden: Sequence[Box] = ()) -> None:
    """Write names beside their points, the first ones where they are seen best.

    Parameters
    ----------
    axes : Axes
        With its final limits, labels and texts outside.
    labels : sequence of Label
        Of all points; a name that has no room is left out.
    hidden : sequence of Box
        What names must not cover besides, in data coordinates.
    """
    axes.figure.draw_without_rendering()  # puts the axes where they stay
    to_points = 72 / axes.figure.dpi
    at = axes.transData.transform([(label.x, label.y) for label in labels]) * to_points
    corners = [corner for box in hidden for corner in (box[:2], box[2:])]
    edges = (axes.transData.transform(corners) * to_points).reshape(-1, 4) if corners else ()
    inside = axes.get_window_extent().extents * to_points
    places = beside([label.name for label in labels], at, tuple(inside), list(map(tuple, edges)))
    for label, place in zip(labels, places, strict=True):
        if place is not None:
            leader = {"arrowstyle": "-", "color": label.color, "linewidth": 0.4}
            name = axes.annotate(
                label.name,
                (label.x, label.y),
                (place.x, place.y),
                textcoords="offset points",
                va="center",
                fontsize=FONT,
                color=label.color,
                arrowprops={**leader, "shrinkA": 0, "shrinkB": 2} if place.is_apart else None,
            )
            name.set_in_layout(False)


def beside(
    names: Sequence[str],
    at: Sequence[tuple[float, float]],
    whole: Box,
    hidden: Sequence[Box] = (),
) -> list[Place | None]:
    """Find places one after the other, so the first names get the best ones.

    Parameters
    ----------
    names : sequence of str
    at : sequence of (float, float)
        Their points, in points of 1/72 inch.
    whole : Box
        What names must not leave.
    hidden : sequence of Box, optional
        What they must not cover besides the points.

    Returns
    -------
    list of Place or None
        None for a name without room.
    """
    taken = [(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in at] + list(hidden)
    found: list[Place | None] = []
    for name, (x, y) in zip(names, at, strict=True):
        for place in _places(WIDTH * len(name)):
            left, middle = x + place.x, y + place.y
            box = left, middle - LINE / 2, left + WIDTH * len(name), middle + LINE / 2
            if _within(box, whole) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                found.append(place)
                break
        else:
            found.append(None)
    return found


def _places(width: float) -> Iterator[Place]:
    for distance in DISTANCES:
        for right, up, start in PLACES:
            yield Place(right * distance + start * width, up * distance, distance > APART)


def _within(box: Box, whole: Box) -> bool:
    lower = whole[0] <= box[0] and whole[1] <= box[1]
    return lower and box[2] <= whole[2] and box[3] <= whole[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
