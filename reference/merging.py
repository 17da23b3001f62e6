"""Attention to a set of keys from that to its parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArgumentError
from .arrays import FloatArray, floating

__all__ = ["merge_states"]


def merge_states(o: ArrayLike, lse: ArrayLike) -> tuple[FloatArray, FloatArray]:
    r"""Merge the attention of the same queries to parts of the keys.

    .. math:: lse = \ln \sum_p e^{lse_p}, \quad o = \sum_p e^{lse_p - lse} o_p

    Parts may come in any order, and have been merged themselves. One without keys has
    ``lse = -inf`` and changes nothing, whatever its `o` holds; without any keys the answer is
    ``o = 0`` and ``lse = -inf``. A logit that all queries of a head have once (`sinks` of
    `exact.attention`) may belong to one of the parts only.

    Parameters
    ----------
    o : array_like of float [part, ..., head_dim]
    lse : array_like of float [part, ...]
        Natural logarithms.

    Returns
    -------
    o : ndarray of float64 [..., head_dim]
    lse : ndarray of float64 [...]

    Raises
    ------
    ArgumentError
        If the arrays do not fit each other.

    Notes
    -----
    FlashAttention-2 (arXiv 2307.08691, section 3.1) divides its loop over keys so.
    """
    o, lse = floating("o", o), floating("lse", lse)
    if o.ndim == 0 or o.shape[:-1] != lse.shape or lse.ndim == 0:
        raise ArgumentError(
            "lse.shape", lse.shape, f"[part, ...] of o [part, ..., head_dim] {o.shape}"
        )
    parts = lse.astype(np.float64)
    # inf - inf is an answer here, as in `exact.attention`.
    with np.errstate(all="ignore"):
        most = parts.max(axis=0, initial=-np.inf)
        weights = np.exp(parts - np.where(most == -np.inf, 0.0, most))
        total = weights.sum(axis=0)
        terms = weights[..., None] * o.astype(np.float64)
        terms[parts == -np.inf] = 0.0
        merged: FloatArray = terms.sum(axis=0) / np.where(total == 0.0, 1.0, total)[..., None]
        return merged, most + np.log(total)
