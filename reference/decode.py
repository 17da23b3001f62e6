"""Attention of a few queries to a quantized KV cache, by parts of its tokens and their merger.

A kernel differs from this by float32 rounding only, as `emulate` has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from ..presets import resolve
from ..scheme import Scheme
from .arrays import (
    FloatArray,
    Progress,
    Shape,
    as_float32,
    check_scale,
    floating,
    whole_counts,
)
from .blas_threads import one_blas_thread
from .heads import Head, scores
from .kv_cache import CachedOperand
from .masking import UNLIMITED
from .mods import MaskFunction, ScoreFunction
from .partition import BLOCK, Piece, partition
from .quantized import Quantized, quantize
from .rotation import rotate
from .scores import HeadRules, ScoreRules
from .smoothing import lse_shift
from .softmax import OnlineSoftmax

__all__ = ["Partial", "Piece", "decode", "merge", "partition"]

# P against its block's maximum with V's scales; and as it is, for the sum of V's zero points.
_CODES = resolve("int8-token")
_ZEROS = resolve("fp16")


@dataclass(frozen=True, eq=False)
class Partial:
    """What query rows of a head make of some of the tokens.

    Attributes
    ----------
    o : ndarray of float64 [row, head_dim]
        Sum of ``2^(x - row_max)`` times V, with P and V as they are represented.
    row_max : ndarray of float64 [row]
        Largest logit x in units of log 2, -inf if the row sees none of the tokens.
    row_sum : ndarray of float64 [row]
        Sum of ``2^(x - row_max)``.
    seen : ndarray of bool [row]
        Whether the row sees any of the tokens.
    """

    o: FloatArray
    row_max: FloatArray
    row_sum: FloatArray
    seen: NDArray[np.bool_]


def merge(a: Partial, b: Partial) -> Partial:
    r"""Return what rows make of the tokens of both.

    .. math:: m = \max(m_a, m_b), \quad l = 2^{m_a - m} l_a + 2^{m_b - m} l_b, \quad
              o = 2^{m_a - m} o_a + 2^{m_b - m} o_b

    It is associative and commutative in real arithmetic, so any split of the tokens gives the same
    result: LeanAttention (arXiv 2405.10480), after FlashDecoding. Rows that see no token are the
    neutral element.
    """
    row_max = np.maximum(a.row_max, b.row_max)
    base = np.where(row_max == -np.inf, 0.0, row_max)  # -inf - -inf would be NaN
    of_a, of_b = np.exp2(a.row_max - base), np.exp2(b.row_max - base)
    o = a.o * of_a[:, None] + b.o * of_b[:, None]
    return Partial(o, row_max, a.row_sum * of_a + b.row_sum * of_b, a.seen | b.seen)


@one_blas_thread()
def decode(
    q: ArrayLike,
    k: CachedOperand,
    v: CachedOperand,
    lengths: ArrayLike | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = True,
    window_size: tuple[int, int] = (UNLIMITED, UNLIMITED),
    softcap: float = 0.0,
    sinks: ArrayLike | None = None,
    attn_mask: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    score_mod: ScoreFunction | None = None,
    mask_mod: MaskFunction | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Attend to a cache: Q in 8 bits per token, P as "int8-token" has it, by blocks of 128.

    Q is rotated first if the keys are.

    For each group of V's channels this is `emulate.emulate` on the group's codes and scales. Zero
    points add their mean under the softmax, with a P that is not rounded. The formulas are in
    ``docs/numerics.md``, section 13. NaN and infinities act through the scales, as in
    `emulate.emulate`, those of V in the channels of their group only.

    Parameters
    ----------
    q : array_like of float [batch, num_q_heads, seqlen_q, head_dim]
    k, v : CachedOperand
    lengths : array_like of int [batch], optional
        Tokens of each sequence, by default all; those beyond are not read.
    scale : float, optional
        Factor of the logits, ``1/sqrt(head_dim)`` by default.
    is_causal : bool
        Let query i of n see the first ``length - n + 1 + i`` tokens.
    window_size, softcap, sinks, attn_mask, alibi_slopes, score_mod, mask_mod
        As for `exact.attention`; the last axis of an `attn_mask` has all tokens that the cache has
        room for.
    workers : int
        Shares that the tokens are split into and merged from, as in a kernel. They make no
        difference but for the rounding of float64.
    progress : callable, optional
        Called as ``progress(done, total)`` after each piece of a head.

    Returns
    -------
    o : ndarray of float64 [batch, num_q_heads, seqlen_q, head_dim]
    lse : ndarray of float64 [batch, num_q_heads, seqlen_q]
        Of the original logits: the effect of K's offset is added back.

    Raises
    ------
    ArgumentError
        If the arrays do not fit each other or an option makes no sense.
    """
    q = floating("q", q)
    shape = Shape.of(q.shape, *((*x.codes.shape[:3], x.channels) for x in (k, v)))
    if v.codes.shape[3] != k.codes.shape[3]:
        raise ArgumentError("v.codes.shape", v.codes.shape, f"of {k.codes.shape[3]} channels, as k")
    scale = check_scale(scale, shape.head_dim)
    counts = whole_counts("lengths", lengths, shape.batch, shape.seqlen_kv)
    rules = ScoreRules.of(
        shape,
        is_causal=is_causal,
        window_size=window_size,
        softcap=softcap,
        sinks=sinks,
        attn_mask=attn_mask,
        alibi_slopes=alibi_slopes,
        seqused_k=counts,
        score_mod=score_mod,
        mask_mod=mask_mod,
    )
    o, lse = np.zeros(q.shape), np.empty(q.shape[:3])
    lse[:] = rules.sinks[:, None]
    if shape.seqlen_q == 0:
        return o, lse
    padded = np.pad(q, [(0, 0)] * 3 + [(0, k.codes.shape[3] - shape.head_dim)])
    codes = quantize(rotate(as_float32(padded)) if k.rotated else padded, scope="token")
    shift = lse_shift(q, k.vector, scale)
    shares = partition(counts, shape.num_kv_heads, workers)
    pieces = [piece for share in shares for piece in share]
    partials: dict[tuple[int, int], list[Partial]] = {}
    with np.errstate(all="ignore"):
        for done, piece in enumerate(pieces, 1):
            b = piece.sequence
            cached = _CachedHead.of(k, v, b, piece.head, int(counts[b]))
            for h in range(piece.head * shape.group, (piece.head + 1) * shape.group):
                of_head = rules.of_head(b, h, shift)
                rows = Head.of(codes, b, h, "token").scaled(scale * np.log2(np.e))
                first = None if shift is None else np.log2(np.e) * shift[b, h]
                made = cached.partial(rows, piece.blocks, of_head, first)
                partials.setdefault((b, h), []).append(made)
            if progress is not None:
                progress(done, len(pieces))
        for (b, h), of_rows in partials.items():
            whole = reduce(merge, of_rows)
            o[b, h], lse[b, h] = rules.of_head(b, h, shift).finish(
                whole.o[:, : shape.head_dim] / whole.row_sum[:, None],
                np.log(2.0) * (whole.row_max + np.log2(whole.row_sum)),
                whole.seen,
                range(shape.seqlen_q),
            )
    return o, lse


