"""Pictures of decoding: how fast a KV cache is read, and what that gains over float16."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...bench import decode
from ...bench.ceilings import best
from ...bench.results import Results
from ...bench.series import Series, by_shape
from ...records.record import Shape, Timing
from ..pages.figures import INK, canvas, svg
from ..pages.labels import Label, height_of, label_ends
from ..pages.page import Card
from .look import look, shape_name

__all__ = ["copy_gbps", "draw", "rows", "speedups"]

ROW_HEIGHT = 0.3  # of a shape, in inches

BANDWIDTH = (
    "Bytes of the cache read in a second: codes and scales of cuattn's caches, float16 of others. "
    "The dotted line is a copy, which reading alone beats by a little at most. Short caches end "
    "before memory is busy."
)
SPEEDUP = (
    "How many times as fast as the fastest implementation whose cache is float16. Scales aside, "
    "codes of 8 bits could be twice as fast, and codes of 4 bits four times."
)
OTHERS = "The same for other shapes: few long sequences, many short ones, or other heads."
MARKERS = ("o", "s", "D", "^", "v", "<", ">")

Figures = dict[Shape, dict[Series, float]]


@dataclass(frozen=True)
class _Quantity:
    """What a picture shows, and a line to hold it against."""

    name: str
    label: str
    text: str
    figures: Figures
    line_name: str
    line: float | None

    def of(self, shapes: list[Shape]) -> Figures:
        return {shape: self.figures[shape] for shape in shapes if self.figures[shape]}

    def most(self, figures: Figures) -> float:
        return max(self.line or 0.0, *(x for of in figures.values() for x in of.values()))


def rows(results: Results) -> dict[Shape, dict[Series, Timing]]:
    """Return the times of decoding by shape."""
    return by_shape(t for t in results.timings if t.case == decode.KIND and t.kernel_ms)


def copy_gbps(results: Results) -> float | None:
    """Return the speed of a copy: the ceiling, or else the fastest that took turns with calls."""
    beside = [t.gbps for t in results.timings if t.case == decode.COPY_KIND and t.gbps]
    return best(results.ceilings, "copy") or max(beside, default=None)


def speedups(times: dict[Series, Timing]) -> dict[Series, float]:
    """Return how many times as fast as the fastest with float16 our caches are, on one shape."""
    ms = {series: t.kernel_ms for series, t in times.items() if t.kernel_ms}
    float16 = min((x for s, x in ms.items() if s.scheme == decode.FP16), default=None)
    if float16 is None:
        return {}
    return {series: float16 / x for series, x in ms.items() if series.is_ours}


def draw(results: Results, prefix: str) -> Iterator[Card]:
    """Yield pictures against the tokens of a sequence, and pictures of all other shapes."""
    found = rows(results)
    swept = _longest_sweep(list(found))
    others = [shape for shape in found if shape not in swept]
    whose = _without_length(swept[0]) if swept else ""
    shown = [_bandwidth(found, copy_gbps(results)), _gain(found)]
    for i, quantity in enumerate(shown):
        figures = quantity.of(swept)
        if figures:
            picture = _lines(quantity, figures, f"{prefix}-n{i}")
            yield Card(f"{quantity.name} against length: {whose}", picture, quantity.text)
    for i, quantity in enumerate(shown):
        figures = quantity.of(others)
        if figures:
            picture = _dots(quantity, figures, f"{prefix}-{i}")
            text = OTHERS if swept else quantity.text
            yield Card(f"{quantity.name} by shape", picture, text)


def _bandwidth(found: dict[Shape, dict[Series, Timing]], copy: float | None) -> _Quantity:
    rates = {
        shape: {series: t.gbps for series, t in times.items() if t.gbps}
        for shape, times in found.items()
    }
    return _Quantity("Bandwidth", "GB/s", BANDWIDTH, rates, "copy", copy)


def _gain(found: dict[Shape, dict[Series, Timing]]) -> _Quantity:
    gains = {shape: speedups(times) for shape, times in found.items()}
    return _Quantity("Speed-up", "times as fast as float16", SPEEDUP, gains, "float16", 1.0)


def _without_length(shape: Shape) -> str:
    return shape_name(shape).replace(f" N{shape.seqlen_kv}", "")


def _longest_sweep(shapes: list[Shape]) -> list[Shape]:
    """Return the most shapes that differ in length only, by length; none if there are not two."""
    groups: dict[str, list[Shape]] = {}
    for shape in shapes:
        groups.setdefault(_without_length(shape), []).append(shape)
    longest = max(groups.values(), key=len, default=[])
    return sorted(longest, key=lambda shape: shape.seqlen_kv) if len(longest) > 1 else []


def _lines(quantity: _Quantity, figures: Figures, prefix: str) -> str:
    every = _series(figures)
    height = height_of(len(every) + 1)
    figure, axes = canvas(height)
    labels = []
    for series in every:
        shown = look(series)
        points = [(shape.seqlen_kv, x[series]) for shape, x in figures.items() if series in x]
        axes.plot(*zip(*points, strict=True), **shown())
        labels.append(Label(series.name, *points[-1], shown.color))
    lengths = [shape.seqlen_kv for shape in figures]
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{n}" for n in lengths])
    axes.minorticks_off()
    if quantity.line is not None:
        axes.axhline(quantity.line, color=INK, linestyle=":", linewidth=0.9)
        labels.append(Label(quantity.line_name, lengths[-1], quantity.line, INK))
    axes.set_ylim(0, 1.08 * quantity.most(figures))
    axes.set_xlabel("tokens of each sequence")
    axes.set_ylabel(quantity.label)
    label_ends(axes, labels, height)
    return svg(figure, prefix)


def _dots(quantity: _Quantity, figures: Figures, prefix: str) -> str:
    every = _series(figures)
    figure, axes = canvas(1.0 + ROW_HEIGHT * len(figures))
    for i, series in enumerate(every):
        color = look(series).color
        aside = 0.5 * ((i + 0.5) / len(every) - 0.5)  # or marks would hide others
        points = [(x[series], y + aside) for y, x in enumerate(figures.values()) if series in x]
        axes.plot(
            *zip(*points, strict=True),
            MARKERS[i % len(MARKERS)],
            color=color,
            markersize=4.2,
            markerfacecolor=color if series.is_ours else "none",
            label=series.name,
        )
    if quantity.line is not None:
        name = quantity.line_name
        axes.axvline(quantity.line, color=INK, linestyle=":", linewidth=0.9, label=name)
    axes.set_xlim(0, 1.05 * quantity.most(figures))
    axes.set_ylim(len(figures) - 0.5, -0.5)
    axes.set_yticks(range(len(figures)), [shape_name(shape) for shape in figures])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(quantity.label)
    figure.legend(loc="outside upper left", ncols=3, handletextpad=0.3, columnspacing=1.0)
    return svg(figure, prefix)


def _series(figures: Figures) -> list[Series]:
    return list(dict.fromkeys(series for of_shape in figures.values() for series in of_shape))
