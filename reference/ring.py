"""Attention of ranks that have a part of a sequence each: what a ring makes of it, call by call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from ..presets import resolve
from ..scheme import Scheme
from .arrays import Float32Array, floating
from .emulate import emulate
from .layout import TOKEN_PAD
from .masking import UNLIMITED
from .merging import merge_states
from .quantize import Quantized, operands
from .rounding import saturate
from .smoothing import lse_shift

__all__ = ["Placement", "ring", "tokens_of_ranks"]

Placement: TypeAlias = Literal["zigzag", "contiguous", "striped"]


def ring(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    size: int,
    *,
    placement: Placement = "zigzag",
    scheme: str | Scheme = "int8",
    four_bits: bool = False,
    is_causal: bool = False,
    window_size: tuple[int, int] = (UNLIMITED, UNLIMITED),
    softcap: float = 0.0,
    sinks: ArrayLike | None = None,
    scale: float | None = None,
) -> tuple[NDArray[Any], Float32Array]:
    """Attend as `cuattn.distributed.ring_attention` does in host memory: bit for bit.

    In step t rank r attends to the keys of rank r - t, which have been quantized apart from those
    of other ranks. Where a window hides keys on the left, or runs of keys at equal distances do not
    end with whole blocks of 128, each run has been quantized apart. A run of its rows is a call, of
    the rows that see any of the keys; but a run that sees all keys joins the one before it, if that
    reaches to its end and nothing hides keys on the left of it. Results of calls are
    rounded to the type of `q`, and merged in this order. Of schemes that smooth Q, or give several
    rows of it one scale, the result is another one.

    Parameters
    ----------
    q : array_like of float [batch, num_q_heads, tokens, head_dim]
    k, v : array_like of float [batch, num_kv_heads, tokens, head_dim]
        All of the sequence.
    size : int
        Ranks; more than one, or the result is that of `emulate.attention`.
    placement : {"zigzag", "contiguous", "striped"}
    scheme : str or Scheme
    four_bits : bool
        Quantize K and V to 4 bits with a scale per token, and attend in 8: the wire "int4".
    is_causal, window_size, softcap, sinks, scale
        As for `emulate.attention`.

    Returns
    -------
    o : ndarray [batch, num_q_heads, tokens, head_dim]
        In the order of the sequence and in the type of `q`.
    lse : ndarray of float32 [batch, num_q_heads, tokens]

    Raises
    ------
    ArgumentError
        If the arrays do not fit each other or an option makes no sense.
    """
    q, k, v = floating("q", q), floating("k", k), floating("v", v)
    left, right = window_size[0], 0 if is_causal else window_size[1]
    ranks = tokens_of_ranks(q.shape[2], size, placement)
    o = np.zeros((*q.shape[:3], v.shape[3]), q.dtype)
    lse: Float32Array = np.zeros(q.shape[:3], np.float32)
    for rank, own in enumerate(ranks):
        rows = np.concatenate(own)
        found: list[list[tuple[Any, Any]]] = [[] for _ in rows]
        for step in range(size):
            keys_of_rank = ranks[(rank - step) % size]
            if left == UNLIMITED and (right == UNLIMITED or _are_whole_blocks(keys_of_rank[:-1])):
                keys_of_rank = [np.concatenate(keys_of_rank)]
            for keys in keys_of_rank:
                for first, last, seen in _calls(own, keys, left, right):
                    part = _attend(
                        *(q[:, :, rows[first:last]], k[:, :, keys], v[:, :, keys]),
                        resolve(scheme),
                        four_bits,
                        seen,
                        scale,
                        softcap,
                    )
                    for i in range(first, last):
                        found[i].append((part[0][:, :, i - first], part[1][:, :, i - first]))
        for row, parts in zip(rows, found, strict=True):
            o[:, :, row], lse[:, :, row] = _merged(parts, sinks, o[:, :, row])
    return o, lse


def tokens_of_ranks(total: int, size: int, placement: Placement) -> list[list[NDArray[np.intp]]]:
    """Return the positions of each rank's tokens: runs at equal distances, in the rank's order."""
    every = np.arange(total)
    if placement == "striped":
        return [[every[rank::size]] for rank in range(size)]
    if placement == "contiguous":
        return [[part] for part in np.array_split(every, size)]
    if placement != "zigzag":
        raise ArgumentError("placement", placement, "'zigzag', 'contiguous' or 'striped'")
    chunks = np.array_split(every, 2 * size)
    pairs = [(chunks[rank], chunks[-1 - rank]) for rank in range(size)]
    ranks = []
    for one, other in pairs:
        adjoin = not len(one) or not len(other) or one[-1] + 1 == other[0]
        ranks.append([np.concatenate([one, other])] if adjoin else [one, other])
    return ranks


def _are_whole_blocks(runs: list[NDArray[np.intp]]) -> bool:
    return all(len(run) % TOKEN_PAD == 0 for run in runs)


def _calls(
    runs: list[NDArray[np.intp]], keys: NDArray[np.intp], left: int, right: int
) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Yield the calls on a rank's rows: the first one, that behind the last, and what they see."""
    first, held = 0, None
    for run in runs:
        ahead = keys[None, :] - run[:, None]
        seen = np.ones(ahead.shape, np.bool_)
        if left != UNLIMITED:
            seen &= ahead >= -left
        if right != UNLIMITED:
            seen &= ahead <= right
        some = np.flatnonzero(seen.any(axis=1))
        if some.size:
            start, stop = int(some[0]), int(some[-1]) + 1
            call = first + start, first + stop, seen[start:stop]
            whole = call[:2] == (first, first + len(run)) and seen.all()
            if whole and held is not None and held[1] == first and held[2][:, 0].all():
                call = held[0], call[1], np.concatenate([held[2], call[2]])
                held = None
            if held is not None:
                yield held
            held = call
        first += len(run)
    if held is not None:
        yield held


def _attend(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    scheme: Scheme,
    four_bits: bool,
    seen: NDArray[np.bool_],
    scale: float | None,
    softcap: float,
) -> tuple[NDArray[Any], Float32Array]:
    """Return what a call on a part gives, in the types in which it does."""
    if four_bits:
        scheme = Scheme(
            "of 4 bits", smooth_k=scheme.smooth_k, smooth_v=scheme.smooth_v, rotate=scheme.rotate
        )
        of_four = operands(q, k, v, replace(scheme, qk="int4", pv="int4"))
        ops = replace(operands(q, k, v, scheme), k=of_four.k, v=of_four.v)
    else:
        ops = operands(q, k, v, scheme)
    scale = 1 / np.sqrt(q.shape[3]) if scale is None else scale
    vector = ops.k.vector if isinstance(ops.k, Quantized) else None
    o, lse = emulate(
        ops,
        scheme,
        scale=scale,
        softcap=softcap,
        attn_mask=None if seen.all() else seen,
        lse_shift=lse_shift(q, vector, scale),
    )
    with np.errstate(over="ignore"):
        return saturate(o, str(q.dtype)).astype(q.dtype), lse.astype(np.float32)


def _merged(
    parts: list[tuple[Any, Any]], sinks: ArrayLike | None, like: NDArray[Any]
) -> tuple[Any, Any]:
    """Merge what a row has found: the sinks come last, as keys without a value."""
    if sinks is not None or not parts:
        of_head = np.asarray(-np.inf if sinks is None else sinks, np.float32)
        parts = [*parts, (np.zeros_like(like), np.broadcast_to(of_head, like.shape[:2]))]
    if len(parts) == 1:
        return parts[0]
    return merge_states([o for o, _ in parts], [lse for _, lse in parts])
