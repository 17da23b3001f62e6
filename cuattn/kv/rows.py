"""Queries to a KV cache that are many: what is checked of them, and the call as `attention` has it.

Many rows share what is made of the cache once, the operands of `attention`; few are decoded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

from ..arrays.view import Array
from ..common.sizes import round_up
from ..errors import ArgumentError
from ..kv_format import KVFormat
from ..operands import score_arrays
from ..operands.lengths import LengthArrays, Lengths, Limits, array_of_tokens
from ..operands.masks import ScoreMask
from ..operands.operand import Operand, in_order, operand_of
from ..operands.options import Options
from ..operands.problem import Problem
from ..operands.scores import ScoreOptions
from ..reference.prefill import prefill_scheme
from ..reference.sorting import SORTED_BLOCK
from ..specs.attention import Type
from .device import SCHEME
from .geometry import KVGeometry
from .prefill_parts import Part
from .query import Query, QueryOptions, Scores
from .scores import Extra, ScoreArrays

__all__ = [
    "MANY_ROWS",
    "Packed",
    "are_many",
    "check_limit",
    "in_codes",
    "longest",
    "prefill_problem",
    "with_tokens",
]

# Queries of a sequence, times the query heads that share a head of K and V, from which on a call is
# one of many: decoding reads the cache once for every 32 of them. On an H200 both ways take the
# same time there, of one sequence with 8 heads (docs/results.md).
MANY_ROWS = 1024


class Packed(NamedTuple):
    """How queries of all sequences lie end to end.

    Parameters
    ----------
    bounds : Array
        `cu_seqlens_q`.
    most : int or None
        `max_seqlen_q` as the caller gave it.
    """

    bounds: Array
    most: int | None = None


def are_many(geometry: KVGeometry, q: Array, layout: str, packed: Packed | None) -> bool:
    """Whether a call takes the way of many rows, if its arguments make sense."""
    if packed is not None:
        return True
    if len(q.shape) != 4 or not isinstance(layout, str):
        return False
    _, heads, tokens, _ = in_order(q.shape, layout)
    return heads * tokens >= MANY_ROWS * geometry.num_kv_heads


def prefill_problem(
    geometry: KVGeometry,
    q: Array,
    options: QueryOptions,
    arrays: ScoreArrays,
    packed: Packed | None,
    smoothed: bool,
    tokens: int,
) -> Problem:
    """Check everything but the output, and return the call as one of `attention`.

    Parameters
    ----------
    smoothed : bool
        Whether keys have an offset.
    tokens : int
        No sequence is longer: a multiple of 128.

    Raises
    ------
    ArgumentError
        As `Query.of`, or for `cu_seqlens_q` and what goes with it.
    """
    mask = None
    if packed is None:
        query = Query.of(geometry, q, options, arrays)
        of_call = query.problem
        operand, mask = of_call.q, _mask_of(query.scores)
    else:
        operand, of_call = _of_packed(geometry, q, options, arrays)
    bounds = None if packed is None else packed.bounds
    _check_bounds(bounds, geometry.batch)
    of_sequence = (geometry.num_kv_heads, tokens, geometry.kv_format.head_dim)
    lengths = Lengths.of(
        LengthArrays(
            bounds,
            None if bounds is None else bounds._replace(misalignment=0, strides=(1,)),
            Array((geometry.batch,), (1,), "int32", q.device),
        ),
        Limits(None if packed is None else packed.most),
        {"q": operand.shape, "k": (1, *_keys(of_sequence, geometry.batch, packed))},
        q.device,
    )
    assert lengths is not None
    lengths = replace(lengths, max_seqlen_k=tokens)
    # What a window hides is told by the capacity: the kernel is the same whatever the lengths.
    scores = ScoreOptions.of(
        (geometry.batch, operand.shape[1], lengths.max_seqlen_q, geometry.capacity),
        q.device,
        score_arrays.ScoreArrays(arrays.sinks, arrays.alibi_slopes, mods=arrays.mods),
        is_causal=of_call.is_causal,
        window_size=options.window_size,
        softcap=options.softcap,
        softmax_scale=of_call.softmax_scale,
        mods=options.mods,
    )
    kv_format = geometry.kv_format
    problem = replace(
        of_call,
        q=operand,
        scheme=prefill_scheme(kv_format.rotate, smoothed),
        scores=replace(scores, attn_mask=mask),
        lengths=lengths,
    )
    return with_tokens(problem, Part(0, geometry.batch, 0, of_sequence[0]), tokens)


def with_tokens(problem: Problem, part: Part, tokens: int) -> Problem:
    """Return a part of a call, with K and V of so many tokens."""
    lengths = problem.lengths
    assert lengths is not None
    batch, heads, head_dim = part.sequences, part.heads, problem.q.shape[3]
    total = batch * tokens if lengths.packed else tokens
    shape = (1 if lengths.packed else batch, heads, total, head_dim)
    keys = Operand(shape, (), problem.q.dtype, aligned=True, coded=True)
    rows = problem.q.shape[2]
    queries = replace(problem.q, shape=(shape[0], heads * problem.group, rows, head_dim))
    scores = replace(
        problem.scores,
        first_sequence=part.sequence,
        first_head=part.head * problem.group,
    )
    of_part = replace(lengths, batch=batch, total_k=total)
    return replace(problem, q=queries, k=keys, v=keys, lengths=of_part, scores=scores)


def in_codes(problem: Problem, kv_format: KVFormat, queries: bool) -> Problem:
    """Return a call as the kernels of attention have it: of codes, which have padding.

    Parameters
    ----------
    queries : bool
        Whether those of Q are made already, too.
    """
    channels = kv_format.padded
    keys = replace(problem.k, shape=(*problem.k.shape[:3], channels))
    rows = problem.q
    if queries:
        rows = Operand((*rows.shape[:3], channels), (), rows.dtype, aligned=True, coded=True)
    return replace(problem, q=rows, k=keys, v=keys)


def longest(tokens: int, capacity: int) -> int:
    """Return what plans are made for where no sequence is longer than `tokens`.

    An eighth more at most, so that there are few of them.
    """
    step = max(1 << max(tokens.bit_length() - 4, 0), SORTED_BLOCK)
    return round_up(min(max(round_up(tokens, step), SORTED_BLOCK), capacity), SORTED_BLOCK)


def _mask_of(scores: Scores) -> ScoreMask | None:
    """Return a mask of a sequence's last tokens as `attention` has it."""
    mask = scores.attn_mask
    if mask is None:
        return None
    of_batch, of_head, of_row, of_key = mask.strides
    dtype: Literal["bool"] | Type = "bool"
    if mask.dtype is not Extra.boolean:
        dtype = Type(mask.dtype.value)
    return ScoreMask(dtype, (of_batch, of_head, of_row, of_key), columns=scores.mask_columns)


