"""Sequences of different lengths in one batch: each is attended by itself.

They lie end to end, as bounds say (FlashAttention's cu_seqlens), or each in a slot of its own, of
which it uses the first keys only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from . import exact
from .arrays import FloatArray, floating, whole_counts, whole_numbers
from .mods import MaskFunction, ScoreFunction, of_sequence

__all__ = ["Attend", "Sequence", "attention", "sequences"]

# Takes Q, K and V of a batch of one [1, head, token, head_dim] and options; returns o and lse.
Attend: TypeAlias = Callable[..., tuple[FloatArray, FloatArray]]


class Sequence(NamedTuple):
    """A sequence, and its tokens among all of an array.

    Attributes
    ----------
    number : int
        Which of the sequences it is, from 0 on.
    rows, keys : slice
        Its tokens of Q, and of K and V.
    """

    number: int
    rows: slice
    keys: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and keys that it has."""
        return self.rows.stop - self.rows.start, self.keys.stop - self.keys.start


def sequences(
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    totals: tuple[int, int],
    *,
    max_seqlens: tuple[int | None, int | None] = (None, None),
    seqused_k: ArrayLike | None = None,
) -> Iterator[Sequence]:
    """Yield sequences that lie end to end.

    Parameters
    ----------
    cu_seqlens_q, cu_seqlens_k : array_like of int [batch + 1]
        Sequence b has tokens ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``.
    totals : tuple of int
        Tokens of Q, and of K.
    max_seqlens : tuple of int, optional
        What is more than so many rows, or keys, is left out.
    seqused_k : array_like of int [batch], optional
        Only so many keys of each count.

    Raises
    ------
    ArgumentError
        If bounds fall, or lead outside of the arrays.
    """
    bounds_q = _bounds("cu_seqlens_q", cu_seqlens_q, totals[0])
    bounds_k = _bounds("cu_seqlens_k", cu_seqlens_k, totals[1])
    batch = len(bounds_q) - 1
    if len(bounds_k) - 1 != batch:
        expected = f"of shape ({batch + 1},), that of cu_seqlens_q"
        raise ArgumentError("cu_seqlens_k", cu_seqlens_k, expected)
    used = whole_counts("seqused_k", seqused_k, batch, totals[1])
    for b in range(batch):
        ends = []
        counts = int(np.diff(bounds_q)[b]), min(int(np.diff(bounds_k)[b]), int(used[b]))
        for first, count, most in zip((bounds_q[b], bounds_k[b]), counts, max_seqlens, strict=True):
            ends.append(int(first) + (count if most is None else min(count, most)))
        yield Sequence(b, slice(int(bounds_q[b]), ends[0]), slice(int(bounds_k[b]), ends[1]))


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    seqused_k: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    score_mod: ScoreFunction | None = None,
    mask_mod: MaskFunction | None = None,
    attend: Attend = exact.attention,
    **options: Any,
) -> tuple[FloatArray, FloatArray]:
    """Attend sequences that lie end to end.

    Parameters
    ----------
    q : array_like of float [total_q, num_q_heads, head_dim]
    k, v : array_like of float [total_k, num_kv_heads, head_dim]
        The head_dim of `v` may be another.
    cu_seqlens_q, cu_seqlens_k, seqused_k
        As for `sequences`.
    sinks : array_like of float [num_q_heads], optional
        A logit of each query head that takes part in every row's softmax.
    alibi_slopes : array_like of float [num_q_heads] or [batch, num_q_heads], optional
        What logits lose for each token between a row and a key.
    score_mod, mask_mod : callable, optional
        As of `exact.attention`; `batch` is the number of the sequence.
    attend : callable
        `exact.attention`, or `emulate.attention`.
    **options
        Of it, for all sequences alike.

    Returns
    -------
    o : ndarray of float64 [total_q, num_q_heads, head_dim of v]
    lse : ndarray of float64 [num_q_heads, total_q]
        Both are 0 and -inf for tokens of no sequence.

    Raises
    ------
    ArgumentError
        If arguments do not fit each other.
    """
    q, k, v = floating("q", q), floating("k", k), floating("v", v)
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 3:
            raise ArgumentError(f"{name}.shape", x.shape, "[token, head, head_dim]")
    o = np.zeros((*q.shape[:2], v.shape[2]))
    lse = np.full(q.shape[1::-1], -np.inf)
    found = sequences(cu_seqlens_q, cu_seqlens_k, (len(q), len(k)), seqused_k=seqused_k)
    for each in found:
        rows, keys = each.shape
        if not rows:
            continue
        if not keys:
            lse[:, each.rows] = -np.inf if sinks is None else np.asarray(sinks)[:, None]
            continue
        if sinks is not None:
            options["sinks"] = sinks
        if alibi_slopes is not None:
            slopes = np.asarray(alibi_slopes)
            options["alibi_slopes"] = slopes[each.number] if slopes.ndim == 2 else slopes
        options |= {
            "score_mod": of_sequence(score_mod, each.number),
            "mask_mod": of_sequence(mask_mod, each.number),
        }
        part = attend(
            _heads_first(q[each.rows]),
            _heads_first(k[each.keys]),
            _heads_first(v[each.keys]),
            **options,
        )
        o[each.rows], lse[:, each.rows] = part[0][0].swapaxes(0, 1), part[1][0]
    return o, lse


def _heads_first(x: NDArray[Any]) -> NDArray[Any]:
    """From [token, head, head_dim] to [1, head, token, head_dim]."""
    return x.swapaxes(0, 1)[None]


def _bounds(name: str, bounds: ArrayLike, total: int) -> NDArray[Any]:
    found = whole_numbers(name, bounds, np.shape(bounds))
    if found.ndim != 1 or not found.size:
        raise ArgumentError(name, bounds, "whole numbers [batch + 1]")
    if found[0] < 0 or found[-1] > total or (np.diff(found.astype(np.int64)) < 0).any():
        raise ArgumentError(name, bounds, f"rising, from 0 to at most {total}")
    return found
