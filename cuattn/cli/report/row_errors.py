"""A heat map of the error over query rows and heads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...reference.by_row import RowErrors
from ..pages.figures import HEAT, SERIES, canvas, color_bar, svg
from ..pages.page import Card

__all__ = ["draw"]

# Runs of rows that a heat map has room for.
RUNS = 160

TEXT = (
    "Colour is the relative L1 error of some neighbouring rows (query tokens) of a head. The curve "
    "above is the mean over heads, the bars on the right are whole heads. Bright spots are where "
    "this scheme has trouble: a bright line across is one difficult head, a bright column a "
    "position in the sequence."
)


def draw(errors: RowErrors, prefix: str) -> Card:
    """Draw errors of heads and rows."""
    from matplotlib.colors import LogNorm

    steps = 100 * errors.steps(RUNS)
    steps = steps.reshape(-1, steps.shape[2])
    heads, rows = steps.shape[0], errors.error.shape[2]
    figure, axes = canvas(3.0, 2, 2, sharex="col", width_ratios=(5, 1), height_ratios=(1, 2.6))
    (curve, corner), (heat, bars) = axes
    corner.set_axis_off()
    shown = np.where((steps > 0) & np.isfinite(steps), steps, np.nan)
    low, high = _range(shown)
    image = heat.imshow(
        shown,
        aspect="auto",
        interpolation="none",
        cmap=HEAT,
        norm=LogNorm(low, high),
        extent=(0, rows, heads - 0.5, -0.5),
    )
    heat.grid(visible=False)
    heat.set_xlabel("row (query token)")
    heat.set_ylabel("batch and head")
    heat.yaxis.get_major_locator().set_params(integer=True)
    middles = (np.arange(steps.shape[1]) + 0.5) * rows / steps.shape[1]
    mean = steps.mean(axis=0)
    curve.plot(middles, np.where(mean > 0, mean, np.nan), color=SERIES[0], linewidth=1)
    curve.set_ylim(bottom=0)
    curve.set_ylabel("mean, %")
    curve.yaxis.get_major_locator().set_params(nbins=3)
    of_heads = 100 * errors.heads().ravel()
    bars.barh(np.arange(heads), of_heads, color=SERIES[0])
    bars.set_ylim(heat.get_ylim())
    bars.set_yticks([])
    bars.set_xticks([0.0, _one_digit(of_heads)])
    bars.xaxis.set_major_formatter("{x:g}")
    bars.set_xlabel("head, %")
    colors = color_bar(figure, image, ax=bars, pad=0.06, fraction=0.5, aspect=14)
    colors.set_ticks(np.geomspace(low, high, 5))
    colors.ax.yaxis.set_major_formatter("{x:.2g}")
    return Card("Error by row and head", svg(figure, prefix), TEXT)


def _range(shown: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends of a logarithmic scale, such that a few small values do not stretch it."""
    some = shown[np.isfinite(shown)]
    if not some.size:
        return 0.1, 1.0
    low, high = float(np.percentile(some, 2)), float(some.max())
    return low, max(high, 1.01 * low)


def _one_digit(values: NDArray[np.float64]) -> float:
    """Return the largest number of one digit that is not larger than all values."""
    most = float(np.max(values, where=np.isfinite(values), initial=0.0))
    if most == 0.0:
        return 1.0
    digit = 10.0 ** np.floor(np.log10(most))
    return float(np.floor(most / digit) * digit)
