"""Measures of the distance between an output and its reference.

The literature uses some of these names for several quantities; each formula here is the one meant.
All treat the arrays as one long vector, in float64. Empty arrays and equal arrays have no error.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArgumentError
from .arrays import FloatArray
from .blas_threads import one_blas_thread

__all__ = [
    "METRICS",
    "cosine",
    "max_abs",
    "mean_relative",
    "metrics",
    "relative_l1",
    "relative_l2",
    "rmse",
    "snr_db",
]

# Keeps `mean_relative` finite where the reference is 0; the value of INT-FlashAttention's test.
RELATIVE_FLOOR = 1e-5


@one_blas_thread()
def metrics(o: ArrayLike, reference: ArrayLike) -> dict[str, float]:
    """Return every metric of this module by name.

    Parameters
    ----------
    o, reference : array_like of one shape

    Raises
    ------
    ArgumentError
        If the shapes differ.
    """
    x, r = _pair(o, reference)
    return {name: function(x, r) for name, function in METRICS.items()}


def cosine(o: ArrayLike, reference: ArrayLike) -> float:
    r"""Cosine similarity, :math:`\sum x r / \sqrt{\sum x^2 \sum r^2}`; 1 if both are zero."""
    x, r = _pair(o, reference)
    norms = math.sqrt(_energy(x)) * math.sqrt(_energy(r))
    if norms == 0.0:
        return 1.0 if np.array_equal(x, r) else 0.0
    with np.errstate(invalid="ignore"):
        return float(x @ r) / norms


def relative_l1(o: ArrayLike, reference: ArrayLike) -> float:
    r"""Relative L1 error, :math:`\sum |x - r| / \sum |r|`.

    SageAttention reports this (arXiv 2410.02367, section 3), and the magnitudes that
    INT-FlashAttention (arXiv 2409.16997) calls mean relative error fit this formula only.
    """
    x, r = _pair(o, reference)
    return _ratio(float(np.abs(_difference(x, r)).sum()), float(np.abs(r).sum()))


def relative_l2(o: ArrayLike, reference: ArrayLike) -> float:
    r"""Relative L2 error, :math:`\sqrt{\sum (x - r)^2 / \sum r^2}`."""
    x, r = _pair(o, reference)
    return _ratio(math.sqrt(_energy(_difference(x, r))), math.sqrt(_energy(r)))


def rmse(o: ArrayLike, reference: ArrayLike) -> float:
    r"""Root of the mean squared error, :math:`\sqrt{\frac1n \sum (x - r)^2}`."""
    x, r = _pair(o, reference)
    return math.sqrt(_energy(_difference(x, r)) / max(x.size, 1))


def max_abs(o: ArrayLike, reference: ArrayLike) -> float:
    r"""Largest error of an element, :math:`\max |x - r|`."""
    x, r = _pair(o, reference)
    return float(np.abs(_difference(x, r)).max(initial=0.0))


def mean_relative(o: ArrayLike, reference: ArrayLike) -> float:
    r"""Mean of the elements' relative errors, :math:`\frac1n \sum |x - r| / (|r| + 10^{-5})`.

    Elements whose reference is almost zero dominate it; it is here because papers quote it.
    """
    x, r = _pair(o, reference)
    with np.errstate(invalid="ignore"):
        relative = np.abs(_difference(x, r)) / (np.abs(r) + RELATIVE_FLOOR)
    return float(relative.sum()) / max(x.size, 1)


def snr_db(o: ArrayLike, reference: ArrayLike) -> float:
    r"""Signal-to-noise ratio in decibel, :math:`10 \log_{10}(\sum r^2 / \sum (x - r)^2)`.

    Infinite if the arrays are equal.
    """
    x, r = _pair(o, reference)
    signal, noise = _energy(r), _energy(_difference(x, r))
    if noise == 0.0:
        return math.inf
    ratio = signal / noise
    return -math.inf if ratio == 0.0 else 10.0 * math.log10(ratio)


METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    function.__name__: function
    for function in (cosine, relative_l1, relative_l2, rmse, max_abs, mean_relative, snr_db)
}


def _pair(o: ArrayLike, reference: ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, r = np.asarray(o), np.asarray(reference)
    if x.shape != r.shape:
        raise ArgumentError("o.shape", x.shape, f"the shape {r.shape} of the reference")
    return x.astype(np.float64, copy=False).ravel(), r.astype(np.float64, copy=False).ravel()


def _difference(x: FloatArray, r: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore"):  # equal infinities differ by NaN, which is the answer
        return x - r


def _energy(x: FloatArray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(x @ x)


def _ratio(error: float, size: float) -> float:
    if size == 0.0:
        return 0.0 if error == 0.0 else error * math.inf
    return error / size
