"""The latent cache of DeepSeek's MLA, and attention to it in the absorbed form.

K of a token is its latent vector with the rotary channels behind it, V the latent vector: one K and
one V for all query heads. A kernel differs from this by float32 rounding only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from ..presets import resolve
from .arrays import Float32Array, FloatArray, Shape, as_float32, check_scale, floating, whole_counts
from .blas_threads import one_blas_thread
from .decode import Partial, merge
from .heads import Head, scores
from .masking import UNLIMITED
from .partition import BLOCK, partition
from .quantized import Quantized, quantize
from .rounding import HalfType, round_half
from .scores import HeadRules, ScoreRules
from .softmax import OnlineSoftmax

__all__ = ["LatentTokens", "decode_latent", "quantize_latent"]

# P against its block's maximum with V's scales.
_CODES = resolve("int8-token")


@dataclass(frozen=True, eq=False)
class LatentTokens:
    """What a latent cache holds: ``codes · scale``, and the rotary channels as they are.

    Attributes
    ----------
    codes : ndarray of int8 [batch, token, latent channel]
        In -127 ... 127.
    scale : ndarray of float32 [batch, token]
    rope : ndarray of float32 [batch, token, rotary channel]
        Numbers of `dtype`.
    dtype : {"bfloat16", "float16"}
    """

    codes: NDArray[np.int8]
    scale: Float32Array
    rope: Float32Array
    dtype: HalfType = "bfloat16"

    def __post_init__(self) -> None:
        if self.codes.ndim != 3 or self.codes.dtype != np.int8:
            raise ArgumentError("codes", self.codes, "int8 [batch, token, latent channel]")
        if self.scale.shape != self.codes.shape[:2]:
            raise ArgumentError("scale", self.scale, f"of shape {self.codes.shape[:2]}")
        if self.rope.ndim != 3 or self.rope.shape[:2] != self.codes.shape[:2]:
            raise ArgumentError("rope", self.rope, f"[*{self.codes.shape[:2]}, rotary channel]")

    def dequantize(self) -> tuple[FloatArray, FloatArray]:
        """Return K [batch, 1, token, latent and rotary channel] and V, as they are represented."""
        with np.errstate(invalid="ignore"):
            v: FloatArray = self.codes.astype(np.float64) * self.scale[..., None]
        k = np.concatenate([v, self.rope.astype(np.float64)], axis=2)
        return k[:, None], v[:, None]


def quantize_latent(
    latent: ArrayLike, rope: ArrayLike, dtype: HalfType = "bfloat16"
) -> LatentTokens:
    """Quantize tokens as the latent cache does: `quantized.quantize` with a scale for each.

    Parameters
    ----------
    latent, rope : array_like of float [batch, token, channel]
    dtype : {"bfloat16", "float16"}
        What rotary channels, which are not quantized, are rounded to.

    Raises
    ------
    ArgumentError
        For arrays that do not fit each other.
    """
    x, y = floating("latent", latent), floating("rope", rope)
    if x.ndim != 3:
        raise ArgumentError("latent.shape", x.shape, "[batch, token, channel]")
    if y.ndim != 3 or y.shape[:2] != x.shape[:2]:
        raise ArgumentError("rope.shape", y.shape, f"[*{x.shape[:2]}, channel], as latent has it")
    made = quantize(x[:, None], scope="token")
    codes = made.codes[:, 0].astype(np.int8)
    kept = as_float32(round_half(as_float32(y), dtype))
    return LatentTokens(codes, made.scale.reshape(x.shape[:2]), kept, dtype)


@one_blas_thread()
def decode_latent(
    q: ArrayLike,
    tokens: LatentTokens,
    lengths: ArrayLike | None = None,
    *,
    scale: float,
    is_causal: bool = True,
    workers: int = 1,
) -> tuple[FloatArray, FloatArray]:
    """Attend to a latent cache: Q's latent channels in 8 bits per row, P as "int8-token" has it.

    Q's rotary channels are rounded to the cache's type, and their products are added to those of
    the codes. The formulas are in ``docs/numerics.md``, section 13.9.

    Parameters
    ----------
    q : array_like of float [batch, num_q_heads, seqlen_q, latent and rotary channel]
    tokens : LatentTokens
    lengths : array_like of int [batch], optional
        Tokens of each sequence, by default all; those beyond are not read.
    scale : float
        Factor of the logits.
    is_causal : bool
        Let query i of n see the first ``length - n + 1 + i`` tokens.
    workers : int
        Shares that the tokens are split into and merged from, as in a kernel.

    Returns
    -------
    o : ndarray of float64 [batch, num_q_heads, seqlen_q, latent channel]
    lse : ndarray of float64 [batch, num_q_heads, seqlen_q]

    Raises
    ------
    ArgumentError
        If the arrays do not fit each other or an option makes no sense.
    """
    q = floating("q", q)
    batch, count, channels = tokens.codes.shape
    k_shape = (batch, 1, count, channels + tokens.rope.shape[2])
    shape = Shape.of(q.shape, k_shape, (*k_shape[:3], channels))
    factor = check_scale(scale, shape.head_dim) * np.log2(np.e)
    counts = whole_counts("lengths", lengths, batch, count)
    rules = ScoreRules.of(
        shape,
        is_causal=is_causal,
        window_size=(UNLIMITED, UNLIMITED),
        softcap=0.0,
        sinks=None,
        attn_mask=None,
        alibi_slopes=None,
        seqused_k=counts,
    )
    o, lse = np.zeros((*q.shape[:3], channels)), np.full(q.shape[:3], -np.inf)
    if shape.seqlen_q == 0:
        return o, lse
    of_q = quantize(q[..., :channels], scope="token")
    rope = round_half(as_float32(q[..., channels:]), tokens.dtype)
    partials: dict[tuple[int, int], list[Partial]] = {}
    with np.errstate(all="ignore"):
        for piece in (x for share in partition(counts, 1, workers) for x in share):
            b, n = piece.sequence, int(counts[piece.sequence])
            at = slice(b, b + 1), slice(n)
            whole = Quantized(tokens.codes[at][:, None], tokens.scale[at][:, None], "token")
            k, k_rope = Head.of(whole, 0, 0, "token"), tokens.rope[b, :n].astype(np.float64)
            for h in range(shape.num_q_heads):
                rows = Head.of(of_q, b, h, "token")
                of_head = rules.of_head(b, h)
                made = _partial(rows, rope[b, h], k, k_rope, factor, piece.blocks, of_head)
                partials.setdefault((b, h), []).append(made)
        for (b, h), parts in partials.items():
            all_parts = reduce(merge, parts)
            o[b, h], lse[b, h] = rules.of_head(b, h).finish(
                all_parts.o / all_parts.row_sum[:, None],
                np.log(2.0) * (all_parts.row_max + np.log2(all_parts.row_sum)),
                all_parts.seen,
                range(shape.seqlen_q),
            )
    return o, lse


def _partial(
    q: Head,
    q_rope: FloatArray,
    k: Head,
    k_rope: FloatArray,
    factor: float,
    blocks: range,
    rules: HeadRules,
) -> Partial:
    """Return what rows of a head make of some blocks of a sequence."""
    rows = range(len(q.token))
    softmax = OnlineSoftmax(_CODES, "float16", True, len(rows), k.matrix.shape[1])
    seen = np.zeros(len(rows), np.bool_)
    for block in blocks:
        keys = range(block * BLOCK, min((block + 1) * BLOCK, rules.mask.shape.seqlen_kv))
        some = k.tokens(keys)
        s = (scores(q, some) + q_rope @ k_rope[keys.start : keys.stop].T) * factor
        visible = rules.apply_to_log2(s, rows, keys)
        seen |= True if visible is None else visible.any(axis=1)
        softmax.step(s, some.matrix, some.token, visible)
    return Partial(softmax.o, softmax.row_max, softmax.row_sum, seen)
