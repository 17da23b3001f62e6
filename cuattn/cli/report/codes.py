"""Pictures of codes: how often each occurs in Q, K, V and P, and where P rounds to zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...reference.code_counts import operand_counts, p_numbers
from ...reference.p_rounding import PRounding
from ...reference.quantize import Operands, Quantized
from ...reference.rounding import HalfType
from ...scheme import Scheme
from ..pages.figures import HEAT, INK, SERIES, canvas, color_bar, scale, svg
from ..pages.page import Card
from .sample import Sample

__all__ = ["draw_p", "draw_qkv"]

QKV = (
    "How often each code occurs. A scheme divides Q, K and V by their scales and rounds to these "
    "numbers; the largest value of those that share a scale becomes the outermost code. A narrow "
    "peak around 0 means that few values, outliers, determine the scale, and that the others have "
    "to do with few codes: fewer bits in use."
)
NUMBERS = (
    "How often P, the softmax weights, takes each of its codes; the scale is logarithmic. Most "
    "weights of a long sequence are small, so many are rounded to zero, at the left end."
)
ZEROS = (
    "The share of P that rounds to zero, by query and key; blank where a query must not look. "
    "It costs accuracy only where these weights add up: the title says how much of a row's weight "
    "is in them, on average. Emulated, also if the errors above are a GPU's."
)


def draw_qkv(ops: Operands, scheme: Scheme, sample: Sample, prefix: str) -> Card | None:
    """Draw how often codes of Q, K and V occur, if there are any."""
    counted = [
        (name.upper(), product, operand_counts(x, product))
        for name, product in (("q", scheme.qk), ("k", scheme.qk), ("v", scheme.pv))
        if product != "fp16" and isinstance(x := getattr(ops, name), Quantized)
    ]
    if not counted:
        return None
    figure, axes = canvas(0.35 + 0.95 * len(counted), len(counted), 1, squeeze=False)
    for (name, product, counts), panel in zip(counted, axes[:, 0], strict=True):
        share = 100 * counts / max(counts.sum(), 1)
        largest = len(share) // 2
        edges = np.arange(-largest, largest + 2) - 0.5
        panel.stairs(share, edges, fill=True, color=SERIES[0])
        panel.set_title(
            f"{name}: {share[largest]:.2g} % zeros, {_bits(counts):.1f} of "
            f"{np.log2(len(share)):.1f} bits in use"
        )
        panel.set_ylabel("% of codes")
        panel.grid(axis="x", visible=False)
        panel.yaxis.get_major_locator().set_params(nbins=3)
        if product == "fp8":
            values = (-448, -8, -0.25, 0, 0.25, 8, 448)
            places = np.sign(values) * p_numbers(np.abs(values), scheme, "float16")
            panel.set_xticks(places, [f"{value:g}" for value in values])
    axes[-1, 0].set_xlabel("code" if counted[-1][1] != "fp8" else "code (of e4m3, its value)")
    return Card("Codes of Q, K and V", svg(figure, prefix), f"{QKV} From {sample.which_heads}.")


def _bits(counts: NDArray[np.int64]) -> float:
    """Return the entropy of the codes in bits."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(abs(share @ np.log2(share)))


def draw_p(
    p: PRounding, scheme: Scheme, compute: HalfType, sample: Sample, prefix: str
) -> Iterator[Card]:
    """Draw how often codes of P occur, and where P becomes zero."""
    figure, axes = canvas(2.5)
    share = 100 * p.counts / max(p.counts.sum(), 1)
    edges = np.arange(len(share) + 1) * p.width - 0.5
    axes.stairs(np.where(share > 0, share, np.nan), edges, fill=True, color=SERIES[2], baseline=0)
    least, most = share[share > 0].min(initial=100.0), share.max(initial=1.0)
    axes.set_ylim(least / 2, 1.5 * most)
    scale(axes.yaxis, log=True)
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
