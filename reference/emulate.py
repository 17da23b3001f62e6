"""The algorithm of the kernels on quantized operands, step by step, in float64.

A kernel differs from this by float32 rounding only: products of INT8 codes are exact integers in
both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from ..presets import resolve
from ..scheme import Scheme
from .arrays import FloatArray, Progress, check_scale, spans
from .blas_threads import one_blas_thread
from .heads import Head, scores
from .masking import UNLIMITED, visited
from .mods import MaskFunction, ScoreFunction
from .quantize import Operand, Operands, Quantized, block_of, operands, scope_of
from .rotation import unrotate
from .rounding import HalfType
from .scores import ScoreRules
from .smoothing import Q_BLOCK
from .smoothing import lse_shift as shift_of
from .softmax import OnlineSoftmax, PBlock

__all__ = ["Observer", "attention", "emulate"]

# Called with batch, query head, rows and keys of a block of P, and P.
Observer: TypeAlias = Callable[[int, int, range, range, PBlock], None]

# Rows worked on at a time. The working set, ROWS by p_block float64 numbers, fits a cache.
ROWS = 512


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    scheme: str | Scheme = "int8",
    scale: float | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = (UNLIMITED, UNLIMITED),
    softcap: float = 0.0,
    sinks: ArrayLike | None = None,
    attn_mask: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    score_mod: ScoreFunction | None = None,
    mask_mod: MaskFunction | None = None,
    compute: HalfType | None = None,
    progress: Progress | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Quantize Q, K and V under a scheme and attend: the GPU's result before its last rounding.

    Parameters
    ----------
    q : array_like of float [batch, num_q_heads, seqlen_q, head_dim]
    k, v : array_like of float [batch, num_kv_heads, seqlen_kv, head_dim]
        The head_dim of V may be another one.
    scheme : str or Scheme
    scale : float, optional
        Factor of the logits, ``1/sqrt(head_dim)`` by default.
    is_causal, window_size, softcap, sinks, attn_mask, alibi_slopes
        As for `exact.attention`. None of them is quantized; scales and means are of all tokens,
        hidden or not.
    score_mod, mask_mod : callable, optional
        As for `exact.attention`.
    compute : {"float16", "bfloat16"}, optional
        See `quantize.operands`.
    progress : callable, optional
        Called as ``progress(done, total)`` after each block of rows.

    Returns
    -------
    o : ndarray of float64 [batch, num_q_heads, seqlen_q, head_dim of v]
    lse : ndarray of float64 [batch, num_q_heads, seqlen_q]
        Of the original logits: the effect of K smoothing is added back.

    Raises
    ------
    ArgumentError
        If the arrays do not fit each other or an option makes no sense.
    """
    scheme = resolve(scheme)
    ops = operands(q, k, v, scheme, compute=compute)
    scale = check_scale(scale, ops.shape.head_dim)
    vector = ops.k.vector if isinstance(ops.k, Quantized) else None
    return emulate(
        ops,
        scheme,
        scale=scale,
        is_causal=is_causal,
        window_size=window_size,
        softcap=softcap,
        sinks=sinks,
        attn_mask=attn_mask,
        alibi_slopes=alibi_slopes,
        score_mod=score_mod,
        mask_mod=mask_mod,
        lse_shift=shift_of(q, vector, scale),
        progress=progress,
    )