def _keys(
    of_sequence: tuple[int, int, int], batch: int, packed: Packed | None
) -> tuple[int, int, int]:
    heads, tokens, head_dim = of_sequence
    return heads, tokens if packed is None else batch * tokens, head_dim


def check_limit(bounds: object, most: object) -> None:
    """Check that `max_seqlen_q` is given with `cu_seqlens_q` only.

    Raises
    ------
    ArgumentError
        If it is not.
    """
    if bounds is None and most is not None:
        raise ArgumentError("max_seqlen_q", most, "None without cu_seqlens_q")


def _check_bounds(bounds: Array | None, batch: int) -> None:
    if bounds is not None and bounds.shape != (batch + 1,):
        expected = f"({batch + 1},), for the {batch} sequences of the cache"
        raise ArgumentError("cu_seqlens_q.shape", bounds.shape, expected)


def _of_packed(
    geometry: KVGeometry, q: Array, options: QueryOptions, arrays: ScoreArrays
) -> tuple[Operand, Problem]:
    """Check queries that lie end to end."""
    if arrays.attn_mask is not None:
        found = f"an array {arrays.attn_mask.shape}"
        raise ArgumentError("attn_mask", found, "None, as cu_seqlens_q is given")
    one = array_of_tokens("q", q)
    layout = "NHD" if options.layout == "HND" else options.layout
    operand = operand_of("q", one, SCHEME, layout)
    head_dim = geometry.kv_format.head_dim
    if operand.shape[3] != head_dim:
        expected = f"of head_dim {head_dim}, as the cache has it"
        raise ArgumentError("q.shape", q.shape, expected)
    stand_in = Array((1, 0, geometry.num_kv_heads, head_dim), (0, 0, 0, 1), q.dtype, q.device)
    scale, is_causal, return_lse = options[:3]
    problem = Problem.of(
        one, stand_in, stand_in, Options(SCHEME, scale, is_causal, return_lse, layout)
    )
    return operand, replace(problem, layout=options.layout)
