"""Pictures of P: a histogram of its codes, and where it rounds to zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...reference.code_counts import p_numbers
from ...reference.p_rounding import PRounding
from ...reference.rounding import HalfType
from ...scheme import Scheme
from ..figures import HEAT, INK, SERIES, canvas, color_bar, svg
from ..page import Card
from .sample import Sample

__all__ = ["draw"]

NUMBERS = (
    "How often P, the softmax weights, takes each of its codes; the scale is logarithmic. Most "
    "weights of a long sequence are small, so many are rounded to zero, at the left end."
)
ZEROS = (
    "The share of P that rounds to zero, by query and key; blank where a query must not look. "
    "It costs accuracy only where these weights add up: the title says how much of a row's weight "
    "is in them, on average. Emulated, also if the errors above are a GPU's."
)


def draw(
    p: PRounding, scheme: Scheme, compute: HalfType, sample: Sample, prefix: str
) -> Iterator[Card]:
    """Draw how often codes of P occur, and where P becomes zero."""
    figure, axes = canvas(2.5)
    share = 100 * p.counts / max(p.counts.sum(), 1)
    edges = np.arange(len(share) + 1) * p.width - 0.5
    axes.stairs(np.where(share > 0, share, np.nan), edges, fill=True, color=SERIES[2], baseline=0)
    axes.set_yscale("log")
    axes.set_ylim(bottom=share[share > 0].min(initial=1.0) / 2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("% of P")
    axes.grid(axis="x", visible=False)
    values, labels, title = _ticks(scheme)
    if values is not None:
        axes.set_xticks(p_numbers(values, scheme, compute), labels)
    axes.set_xlabel(title if p.width == 1 else f"{title}, {p.width} to a bar")
    axes.set_title(f"{100 * p.zero_share:.3g} % of P rounds to zero")
    yield Card("Codes of P", svg(figure, f"{prefix}-codes"), f"{NUMBERS} From {sample}.")
    yield Card("Where P rounds to zero", _zeros(p, sample, f"{prefix}-zeros"), ZEROS)


def _zeros(p: PRounding, sample: Sample, prefix: str) -> str:
    figure, axes = canvas(3.0)
    with np.errstate(invalid="ignore"):
        share = 100 * p.zeros / p.seen
    starts = np.cumsum([0, *map(len, sample.rows)])
    keys = sample.input.shape.seqlen_kv
    extent = (0, keys, starts[-1], 0)
    image = axes.imshow(
        share,
        aspect="auto",
        interpolation="none",
        cmap=HEAT,
        vmin=0,
        vmax=max(float(share[p.seen > 0].max(initial=0.0)), 1.0),
        extent=extent,
    )
    axes.set_yticks(starts[:-1], [f"{block.start}" for block in sample.rows])
    axes.grid(visible=False)
    axes.set_xlabel("key token")
    axes.set_ylabel("row (query token)")
    axes.set_title(f"with {100 * p.lost:.2g} % of the weight")
    colors = color_bar(figure, image, pad=0.02, aspect=24)
    colors.ax.yaxis.set_major_formatter("{x:g}")
    colors.set_label("% of P that is zero", color=INK)
    return svg(figure, prefix)


def _ticks(scheme: Scheme) -> tuple[NDArray[Any] | None, Sequence[str], str]:
    """Return values of P for ticks, their labels, and what the axis is called."""
    if scheme.pv == "fp8":
        values = np.array([0, 0.25, 4, 64, 448])
        return values, [f"{x:g}" for x in values], "code of P (of e4m3, its value)"
    if scheme.pv == "fp16":
        powers = np.arange(-12, 1, 3)
        raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
        labels = ["2" + str(i).translate(raised) for i in powers]
        return 2.0**powers, labels, "P in half precision"
    return None, [], "code of P"
