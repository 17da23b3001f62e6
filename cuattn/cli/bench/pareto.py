"""Pictures of error against speed, with the schemes that no other beats in both."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ...bench.results import Results
from ...bench.tradeoff import Point, Tradeoff, front, tradeoffs
from ..figures import INK, canvas, scale, svg
from ..label_points import label_points
from ..labels import Label
from ..page import Card
from .look import look
from .names import shape_name

__all__ = ["draw"]


def draw(results: Results, prefix: str) -> Iterator[Card]:
    """Yield a picture for each distribution and head dimension."""
    for i, tradeoff in enumerate(tradeoffs(results)):
        on, timed = tradeoff.errors_on, tradeoff.timed_on
        causal = ", causal" if on.is_causal else ""
        yield Card(
            f"{tradeoff.distribution}, D {on.head_dim}{causal}",
            _picture(tradeoff, f"{prefix}-{i}"),
            f"Errors on {shape_name(on)}, speed of {shape_name(timed)}.",
        )


def _picture(tradeoff: Tradeoff, prefix: str) -> str:
    figure, axes = canvas(4.2)
    best = front(list(tradeoff.points.values()))
    corners = _stairs(best)
    axes.plot(*zip(*corners, strict=True), color=INK, linewidth=0.8, zorder=1.5)
    for series, p in tradeoff.points.items():
        shown, leads = look(series), p in best
        axes.plot(
            *_place(p),
            shown.marker,
            color=shown.color,
            markersize=6.0 if leads else 3.4,
            markerfacecolor=shown.color if leads else "none",
            zorder=3,
        )
    scale(axes.yaxis, log=True)
    axes.set_xlim(0, 1.25 * best[0].speed)
    axes.margins(y=0.1)
    axes.set_xlabel("10¹² operations a second, quantization included")
    axes.set_ylabel("relative L1 error, %")
    ordered = sorted(tradeoff.points.items(), key=lambda item: item[1] not in best)
    labels = [Label(p.name, *_place(p), look(series).color) for series, p in ordered]
    # A step goes to the left or down.
    label_points(axes, labels, [(*b, *a) for a, b in pairwise(corners)])
    return svg(figure, prefix)


def _place(p: Point) -> tuple[float, float]:
    return p.speed, 100 * p.error


def _stairs(best: list[Point]) -> list[tuple[float, float]]:
    """Return the border of what the front beats: along an error to the next speed, and down."""
    corners = [_place(best[0])]
    for p in best[1:]:
        corners += [(p.speed, corners[-1][1]), _place(p)]
    return [*corners, (0.0, corners[-1][1])]
