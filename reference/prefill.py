"""Attention of many queries to a quantized KV cache: that of the scheme "int8" on its tokens.

A kernel differs from this by float32 rounding only, as `emulate` has it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..presets import resolve
from ..scheme import Scheme
from .arrays import FloatArray, Shape, check_scale, floating, whole_counts
from .emulate import emulate
from .kv_cache import CachedOperand
from .kv_operands import sorted_operands
from .masking import UNLIMITED
from .mods import MaskFunction, ScoreFunction, of_sequence
from .quantize import Operands
from .quantized import quantize
from .smoothing import lse_shift

__all__ = ["prefill", "prefill_scheme"]


@cache
def prefill_scheme(rotated: bool, smoothed: bool) -> Scheme:
    """Return "int8" for a cache whose keys are rotated, or less an offset, or not."""
    return replace(
        resolve("int8"),
        rotate="qk" if rotated else "none",
        smooth_k="sample" if smoothed else "none",
        smooth_v="none",
    )


def prefill(
    q: ArrayLike,
    k: CachedOperand,
    v: CachedOperand,
    lengths: ArrayLike | None = None,
    *,
    k_bits: int = 8,
    v_bits: int = 8,
    is_fine: NDArray[np.bool_] | None = None,
    scale: float | None = None,
    is_causal: bool = True,
    window_size: tuple[int, int] = (UNLIMITED, UNLIMITED),
    softcap: float = 0.0,
    sinks: ArrayLike | None = None,
    attn_mask: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    score_mod: ScoreFunction | None = None,
    mask_mod: MaskFunction | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Attend to a cache as to operands that are quantized for "int8": `sorted_operands`.

    Parameters
    ----------
    q : array_like of float [batch, num_q_heads, seqlen_q, head_dim]
    k, v : CachedOperand
    lengths : array_like of int [batch], optional
        Tokens of each sequence, by default all; those beyond are not read.
    k_bits, v_bits : {8, 4}
        Of the codes.
    is_fine : ndarray of bool [batch, token], optional
        Of nested codes, which tokens have 8 bits.
    scale, is_causal, window_size, softcap, sinks, attn_mask, alibi_slopes, score_mod, mask_mod
        As for `decode.decode`.

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
    scale = check_scale(scale, shape.head_dim)
    counts = whole_counts("lengths", lengths, shape.batch, shape.seqlen_kv)
    scheme = prefill_scheme(k.rotated, k.vector is not None)
    o, lse = np.zeros(q.shape), np.full(q.shape[:3], -np.inf)
    if sinks is not None:
        lse[:] = np.asarray(sinks, np.float64)[:, None]
    slopes = None if alibi_slopes is None else np.asarray(alibi_slopes)
    mask = None if attn_mask is None else np.asarray(attn_mask)
    padding = [(0, 0)] * 3 + [(0, k.codes.shape[3] - shape.head_dim)]
    for b in np.flatnonzero(counts).tolist() if shape.seqlen_q else ():
        here = slice(b, b + 1)
        of_k, of_v = k.of_sequence(b), v.of_sequence(b)
        keys, values = sorted_operands(
            of_k,
            of_v,
            int(counts[b]),
            k_bits=k_bits,
            v_bits=v_bits,
            is_fine=None if is_fine is None else is_fine[b],
        )
        rows = quantize(np.pad(q[here], padding), scope="token", rotated=k.rotated)
        of_units, lse[here] = emulate(
            Operands(rows, keys, values),
            scheme,
            scale=scale,
            is_causal=is_causal,
            window_size=window_size,
            softcap=softcap,
            sinks=sinks,
            attn_mask=None if mask is None else _of_sequence(mask, b, int(counts[b])),
            alibi_slopes=slopes if slopes is None or slopes.ndim == 1 else slopes[here],
            score_mod=of_sequence(score_mod, b),
            mask_mod=of_sequence(mask_mod, b),
            lse_shift=lse_shift(q[here], of_k.vector, scale),
        )
        o[here] = of_units[..., : shape.head_dim]
    return o, lse


def _of_sequence(mask: NDArray[Any], b: int, length: int) -> NDArray[Any]:
    """Return what a mask says of the tokens of one sequence."""
    own = mask[b : b + 1] if mask.ndim == 4 and len(mask) > 1 else mask
    return own[..., :length]
