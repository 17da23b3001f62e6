"""Pictures that compare schemes: their errors, what causes them, and sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...reference.attribute import SOURCES
from ..pages.figures import SERIES, canvas, scale, svg
from ..pages.page import Card
from .measured import Measured
from .sweep import Sweep

__all__ = ["of_input", "of_sweep"]

ROW_HEIGHT = 0.2  # of a scheme, in inches
APART = 0.13  # of the same scheme's marks, in rows
MARKERS = ("o", "s", "D", "^")
LINES = ("-", "--", ":")
# Smaller parts of the largest error are what float64 makes of operands that are not rounded.
NOTHING = 1e-7

ERRORS = (
    "How far each scheme's output is from attention in float64: the sum of all absolute "
    "differences divided by the sum of all absolute values. The scale is logarithmic; further to "
    "the left is better. The scheme fp16 is what one has without quantization."
)
PARTS = (
    "The same error with only one thing rounded and the others left exact: Q, K, P (the softmax "
    "weights) or V. The rightmost mark of a scheme is what limits it, so it is where better "
    "rounding would help. Squared errors of the four add up, roughly, to that of the scheme. "
    "A mark is missing where a scheme rounds nothing."
)
TIMES = (
    "Operations of a call divided by its time on this GPU, quantization of Q, K and V included: "
    "more is better."
)


def of_input(m: Measured, prefix: str) -> Iterator[Card]:
    """Yield errors by scheme, by source and speed, the latter two where they were measured."""
    names = [r.scheme.name for r in m.reports]
    errors = {"": [100 * r.metrics["relative_l1"] for r in m.reports]}
    yield Card("Error by scheme", _dots(names, errors, f"{prefix}-scheme"), ERRORS)
    if all(r.by_source for r in m.reports):
        sources = {
            s.upper(): [100 * (r.by_source or {})[s]["relative_l1"] for r in m.reports]
            for s in SOURCES
        }
        yield Card("Error by source", _dots(names, sources, f"{prefix}-source"), PARTS)
    if all(r.tops for r in m.reports):
        speed = {"": [r.tops or 0.0 for r in m.reports]}
        picture = _dots(names, speed, f"{prefix}-speed", "10¹² operations a second", log=False)
        yield Card("Speed by scheme", picture, TIMES)


def of_sweep(sweep: Sweep, prefix: str) -> Iterator[Card]:
    """Yield errors, and speeds where there are any, of each input against the size."""
    what = "sequence length" if sweep.axis.label == "tokens" else "head dimension"
    text = (
        "Each line is a scheme; for each size the inputs are drawn anew. A line that "
        f"rises to the right is a scheme that gets worse with the {what}."
    )
    errors = sweep.series(lambda r: 100 * r.metrics["relative_l1"])
    for i, (name, series) in enumerate(errors):
        picture = _lines(sweep, series, "relative L1 error, %", f"{prefix}-error-{i}", log=True)
        yield Card(f"Error against {what}: {name}", picture, text)
    for i, (name, series) in enumerate(sweep.series(lambda r: r.tops)):
        if all(x for along in series.values() for x in along):
            picture = _lines(sweep, series, "10¹² operations a second", f"{prefix}-speed-{i}")
            yield Card(f"Speed against {what}: {name}", picture, TIMES)


def _dots(
    names: Sequence[str],
    series: dict[str, list[float]],
    prefix: str,
    label: str = "relative L1 error, %",
    *,
    log: bool = True,
) -> str:
    """Draw figures of schemes, one row for each, the first at the top."""
    figure, axes = canvas(0.75 + ROW_HEIGHT * len(names))
    y = np.arange(len(names))
    largest = max(max(x) for x in series.values())
    for i, (name, x) in enumerate(series.items()):
        shown = np.where(np.asarray(x) > NOTHING * largest, x, np.nan)
        beside = APART * (i - (len(series) - 1) / 2)  # or a mark would hide another
        axes.plot(
            shown, y + beside, MARKERS[i], color=SERIES[i], markersize=4.2, label=name or None
        )
        if len(series) == 1:
            for at, value in enumerate(x):
                text = f"{value:#.3g}".rstrip(".")
                axes.annotate(
                    text, (value, at), (6, 0), textcoords="offset points", va="center", fontsize=7.5
                )
    axes.margins(x=0.14, y=0.6 / max(len(names), 1))
    if not log:
        axes.set_xlim(0, 1.14 * largest)
    scale(axes.xaxis, log=log and largest > 0)
    axes.set_yticks(y, names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
    if len(series) > 1:
        figure.legend(loc="outside upper left", ncols=len(series), handletextpad=0.2)
    return svg(figure, prefix)


def _lines(
    sweep: Sweep, series: dict[str, list[float]], label: str, prefix: str, *, log: bool = False
) -> str:
    figure, axes = canvas(3.1 + 0.17 * (len(series) // 3))
    for i, (name, y) in enumerate(series.items()):
        color, style = SERIES[i % len(SERIES)], LINES[i // len(SERIES) % len(LINES)]
        axes.plot(sweep.values, y, style, color=color, marker="o", markersize=3, lw=1.3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sweep.values, [f"{value}" for value in sweep.values])
    axes.minorticks_off()
    scale(axes.yaxis, log=log and max(max(y) for y in series.values()) > 0)
    axes.set_xlabel(sweep.axis.label)
    axes.set_ylabel(label)
    figure.legend(loc="outside lower center", ncols=3, handlelength=2.4, columnspacing=1.2)
    return svg(figure, prefix)
