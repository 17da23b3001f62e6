"""A roofline: speed against operations per byte, under what memory and tensor cores allow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...bench import decode, prefill
from ...bench.ceilings import best, intensity
from ...bench.results import Results
from ...bench.series import Series
from ...records.record import Timing
from ..pages.figures import INK, canvas, svg
from ..pages.labels import Label, height_of, label_ends, label_points
from ..pages.page import Card
from .look import COLORS, look

__all__ = ["draw"]

TEXT = (
    "Both scales are logarithmic. The slope is the speed of memory, as a copy has it: left of the "
    "roof's corner a kernel waits for memory, right of it for the tensor cores, whose rates are "
    "the flat lines. Marks on the slope are decoding, which uses each byte of the cache for as "
    "many queries as share it; lines below the flat roofs are attention to as many keys as queries."
)
CLOSER = (
    "The upper right corner, enlarged: kernels alone, from the shortest sequences to the longest. "
    "Each half of a scheme's operations has the roof of its type; the distance from it is what is "
    "left to be gained, and what the softmax takes."
)
ROOFS = {"int8": "INT8", "fp8": "FP8", "fp16": "FP16"}
# Names keep clear of the slope at so many places of it.
STEPS = 60
HEIGHT = 3.4

# Operations per byte and 10¹² operations a second.
Points = list[tuple[float, float]]


def draw(results: Results, prefix: str) -> Iterator[Card]:
    """Yield the picture, if memory's speed and a rate of the tensor cores were measured."""
    copy = best(results.ceilings, "copy")
    rates = {name: rate for what, name in ROOFS.items() if (rate := best(results.ceilings, what))}
    head_dim = _head_dim(results)
    multiplied = _points(
        t
        for t in results.timings
        if t.is_plain(prefill.KIND) and t.head_dim == head_dim and not t.is_causal
    )
    decoded = _points(t for t in results.timings if t.case == decode.KIND)
    if not copy or not rates:
        return
    if multiplied or decoded:
        picture = _whole(multiplied, decoded, copy, rates, f"{prefix}-whole")
        yield Card("Memory and tensor cores", picture, TEXT)
    if multiplied:
        picture = _closer(multiplied, copy, rates, f"{prefix}-closer")
        yield Card(f"Tensor cores: D {head_dim}, no mask", picture, CLOSER)


def _head_dim(results: Results) -> int | None:
    """Return the head dimension with the most times; of several the largest."""
    counts: dict[int, int] = {}
    for t in results.timings:
        if t.is_plain(prefill.KIND):
            counts[t.head_dim] = counts.get(t.head_dim, 0) + 1
    return max(counts, key=lambda d: (counts[d], d), default=None)


def _points(timings: Iterable[Timing]) -> dict[Series, Points]:
    """Return where schemes with a colour and implementations by others stand."""
    found: dict[Series, Points] = {}
    for t in timings:
        series, at = Series.of(t), intensity(t)
        if at and t.kernel_ms and (series.scheme in COLORS or not series.is_ours):
            found.setdefault(series, []).append((at, t.operations / t.kernel_ms * 1e-9))
    return {series: sorted(points) for series, points in found.items()}


def _whole(
    multiplied: dict[Series, Points],
    decoded: dict[Series, Points],
    copy: float,
    rates: dict[str, float],
    prefix: str,
) -> str:
    everywhere = _all(multiplied) + _all(decoded)
    corner = max(rates.values()) / copy * 1e3
    low = min(1.0, *(x for x, _ in everywhere)) / 2
    high = 1.5 * max(2 * corner, *(x for x, _ in everywhere))
    figure, axes = canvas(HEIGHT)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_ylim(0.6 * min(y for _, y in everywhere), 1.6 * max(rates.values()))
    ends = _roofs(axes, copy, rates, low, high)
    _lines(axes, multiplied)
    beside = _decoded(axes, decoded)
    _scales(axes, (1.0,))
    label_ends(axes, ends, HEIGHT)
    slope = [(x, x * copy * 1e-3) for x in np.geomspace(low, corner, STEPS)]
    beside.append(Label(f"copy {copy:.0f} GB/s", *slope[2 * STEPS // 3], INK))
    label_points(axes, beside, [(*p, *p) for p in everywhere + slope])
    return svg(figure, prefix)


def _closer(
    multiplied: dict[Series, Points], copy: float, rates: dict[str, float], prefix: str
) -> str:
    points = _all(multiplied)
    corner = min(rates.values()) / copy * 1e3
    low = 0.8 * min(corner, *(x for x, _ in points))
    high = 1.2 * max(x for x, _ in points)
    height = max(HEIGHT, height_of(len(multiplied) + len(rates)))
    figure, axes = canvas(height)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_ylim(0.8 * min(y for _, y in points), 1.15 * max(rates.values()))
    ends = _roofs(axes, copy, rates, low, high) + _lines(axes, multiplied)
    _scales(axes, (1.0, 2.0, 5.0))
    label_ends(axes, ends, height)
    return svg(figure, prefix)


def _all(lines: dict[Series, Points]) -> Points:
    return [point for points in lines.values() for point in points]


def _scales(axes: Any, steps: Sequence[float]) -> None:
    """Set ticks at multiples of powers of ten, and what the axes are called."""
    from matplotlib.ticker import LogLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=steps, numticks=12))
        axis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("operations for each byte of memory")
    axes.set_ylabel("10¹² operations a second")


def _roofs(axes: Any, copy: float, rates: dict[str, float], low: float, high: float) -> list[Label]:
    """Draw the roofs, and return names for the ends of the flat ones."""
    labels = []
    for name, rate in rates.items():
        axes.plot([rate / copy * 1e3, high], [rate, rate], color=INK, linewidth=1.0)
        labels.append(Label(f"{name} {rate:.0f}", high, rate, INK))
    corner = max(rates.values()) / copy * 1e3
    axes.plot([low, corner], [low * copy * 1e-3, corner * copy * 1e-3], color=INK, linewidth=1.0)
    return labels


def _lines(axes: Any, multiplied: dict[Series, Points]) -> list[Label]:
    """Draw attention to as many keys as queries, and return names for the ends."""
    labels = []
    for series, points in multiplied.items():
        shown = look(series)
        axes.plot(*zip(*points, strict=True), **{**shown(), "linewidth": 0.6 * shown.linewidth})
        labels.append(Label(series.name, *points[-1], shown.color))
    return labels


def _decoded(axes: Any, decoded: dict[Series, Points]) -> list[Label]:
    """Draw marks of decoding, and return names for the fastest of each kind."""
    fastest: dict[str, Label] = {}
    for series, points in decoded.items():
        shown = look(series)
        axes.plot(*zip(*points, strict=True), **{**shown(), "linestyle": ""})
        name = series.name if series.is_ours else f"{series.scheme}, others"
        label = Label(name, *max(points, key=lambda point: point[1]), shown.color)
        if name not in fastest or fastest[name].y < label.y:
            fastest[name] = label
    return list(fastest.values())