@dataclass(frozen=True, eq=False)
class _CachedHead:
    """The tokens of one head of a sequence: K, and V by groups of channels."""

    k: Head
    values: list[Head]
    bare: int
    k_zero: FloatArray | None
    zero: FloatArray | None

    @staticmethod
    def of(k: CachedOperand, v: CachedOperand, b: int, h: int, length: int) -> _CachedHead:
        """Take head `h` of sequence `b`, whose other tokens are not read."""
        at = slice(b, b + 1), slice(h, h + 1), slice(length)
        k_scale, groups = k.scale[at], k.scale.shape[3]
        keys = (
            Quantized(k.codes[at], k_scale[..., 0], "token")
            if groups == 1
            else Quantized(k.codes[at], k_scale, "group", k.group)
        )
        by_group = np.split(v.codes[at], v.scale.shape[3], axis=3)
        values = [
            Head.of(Quantized(codes, v.scale[at][..., g], "token"), 0, 0)
            for g, codes in enumerate(by_group)
        ]
        zeros = [
            None if x.zero is None else x.zero[b, h, :length].astype(np.float64) for x in (k, v)
        ]
        bare = 0 if k.bare is None else int(k.bare[b])
        return _CachedHead(Head.of(keys, 0, 0, "token"), values, bare, *zeros)

    def scores(self, q: Head, keys: range, shift: FloatArray | None) -> FloatArray:
        """Return logits of some tokens, all less `shift` [row], in units of log 2."""
        s = scores(q, self.k.tokens(keys))
        if self.k_zero is not None:
            groups = self.k_zero.shape[1]
            of_groups = q.matrix.astype(np.float64).reshape(len(s), groups, -1).sum(axis=2)
            s += (of_groups @ self.k_zero[keys.start : keys.stop].T) * q.token[:, None]
        if shift is not None and keys.start < self.bare:
            s[:, : self.bare - keys.start] -= shift[:, None]  # K's offset was not taken from them
        return s

    def partial(
        self, q: Head, blocks: range, rules: HeadRules, shift: FloatArray | None
    ) -> Partial:
        """Return what rows of Q, with all factors of the logits, make of some blocks."""
        rows = range(len(q.token))

        def softmax(scheme: Scheme, channels: int, round_p: bool) -> OnlineSoftmax:
            return OnlineSoftmax(scheme, "float16", round_p, len(rows), channels)

        sums = [softmax(_CODES, v.matrix.shape[1], True) for v in self.values]
        zeros = softmax(_ZEROS, len(sums), False)
        seen = np.zeros(len(rows), np.bool_)
        for block in blocks:
            keys = range(block * BLOCK, min((block + 1) * BLOCK, rules.mask.shape.seqlen_kv))
            s = self.scores(q, keys, shift)
            visible = rules.apply_to_log2(s, rows, keys)
            seen |= True if visible is None else visible.any(axis=1)
            for v, of_group in zip(self.values, sums, strict=True):
                v_block = v.tokens(keys)
                of_group.step(s.copy(), v_block.matrix, v_block.token, visible)
            if self.zero is not None:
                zeros.step(s, self.zero[keys.start : keys.stop], np.ones(len(keys)), visible)
        o = np.concatenate([of_group.o for of_group in sums], axis=1)
        o += np.repeat(zeros.o, o.shape[1] // len(sums), axis=1)
        return Partial(o, sums[0].row_max, sums[0].row_sum, seen)
