"""Many queries to a KV cache in host memory: what kernels do, in the reference's arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays.host import heads_first, score_values, to_host
from ..arrays.view import Array
from ..emulation.arrays import TOKENS, delivered, output_on_host, values_on_host
from ..kv_format import KVFormat
from ..operands.problem import Problem
from ..operands.score_arrays import SCORE_NAMES
from ..reference.arrays import FloatArray
from ..reference.kv_cache import CachedOperand
from ..reference.mods import of_sequence
from ..reference.prefill import prefill
from ..reference.varlen import sequences
from .contents import cached_operands
from .fine import fine_tokens
from .host_arrays import of_tokens
from .host_rope import Turn, turned
from .memory import Memory
from .query import QueryOptions
from .rope import GivenRope, check_reach, next_positions, places
from .rows import Packed, longest, prefill_problem
from .scores import ScoreArrays

__all__ = ["prefill_on_host"]


def prefill_on_host(
    memory: Memory,
    q: Any,
    signature: Array,
    options: QueryOptions,
    scores: Mapping[str, Any],
    arrays: ScoreArrays,
    out: Any,
    cu_seqlens_q: Any,
    packed: Packed | None,
    rope: GivenRope | None = None,
    mods: tuple[Callable[..., Any] | None, ...] = (None, None),
) -> tuple[Any, Any]:
    """Do what `KVCache.attend` says of many rows; return the output, and lse or None.

    Parameters
    ----------
    signature : Array
        Of `q`.
    arrays : ScoreArrays
        Those of `scores`.
    packed : Packed, optional
        What is to be known of `cu_seqlens_q`.
    rope : GivenRope, optional
    mods : tuple of callable or None
        `score_mod` and `mask_mod` of the reference.
    """
    geometry, lengths = memory.geometry, memory.host_state.lengths
    problem = prefill_problem(
        geometry,
        signature,
        options,
        arrays,
        packed,
        memory.k_offset is not None,
        longest(int(lengths.max()), geometry.capacity),
    )
    inputs: dict[Any, Any] = {"q": q, **scores}
    if packed is not None:
        inputs["cu_seqlens_q"] = cu_seqlens_q
    target = None if out is None else output_on_host(out, problem, inputs)
    extras: dict[str, NDArray[Any]] = {
        name: score_values(scores[name], name, whole_last=True)
        for name in SCORE_NAMES
        if name in scores
    }
    if "attn_mask" in extras:
        extras["attn_mask"] = of_tokens(extras["attn_mask"], lengths)
    cached = _Cached.of(memory, lengths)
    if packed is None:
        rows = heads_first(to_host(q, "q").values, problem.layout)
        if rope is not None:
            n = rows.shape[2]
            rows = turned(memory, rope, rows, signature.dtype, np.full(len(lengths), n), behind=n)
        o, lse = cached.attended(problem, rows, extras, *mods)
        return delivered(o, lse, problem, q, out, target)
    rows = values_on_host(q, "q", TOKENS)
    turn, positions = None, None
    if rope is not None:
        turn = Turn(memory, rope, signature.dtype)
        positions = _packed_positions(memory, rope, turn, problem.q.tokens)
    o, lse = np.zeros(rows.shape), np.full(rows.shape[:3], -np.inf)
    if out is not None:  # tokens of no sequence stay
        o[...] = values_on_host(out, "out", TOKENS)
    bounds, ends = score_values(cu_seqlens_q, "cu_seqlens_q"), next_positions(memory.host_state)
    totals, most = (problem.q.tokens, int(lengths.sum())), (problem.seqlen_q, None)
    of_cache = np.concatenate([[0], np.cumsum(lengths)])
    for each in sequences(bounds, of_cache, totals, max_seqlens=most):
        at = slice(each.number, each.number + 1)
        own = {name: x[at] if x.ndim == 2 else x for name, x in extras.items()}
        own_mods = [of_sequence(mod, each.number) for mod in mods]
        own_tokens = cached.of_sequence(each.number)
        of_rows = rows[:, :, each.rows]
        if turn is not None:
            count = of_rows.shape[2]
            beside = places(ends[at] - count, count)
            own_positions = beside if positions is None else positions[None, each.rows]
            of_rows = turn(of_rows, own_positions)
        made = own_tokens.attended(problem, of_rows, own, *own_mods)
        o[:, :, each.rows], lse[:, :, each.rows] = made
    return delivered(o, lse, problem, q, out, target)


def _packed_positions(
    memory: Memory, given: GivenRope, turn: Turn, tokens: int
) -> NDArray[np.int64] | None:
    """Return the caller's positions; None if queries are where the last tokens of a sequence are.

    Raises
    ------
    ArgumentError
        As `KVCache.attend`.
    """
    if given.positions is not None:
        return turn.positions(np.ones(tokens, np.bool_))
    check_reach(turn.sizes, int(next_positions(memory.host_state).max()))
    return None


class _Cached(NamedTuple):
    """What a cache has; the fields are arguments of `prefill`."""

    k: CachedOperand
    v: CachedOperand
    lengths: NDArray[np.int64]
    is_fine: NDArray[np.bool_] | None
    kv_format: KVFormat

    @staticmethod
    def of(memory: Memory, lengths: NDArray[np.int64]) -> _Cached:
        k, v = cached_operands(memory, lengths)
        is_fine = None
        if memory.geometry.kv_format.nested:
            is_fine = np.zeros((len(lengths), int(lengths.max())), np.bool_)
            for b in np.flatnonzero(lengths).tolist():
                n = int(lengths[b])
                is_fine[b, :n] = fine_tokens(memory, b, n)[:n]
        return _Cached(k, v, lengths, is_fine, memory.geometry.kv_format)

    def of_sequence(self, b: int) -> _Cached:
        here = slice(b, b + 1)
        return _Cached(
            self.k.of_sequence(b),
            self.v.of_sequence(b),
            self.lengths[here],
            None if self.is_fine is None else self.is_fine[here],
            self.kv_format,
        )

    def attended(
        self,
        problem: Problem,
        q: NDArray[Any],
        extras: Mapping[str, NDArray[Any]],
        score_mod: Callable[..., Any] | None,
        mask_mod: Callable[..., Any] | None,
    ) -> tuple[FloatArray, FloatArray]:
        return prefill(
            q,
            self.k,
            self.v,
            self.lengths,
            k_bits=self.kv_format.k_bits,
            v_bits=self.kv_format.v_bits,
            is_fine=self.is_fine,
            scale=problem.softmax_scale,
            is_causal=problem.is_causal,
            window_size=problem.scores.window_size,
            softcap=problem.scores.softcap,
            sinks=extras.get("sinks"),
            attn_mask=extras.get("attn_mask"),
            alibi_slopes=extras.get("alibi_slopes"),
            score_mod=score_mod,
            mask_mod=mask_mod,
        )
