"""Names at the ends of lines, in place of a legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["FONT", "Label", "height_of", "label_ends", "spread"]

# Points: of a name, of a line of names, and of a figure's parts that are not its axes.
FONT, LINE, AROUND = 7.5, 9.0, 46.0
LEAST_HEIGHT = 2.9


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