@one_blas_thread()
def emulate(
    ops: Operands,
    scheme: str | Scheme,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    window_size: tuple[int, int] = (UNLIMITED, UNLIMITED),
    softcap: float = 0.0,
    sinks: ArrayLike | None = None,
    attn_mask: ArrayLike | None = None,
    alibi_slopes: ArrayLike | None = None,
    score_mod: ScoreFunction | None = None,
    mask_mod: MaskFunction | None = None,
    lse_shift: FloatArray | None = None,
    round_p: bool = True,
    row_blocks: Sequence[range] | None = None,
    observe: Observer | None = None,
    progress: Progress | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Attend with operands that are quantized already.

    The formulas are in ``docs/numerics.md``; `softmax.OnlineSoftmax` is the loop body, which takes
    the blocks of keys as `visited` orders them. NaN and
    infinities act through the scales: in Q they make the rows of their scope NaN, in K (or in V, if
    its scope is "token", "sorted" or "block") every row that sees a token of their scope, in a
    channel of V that channel of every row, in V with one scale everything. Rows that see no key
    have ``o = 0`` and ``lse = -inf`` all the same.

    Parameters
    ----------
    ops : Operands
        From `quantize.operands` or made of a GPU's codes.
    scheme : str or Scheme
        The one that `ops` was made for.
    scale, progress, is_causal, window_size, softcap, sinks, attn_mask, alibi_slopes
        As for `attention`.
    score_mod, mask_mod : callable, optional
        As for `attention`.
    lse_shift : ndarray of float64 [batch, num_q_heads, seqlen_q], optional
        What smoothing K took from each row's logits; see `smoothing.lse_shift`. It is added to lse,
        and with `softcap` or `score_mod` to the logits.
    round_p : bool
        With False, P stays as it is: for finding out what its rounding costs.
    row_blocks : sequence of range, optional
        Only these rows of each head, in as many steps; the others have ``o = 0`` and
        ``lse = -inf``. By default all of them.
    observe : callable, optional
        Shown each block of P; see `Observer`.

    Returns
    -------
    o : ndarray of float64 [batch, num_q_heads, seqlen_q, head_dim of v]
    lse : ndarray of float64 [batch, num_q_heads, seqlen_q]

    Raises
    ------
    ArgumentError
        If `ops` does not fit the scheme or itself, an option makes no sense, or K is smoothed and
        `softcap`, `sinks` or `score_mod` have no `lse_shift`.
    """
    scheme = resolve(scheme)
    _check(ops, scheme)
    shape = ops.shape
    to_log2 = check_scale(scale, shape.head_dim) * np.log2(np.e)
    rules = ScoreRules.of(
        shape,
        is_causal=is_causal,
        window_size=window_size,
        softcap=softcap,
        sinks=sinks,
        attn_mask=attn_mask,
        alibi_slopes=alibi_slopes,
        score_mod=score_mod,
        mask_mod=mask_mod,
    )
    smoothed = isinstance(ops.k, Quantized) and ops.k.vector is not None
    shifted = softcap or sinks is not None or score_mod is not None
    if smoothed and lse_shift is None and shifted:
        expected = "given with softcap, sinks or score_mod, as K is smoothed"
        raise ArgumentError("lse_shift", None, expected)
    head_dim_v = (ops.v.codes if isinstance(ops.v, Quantized) else ops.v).shape[3]
    o = np.zeros((shape.batch, shape.num_q_heads, shape.seqlen_q, head_dim_v))
    lse = np.full(o.shape[:3], -np.inf)
    if row_blocks is None:
        row_blocks = list(spans(shape.seqlen_q, ROWS))
    done, total = 0, shape.batch * shape.num_q_heads * len(row_blocks)
    for b in range(shape.batch):
        for h in range(shape.num_q_heads):
            q = Head.of(ops.q, b, h, "token").scaled(to_log2)
            k = Head.of(ops.k, b, h // shape.group, "token")
            v = Head.of(ops.v, b, h // shape.group)
            of_head = rules.of_head(b, h, lse_shift)
            for rows in row_blocks:
                at = slice(rows.start, rows.stop)
                softmax = OnlineSoftmax(scheme, ops.compute, round_p, len(rows), head_dim_v)
                seen = np.zeros(len(rows), np.bool_)
                with np.errstate(all="ignore"):
                    for keys in visited(of_head.mask.blocks(rows, scheme.p_block)):
                        v_block = v.tokens(keys)
                        s = scores(q.tokens(rows), k.tokens(keys))
                        if ops.delta is not None:
                            s += to_log2 * ops.delta[b, h][_blocks_of(rows), keys.start : keys.stop]
                        visible = of_head.apply_to_log2(s, rows, keys)
                        seen |= True if visible is None else visible.any(axis=1)
                        see = None if observe is None else partial(observe, b, h, rows, keys)
                        softmax.step(s, v_block.matrix, v_block.token, visible, see)
                    o_rows, lse_rows = softmax.finish()
                    o_rows = o_rows * v.channel
                    if isinstance(ops.v, Quantized) and ops.v.rotated:
                        o_rows = unrotate(o_rows)
                    o_rows = o_rows + v.vector
                    o[b, h, at], lse[b, h, at] = of_head.finish(o_rows, lse_rows, seen, rows)
                done += 1
                if progress is not None:
                    progress(done, total)
    return o, lse


def _blocks_of(rows: range) -> NDArray[np.intp]:
    """Return which block of smoothing each row of Q is in."""
    return np.arange(rows.start, rows.stop) // Q_BLOCK


def _check(ops: Operands, scheme: Scheme) -> None:
    expected = {
        "q": (scheme.q_scope, scheme.qk),
        "k": (scheme.k_scope, scheme.qk),
        "v": (scheme.v_scope, scheme.pv),
    }
    for name, (of_codes, product) in expected.items():
        x: Operand = getattr(ops, name)
        scope = None if product == "fp16" else scope_of(name, of_codes)
        found = x.scope if isinstance(x, Quantized) else None
        if found != scope:
            raise ArgumentError(f"ops.{name}.scope", found, f"{scope!r} for scheme {scheme.name}")
        if isinstance(x, Quantized) and x.codes.dtype != np.float64:  # unrounded fits any
            dtype = "float32" if product == "fp8" else "int8"
            if x.codes.dtype != dtype:
                raise ArgumentError(f"ops.{name}.codes", x.codes, f"of {dtype} as {product} codes")
        block = block_of(scheme, name)
        if isinstance(x, Quantized) and x.scope in ("block", "group") and x.block != block:
            raise ArgumentError(f"ops.{name}.block", x.block, f"{block} of the scheme")
