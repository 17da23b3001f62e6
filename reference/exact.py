"""Attention in float64: the definition that every result is measured against."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArgumentError
from .arrays import FloatArray, Progress, Shape, check_scale, floating, spans
from .blas_threads import one_blas_thread
from .masking import UNLIMITED, weighted_sum
from .mods import MaskFunction, ScoreFunction
from .scores import HeadRules, ScoreRules

__all__ = ["attention"]


@one_blas_thread()
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
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
    seqused_k: ArrayLike | None = None,
    block: int = 1024,
    progress: Progress | None = None,
) -> tuple[FloatArray, FloatArray]:
    r"""Compute ``softmax(scale q kᵀ) v`` and the log-sum-exp of the logits.

    .. math:: s_{ij} = scale \sum_d q_{id} k_{jd}, \quad
              lse_i = \ln \sum_j e^{s_{ij}}, \quad o_{id} = \sum_j e^{s_{ij} - lse_i} v_{jd}

    with sums over the keys j that row i sees. A row that sees none has ``o = 0`` and
    ``lse = -inf``. NaN and infinities follow IEEE arithmetic through these formulas; a hidden key
    or value has no effect, whatever it holds.

    Options may be combined. They change the logits in this order: `softcap`, `alibi_slopes`, an
    `attn_mask` of floats, `score_mod`; then keys are hidden, by all that hides some. With ``n``
    keys, row i stands beside key ``i + n - seqlen_q``, its own.

    Parameters
    ----------
    q : array_like of float [batch, num_q_heads, seqlen_q, head_dim]
    k, v : array_like of float [batch, num_kv_heads, seqlen_kv, head_dim]
        The head_dim of `v` may be another. `num_q_heads` is a multiple of `num_kv_heads`; query
        head h reads head ``h // (num_q_heads // num_kv_heads)``.
    scale : float, optional
        Factor of the logits, ``1/sqrt(head_dim)`` by default.
    is_causal : bool
        Hide the keys behind a row's own.
    window_size : tuple of int (left, right)
        How many keys before and behind its own a row sees; -1 for all. ``(W - 1, 0)`` are W keys.
    softcap : float
        Make a logit s ``softcap * tanh(s / softcap)`` (Gemma 2, arXiv 2408.00118); 0 does not.
    sinks : array_like of float [num_q_heads], optional
        A logit of each head that takes part in the softmax and has no value, neither scaled nor
        capped (gpt-oss). `lse` includes it, and is equal to it in rows that see no key.
    attn_mask : array_like of bool or float, optional
        Broadcast to [batch, num_q_heads, seqlen_q, seqlen_kv]. True: the key is seen. Floats are
        added to the logits; -inf, and the least number of their type, hide the key.
    alibi_slopes : array_like of float, optional
        Broadcast to [batch, num_q_heads]. The slope times a key's distance from the row's own is
        taken from its logit (ALiBi, arXiv 2108.12409).
    score_mod : callable, optional
        Returns what logits become: a function of any of `score`, float64 [row, key], and of where
        they are: `batch` and `head`, integers, `q` and `own` [row, 1], the row's index and the key
        that it stands beside, and `kv` [1, key], by these names. -inf hides the key
        (FlexAttention, arXiv 2412.05496).
    mask_mod : callable, optional
        Likewise, without `score`: whether a row sees a key.
    seqused_k : array_like of int [batch], optional
        How many keys each sequence has; those behind are padding, which nothing sees.
    block : int
        Rows and keys worked on at a time; memory beside inputs and outputs grows with its square.
    progress : callable, optional
        Called as ``progress(done, total)`` after each block of rows.

    Returns
    -------
    o : ndarray of float64 [batch, num_q_heads, seqlen_q, head_dim of v]
    lse : ndarray of float64 [batch, num_q_heads, seqlen_q]

    Raises
    ------
    ArgumentError
        If the arrays do not fit each other or an option makes no sense.

    Notes
    -----
    The sums run over blocks of keys with a running maximum (Milakov and Gimelshein, arXiv
    1805.02867), which in float64 is as accurate as the plain formula and needs bounded memory.
    """
    q, k, v = floating("q", q), floating("k", k), floating("v", v)
    shape = Shape.of(q.shape, k.shape, v.shape)
    scale = check_scale(scale, shape.head_dim)
    if block < 1:
        raise ArgumentError("block", block, "at least 1")
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
        seqused_k=seqused_k,
    )
    o = np.zeros((*q.shape[:3], v.shape[3]))
    lse = np.full(q.shape[:3], -np.inf)
    row_blocks = list(spans(shape.seqlen_q, block))
    done, total = 0, shape.batch * shape.num_q_heads * len(row_blocks)
    for b in range(shape.batch):
        for h in range(shape.num_q_heads):
            k_head = k[b, h // shape.group].astype(np.float64)
            v_head = v[b, h // shape.group].astype(np.float64)
            of_head = rules.of_head(b, h)
            for rows in row_blocks:
                at = slice(rows.start, rows.stop)
                q_rows = q[b, h, at].astype(np.float64) * scale
                o[b, h, at], lse[b, h, at] = _rows(q_rows, k_head, v_head, of_head, rows, block)
                done += 1
                if progress is not None:
                    progress(done, total)
    return o, lse


def _rows(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    rules: HeadRules,
    rows: range,
    block: int,
) -> tuple[FloatArray, FloatArray]:
    """Attend some rows of one head; `q` [row, head_dim] is scaled already."""
    row_max = np.full(len(rows), -np.inf)
    row_sum = np.zeros(len(rows))
    seen = np.zeros(len(rows), np.bool_)
    o = np.zeros((len(rows), v.shape[1]))
    # inf - inf, 0/0 and log 0 are answers here, not accidents.
    with np.errstate(all="ignore"):
        for keys in rules.mask.blocks(rows, block):
            s = q @ k[keys.start : keys.stop].T
            visible = rules.apply(s, rows, keys)
            seen |= True if visible is None else visible.any(axis=1)
            new_max = np.maximum(row_max, s.max(axis=1))
            # A row that has seen nothing has a maximum of -inf, and -inf - -inf would be NaN.
            base = np.where(new_max == -np.inf, 0.0, new_max)
            p = np.exp(np.subtract(s, base[:, None], out=s), out=s)
            shrink = np.exp(row_max - base)
            row_sum = row_sum * shrink + p.sum(axis=1)
            o *= shrink[:, None]
            o += weighted_sum(p, v[keys.start : keys.stop], visible)
            row_max = new_max
        o /= row_sum[:, None]
        return rules.finish(o, row_max + np.log(row_sum), seen, rows)
