"""Histograms of the codes of Q, K and V."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...reference.code_counts import operand_counts, p_numbers
from ...reference.quantize import Operands, Quantized
from ...scheme import Scheme
from ..figures import SERIES, canvas, svg
from ..page import Card
from .sample import Sample

__all__ = ["draw"]

TEXT = (
    "How often each code occurs. A scheme divides Q, K and V by their scales and rounds to these "
    "numbers; the largest value of those that share a scale becomes the outermost code. A narrow "
    "peak around 0 means that few values, outliers, determine the scale, and that the others have "
    "to do with few codes: fewer bits in use."
)


def draw(ops: Operands, scheme: Scheme, sample: Sample, prefix: str) -> Card | None:
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
    return Card("Codes of Q, K and V", svg(figure, prefix), f"{TEXT} From {sample.which_heads}.")


def _bits(counts: NDArray[np.int64]) -> float:
    """Return the entropy of the codes in bits."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(abs(share @ np.log2(share)))
