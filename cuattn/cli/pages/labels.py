"""Names in pictures, in place of a legend: at the ends of lines, and beside points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "FONT",
    "LINE",
    "WIDTH",
    "Box",
    "Label",
    "Place",
    "beside",
    "height_of",
    "label_ends",
    "label_points",
    "spread",
]

# Points: of a name, of a line of names, and of a figure's parts that are not its axes.
FONT, LINE, AROUND = 7.5, 9.0, 46.0
LEAST_HEIGHT = 2.9

# Left, lower, right and upper edge, in points.
Box = tuple[float, float, float, float]

# Of a name: the width of a character; of a mark, from its middle.
WIDTH, MARK = 4.4, 3.0
# Directions from the mark, and where the name begins, in widths of it; the best place first.
PLACES = (
    *((1, 0, 0.0), (-1, 0, -1.0), (0, 1, -0.5), (0, -1, -0.5)),
    *((1, 1, 0.0), (1, -1, 0.0), (-1, 1, -1.0), (-1, -1, -1.0)),
)
DISTANCES = (5.0, 8.0, 12.0, 18.0, 26.0)
# From here on nobody sees to which mark a name belongs.
APART = 10.0


@dataclass(frozen=True)
class Label:
    """A name beside the point that it belongs to, in data coordinates."""

    name: str
    x: float
    y: float
    color: str


def height_of(names: int) -> float:
    """Return the inches of a figure that has room for as many names."""
    return max(LEAST_HEIGHT, (names * LINE + AROUND) / 72)


def label_ends(axes: Any, labels: Sequence[Label], height: float) -> None:
    """Write names to the right of the axes, in the order of the points, and lead to them.

    Parameters
    ----------
    axes : Axes
        With its final limits and scales.
    labels : sequence of Label
    height : float
        Of the figure, in inches.
    """
    ordered = sorted(labels, key=lambda label: label.y)
    to_axes = axes.transScale + axes.transLimits
    wanted = [to_axes.transform((label.x, label.y))[1] for label in ordered]
    places = spread(wanted, LINE / (72 * height - AROUND))
    for label, place in zip(ordered, places, strict=True):
        axes.annotate(
            label.name,
            (label.x, label.y),
            (1.06, place),
            textcoords="axes fraction",
            va="center",
            fontsize=FONT,
            color=label.color,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": label.color,
                "linewidth": 0.4,
                "alpha": 0.6,
                "shrinkA": 0,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def spread(wanted: Iterable[float], gap: float) -> list[float]:
    """Return places from 0 to 1, at least `gap` apart, near those wanted, which ascend.

    Neighbours that are too close become a block around the mean of what its members want, which is
    the least sum of squared distances; where there is not enough room, the top is left.
    """
    blocks: list[tuple[float, int]] = []  # mean of the members' places less their gaps, and count
    for i, place in enumerate(wanted):
        mean, count = place - i * gap, 1
        while blocks and blocks[-1][0] > mean:
            other, members = blocks.pop()
            mean = (mean * count + other * members) / (count + members)
            count += members
        blocks.append((mean, count))
    means = [mean for mean, count in blocks for _ in range(count)]
    top = 1 - (len(means) - 1) * gap
    return [float(np.clip(mean, 0, max(top, 0))) + i * gap for i, mean in enumerate(means)]


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
