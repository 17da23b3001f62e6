"""What a KV cache subtracts from keys before it quantizes them, and from which."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from ..kv_format import UNIT_TOKENS
from .arrays import Float32Array, as_float32, floating, whole_counts
from .smoothing import sample

__all__ = ["FIRST_TOKENS", "bare_tokens", "offsets"]

# Of a sequence that begins with no more than `_FEW` tokens, of which no mean can be trusted, the
# first keys have no offset: it is the mean of so many at least.
FIRST_TOKENS = 8 * UNIT_TOKENS
_FEW = 16

# Of which the very first do not count for the mean that becomes the offset: attention sinks
# (StreamingLLM, arXiv 2309.17453, finds four), whose keys are like no others.
_SINKS = 4


def bare_tokens(
    counts: ArrayLike, lengths: ArrayLike | None = None, before: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Return how many first tokens of sequences have keys without offset, when some are appended.

    Parameters
    ----------
    counts : array_like of int [batch]
        Tokens that are appended.
    lengths : array_like of int [batch], optional
        Tokens that each sequence has already, by default none.
    before : array_like of int [batch], optional
        What this function has returned for these.
    """
    fresh = np.asarray(counts)
    of_new = np.where(fresh > _FEW, 0, FIRST_TOKENS)
    if lengths is None or before is None:
        return of_new
    begins = (np.asarray(lengths) == 0) & (fresh > 0)
    return np.where(begins, of_new, np.asarray(before))


def offsets(
    k: ArrayLike,
    counts: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    before: Float32Array | None = None,
    bare: ArrayLike | None = None,
) -> Float32Array:
    """Return what is subtracted from keys, when these have been appended to those that there are.

    The offset of a sequence is the mean of its keys from the fifth on: the very first may be like
    no others. One that begins with more than 16 has it from then on, of the tokens that it begins
    with. Others have it behind the first `FIRST_TOKENS`: the mean grows with every append, and the
    one that brings later tokens is the last that it is the mean of.

    Parameters
    ----------
    k : array_like of float [batch, num_kv_heads, token, head_dim]
    counts : array_like of int [batch], optional
        How many of the tokens of each sequence there are; the others are not read.
    lengths : array_like of int [batch], optional
        Tokens that each sequence has already, by default none.
    before : ndarray of float32 [batch, num_kv_heads, head_dim], optional
        Offsets of these.
    bare : array_like of int [batch], optional
        `bare_tokens` of this append; only looked at where there are tokens already.

    Returns
    -------
    ndarray of float32 [batch, num_kv_heads, head_dim]
        Of each sequence the mean of at most 512 evenly spaced tokens of these, `smoothing.sample`,
        together with that of earlier ones. What it was where it is fixed or there is no new token;
        0 if no token counts, and components that would not be finite.

    Raises
    ------
    ArgumentError
        If `k` has no four axes or `counts` do not fit them.
    """
    k = floating("k", k)
    if k.ndim != 4:
        raise ArgumentError("k.shape", k.shape, "[batch, num_kv_heads, token, head_dim]")
    vectors = np.zeros((*k.shape[:2], k.shape[3]), np.float32)
    if before is not None:
        vectors[...] = before
    fresh = whole_counts("counts", counts, k.shape[0], k.shape[2])
    older = np.zeros_like(fresh) if lengths is None else np.asarray(lengths)
    grows = (older == 0) | ((older <= FIRST_TOKENS) & (np.asarray(bare) != 0))
    for b in np.flatnonzero(grows & (fresh > 0)).tolist():
        some = sample(k[b, None, :, max(_SINKS - older[b], 0) : fresh[b]]).astype(np.float64)
        earlier = max(int(older[b]) - _SINKS, 0)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            total = some.sum(axis=2)[0]
            if earlier:
                total += earlier * vectors[b].astype(np.float64)
            mean = as_float32(total / np.float64(earlier + some.shape[2]))
        vectors[b] = np.where(np.isfinite(mean), mean, np.float32(0))
    return vectors
