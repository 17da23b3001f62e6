"""The vectors that smoothing subtracts, and their effect on the log-sum-exp."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from .arrays import Float32Array, FloatArray, as_float32, floating
from .blas_threads import one_blas_thread

__all__ = [
    "FENCE",
    "GROUPS",
    "Q_BLOCK",
    "SAMPLE",
    "block_means",
    "less_means",
    "lse_shift",
    "products_with_means",
    "sample",
    "smoothing_vector",
]

# Rows of Q that smoothing subtracts one mean from, and that the scope "block" has one scale for.
Q_BLOCK = 128

# Tokens that the "sample" vector is the mean of.
SAMPLE = 512

# A robust mean compares those of so many groups of consecutive tokens.
GROUPS = 16

# How far a group's mean may be from the quartiles of all of them, in distances of these: Tukey's
# outer fences (Exploratory Data Analysis, 1977, chapter 2).
FENCE = 3.0


def sample(x: ArrayLike) -> NDArray[np.floating]:
    """Return `SAMPLE` evenly spaced tokens of [batch, head, token, head_dim], or all of fewer."""
    x = floating("x", x)
    n = x.shape[2]
    count = min(SAMPLE, n)
    return x[:, :, [i * n // count for i in range(count)]]


def smoothing_vector(x: ArrayLike, how: str) -> Float32Array | None:
    """Return the vector that smoothing subtracts from every token, or None for no smoothing.

    Parameters
    ----------
    x : array_like of float [batch, head, token, head_dim]
    how : {"none", "mean", "robust", "sample"}
        "mean" takes the mean over all tokens. So does "robust", but no few tokens can move it far:
        each of `GROUPS` groups of consecutive tokens has a mean, those that are not finite are left
        out, and what is further than `FENCE` quartile distances from the quartiles of these means,
        channel by channel, is drawn in to there. "sample" does this with the tokens of `sample`, so
        that a quantizer needs no pass over `x` before its own.

    Returns
    -------
    ndarray of float32 [batch, head, head_dim], or None
        Components that would not be finite are 0: a NaN in one token must not reach the others.

    Notes
    -----
    Any vector leaves attention unchanged in real arithmetic, so the GPU's, whose sum has another
    order, need not be identical. Taking the mean is SageAttention's smoothing of K (arXiv
    2410.02367, section 4.2). Where no group stands out, which is the rule, "robust" is that mean.

    Raises
    ------
    ArgumentError
        For an unknown `how`.
    """
    x = floating("x", x)
    if how == "none":
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        if how == "mean":
            mean = x.astype(np.float64).sum(axis=2) / max(x.shape[2], 1)
        elif how in ("robust", "sample"):
            mean = _robust_mean((sample(x) if how == "sample" else x).astype(np.float64))
        else:
            raise ArgumentError("how", how, "one of ('none', 'mean', 'robust', 'sample')")
        mean = as_float32(mean)
    # A sum keeps the order of the axes that `x` has in memory.
    return np.ascontiguousarray(np.where(np.isfinite(mean), mean, np.float32(0)))


def _robust_mean(x: FloatArray) -> FloatArray:
    """Return the mean over tokens of [batch, head, token, head_dim], of groups within fences."""
    starts = np.arange(GROUPS + 1) * x.shape[2] // GROUPS
    counts = np.diff(starts)
    first, counts = starts[:-1][counts > 0], counts[counts > 0, None]  # few tokens, fewer groups
    if not counts.size:
        return np.zeros((*x.shape[:2], x.shape[3]))
    means = np.add.reduceat(x, first, axis=2) / counts
    finite = np.isfinite(means)
    ordered = np.sort(np.where(finite, means, np.inf), axis=2)
    number = finite.sum(axis=2, keepdims=True)
    # Of 16 the fifth and the twelfth, of three the middle one.
    low = (number + 1) // 4
    high = np.maximum(number - 1 - low, 0)
    quartiles = [np.take_along_axis(ordered, at, axis=2) for at in (low, high)]
    reach = FENCE * (quartiles[1] - quartiles[0])
    within = np.clip(means, quartiles[0] - reach, quartiles[1] + reach)
    weight = np.where(finite, counts, 0)
    mean: FloatArray = np.where(finite, counts * within, 0.0).sum(axis=2) / weight.sum(axis=2)
    return mean


def lse_shift(q: ArrayLike, vector: Float32Array | None, scale: float) -> FloatArray | None:
    """Return ``scale · q_i · vector``: what smoothing K took from every logit of row i.

    Parameters
    ----------
    q : array_like of float [batch, num_q_heads, seqlen_q, head_dim]
        Not quantized: the correction is then exact for the vector.
    vector : ndarray of float32 [batch, num_kv_heads, head_dim], or None
        None if K was not smoothed; then there is nothing to return either.

    Returns
    -------
    ndarray of float64 [batch, num_q_heads, seqlen_q], or None
        To be added to the log-sum-exp of the smoothed logits.
    """
    if vector is None:
        return None
    q32 = as_float32(floating("q", q)).astype(np.float64)
    group = q32.shape[1] // max(vector.shape[1], 1)
    per_head = np.repeat(vector.astype(np.float64), group, axis=1)
    with np.errstate(invalid="ignore"):
        shift: FloatArray = scale * np.einsum("bhnd,bhd->bhn", q32, per_head)
    return shift


def block_means(q: ArrayLike) -> Float32Array:
    """Return the mean of each `Q_BLOCK` rows, which smoothing subtracts from Q.

    Parameters
    ----------
    q : array_like of float [batch, num_q_heads, seqlen_q, head_dim]

    Returns
    -------
    ndarray of float32 [batch, num_q_heads, blocks, head_dim]
        Of the last block of the rows that there are. Components that would not be finite are 0.
    """
    x = floating("q", q)
    n = x.shape[2]
    starts = np.arange(0, n, Q_BLOCK)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.add.reduceat(x.astype(np.float64), starts, axis=2) if n else x[:, :, :0]
        counts = np.minimum(n - starts, Q_BLOCK)
        mean = as_float32(sums / counts[:, None])
    return np.ascontiguousarray(np.where(np.isfinite(mean), mean, np.float32(0)))


def less_means(q: ArrayLike, mean: Float32Array) -> FloatArray:
    """Return Q less what `block_means` returns, in float64.

    The quantizer rounds this to the float32 difference; codes that stay unrounded need all of it.
    """
    wide = as_float32(floating("q", q)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        less: FloatArray = wide - np.repeat(mean, Q_BLOCK, axis=2)[:, :, : wide.shape[2]]
    return less


@one_blas_thread()
def products_with_means(
    mean: Float32Array, k: ArrayLike, vector: Float32Array | None
) -> FloatArray:
    """Return what smoothing Q takes from its products with K: ``q_mean (k - vector)ᵀ``.

    Parameters
    ----------
    mean : ndarray of float32 [batch, num_q_heads, blocks, head_dim]
    k : array_like of float [batch, num_kv_heads, seqlen_kv, head_dim]
        Not quantized.
    vector : ndarray of float32 [batch, num_kv_heads, head_dim], or None
        What smoothing K subtracts.

    Returns
    -------
    ndarray of float64 [batch, num_q_heads, blocks, seqlen_kv]
    """
    keys = as_float32(floating("k", k)).astype(np.float64)
    if vector is not None:
        keys = keys - vector[:, :, None, :]
    group = mean.shape[1] // max(keys.shape[1], 1)
    with np.errstate(invalid="ignore"):
        products: FloatArray = mean.astype(np.float64) @ np.repeat(keys, group, axis=1).swapaxes(
            2, 3
        )
    return products
