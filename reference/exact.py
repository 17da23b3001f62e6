"""Attention in float64: the definition that every result is measured against."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArgumentError
from .arrays import FloatArray, Progress, Shape, check_scale, floating, spans
from .blas_threads import one_blas_thread
from .masking import Mask, weighted_sum

__all__ = ["attention"]


@one_blas_thread()
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    block: int = 1024,
    progress: Progress | None = None,
) -> tuple[FloatArray, FloatArray]:
    r"""Compute ``softmax(scale q kᵀ) v`` and the log-sum-exp of the logits.

    .. math:: s_{ij} = scale \sum_d q_{id} k_{jd}, \quad
              lse_i = \ln \sum_j e^{s_{ij}}, \quad o_{id} = \sum_j e^{s_{ij} - lse_i} v_{jd}

    with sums over the keys j that row i sees. A row that sees none has ``o = 0`` and
    ``lse = -inf``. NaN and infinities follow IEEE arithmetic through these formulas; a hidden key
    or value has no effect, whatever it holds.

    Parameters
    ----------
    q : array_like of float [batch, num_q_heads, seqlen_q, head_dim]
    k, v : array_like of float [batch, num_kv_heads, seqlen_kv, head_dim]
        `num_q_heads` is a multiple of `num_kv_heads`; query head h reads head
        ``h // (num_q_heads // num_kv_heads)``.
    scale : float, optional
        Factor of the logits, ``1/sqrt(head_dim)`` by default.
    is_causal : bool
        Hide key j from row i if ``j > i + seqlen_kv - seqlen_q``.
    block : int
        Rows and keys worked on at a time; memory beside inputs and outputs grows with its square.
    progress : callable, optional
        Called as ``progress(done, total)`` after each block of rows.

    Returns
    -------
    o : ndarray of float64 [batch, num_q_heads, seqlen_q, head_dim]
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
    mask = Mask(shape, is_causal)
    o = np.zeros(q.shape)
    lse = np.full(q.shape[:3], -np.inf)
    row_blocks = list(spans(shape.seqlen_q, block))
    done, total = 0, shape.batch * shape.num_q_heads * len(row_blocks)
    for b in range(shape.batch):
        for h in range(shape.num_q_heads):
            k_head = k[b, h // shape.group].astype(np.float64)
            v_head = v[b, h // shape.group].astype(np.float64)
            for rows in row_blocks:
                at = slice(rows.start, rows.stop)
                q_rows = q[b, h, at].astype(np.float64) * scale
                o[b, h, at], lse[b, h, at] = _rows(q_rows, k_head, v_head, mask, rows, block)
                done += 1
                if progress is not None:
                    progress(done, total)
    return o, lse


def _rows(
    q: FloatArray, k: FloatArray, v: FloatArray, mask: Mask, rows: range, block: int
) -> tuple[FloatArray, FloatArray]:
    """Attend some rows of one head; `q` [row, head_dim] is scaled already."""
    row_max = np.full(len(rows), -np.inf)
    row_sum = np.zeros(len(rows))
    o = np.zeros_like(q)
    # inf - inf, 0/0 and log 0 are answers here, not accidents.
    with np.errstate(all="ignore"):
        for keys in spans(mask.end(rows), block):
            s = q @ k[keys.start : keys.stop].T
            visible = mask.block(rows, keys)
            if visible is not None:
                s[~visible] = -np.inf
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
        o[mask.num_visible(rows) == 0] = 0.0
        return o, row_max + np.log(row_sum)
