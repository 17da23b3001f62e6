"""Calls on a KV cache in host memory: the units of the kernels, the reference's arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.host import heads_first, score_values, to_host
from ..common.sizes import ceil_div
from ..emulation.arrays import delivered, output_on_host
from ..emulation.mods import function_of
from ..kv_format import UNIT_TOKENS, KVFormat
from ..operands.score_arrays import SCORE_NAMES
from ..operands.score_mod import MaskMod, ScoreMod
from ..reference.decode import decode
from ..reference.kv_cache import quantize_keys, quantize_nested, quantize_values
from ..reference.kv_offsets import bare_tokens, offsets
from .append_call import token_operands
from .contents import cached_operands, read_units, write_units
from .eviction import rolled
from .fine import fine_places, halves, read_fine
from .host_arrays import fresh_on_host, host_signature, of_tokens
from .host_prefill import prefill_on_host
from .host_rope import turned
from .memory import Memory
from .moves import evict
from .packed_tokens import GivenTokens
from .plans import appended
from .query import Query, QueryOptions
from .rope import GivenRope
from .rows import Packed, are_many, check_limit
from .scores import ScoreArrays
from .units import Coded, pack_units, unpack_units

__all__ = ["append_on_host", "attend_on_host"]


def append_on_host(
    memory: Memory,
    k: Any,
    v: Any,
    given: GivenTokens,
    layout: str,
    stream: Any,
    given_rope: GivenRope | None = None,
) -> None:
    """Do what `KVCache.append` says, of arrays in host memory."""
    with memory.call_on(stream):
        of_k, of_v = host_signature(k, "k"), host_signature(v, "v")
        sequences = given.checked_sequences(memory.geometry.batch)
        tokens, _ = token_operands(memory.geometry, of_k, of_v, layout, sequences is not None)
        fresh, packed = fresh_on_host(memory, given, sequences, tokens.tokens)
        both = [to_host(x, name).values for name, x in (("k", k), ("v", v))]
        if packed is not None:
            both, layout = [packed.by_sequence(x) for x in both], "NHD"
        keys, values = (heads_first(x, layout) for x in both)
        if given_rope is not None:
            keys = turned(memory, given_rope, keys, of_k.dtype, fresh, packed=packed)
        host_state = memory.host_state
        old = rolled(host_state, fresh)
        plan = appended(host_state if old is None else old.after, fresh, of_k.shape)
        if old is not None:
            evict(memory, old)
        means = memory.k_offset is not None and plan.begins
        with memory.transaction(plan.after, *memory.undoing(plan, offsets=means)):
            memory.write_pages(plan)
            if means:
                lengths = memory.lengths
                bare = bare_tokens(fresh, lengths, memory.bare)
                grows = bare if memory.fixed is None else bare * (memory.fixed == 0)
                memory.k_offset[...] = offsets(keys, fresh, lengths, memory.k_offset, grows)
                memory.bare[...] = bare
            _write_tokens(memory, keys, values, fresh)
            memory.write_lengths(plan.after)


def _write_tokens(
    memory: Memory, keys: NDArray[Any], values: NDArray[Any], counts: NDArray[np.int64]
) -> None:
    """Quantize the first tokens of each sequence and put them after those that there are."""
    geometry, lengths = memory.geometry, memory.lengths.astype(np.int64)
    kv_format = geometry.kv_format
    if kv_format.nested:
        both = quantize_nested(keys, values, kv_format, memory.k_offset, lengths, memory.bare)
        (k_upper, k_lower), (v_upper, v_lower) = (halves(x) for x in both)
        # First: what is then left half done has lost bits and nothing else.
        memory.coarse[...] = geometry.coarse_after(memory.coarse, lengths, lengths + counts)
        of_units: tuple[Coded, Coded] = (k_upper, v_upper)
    else:
        of_keys = quantize_keys(keys, kv_format, memory.k_offset, lengths, memory.bare)
        of_units = (of_keys, quantize_values(values, kv_format))
    for b in np.flatnonzero(counts).tolist():
        length, count = int(lengths[b]), int(counts[b])
        first, last = length // UNIT_TOKENS, ceil_div(length + count, UNIT_TOKENS)
        start = length - first * UNIT_TOKENS
        units = read_units(memory, b, first, last)
        units = _with_tokens(units, kv_format, of_units, b, start, count)
        write_units(memory, b, first, units)
        if kv_format.nested:
            units = read_fine(memory, b, length + count)[:, :, first:last]
            units = _with_tokens(units, kv_format, (k_lower, v_lower), b, start, count)
            unit, place = fine_places(memory, b, length + count)
            fresh = unit >= first
            memory.fine[b][:, place[fresh]] = units[0][:, unit[fresh] - first]


def _with_tokens(
    units: Any, kv_format: KVFormat, fresh: tuple[Coded, Coded], b: int, start: int, count: int
) -> Any:
    """Return units with the first tokens of sequence `b` put in from token `start` on."""
    both = unpack_units(units, kv_format)
    at = slice(start, start + count)
    for there, new in zip(both, fresh, strict=True):
        there.codes[0, :, at] = new.codes[b, :, :count]
        there.scale[0, :, at] = new.scale[b, :, :count]
        if new.zero is not None:
            there.zero[0, :, at] = new.zero[b, :, :count]
    return pack_units(*both, kv_format)


def attend_on_host(
    memory: Memory,
    q: Any,
    options: QueryOptions,
    scores: Mapping[str, Any],
    out: Any,
    stream: Any,
    cu_seqlens_q: Any = None,
    max_seqlen_q: int | None = None,
    given_rope: GivenRope | None = None,
    mods: tuple[ScoreMod | None, MaskMod | None] = (None, None),
) -> Any:
    """Do what `KVCache.attend` says, of arrays in host memory."""
    check_limit(cu_seqlens_q, max_seqlen_q)
    with memory.call_on(stream):
        of_q = host_signature(q, "q")
        arrays = ScoreArrays.of({name: host_signature(x, name) for name, x in scores.items()})
        score_mod, mask_mod = map(function_of, mods)
        packed = None
        if cu_seqlens_q is not None:
            packed = Packed(host_signature(cu_seqlens_q, "cu_seqlens_q"), max_seqlen_q)
        if are_many(memory.geometry, of_q, options.layout, packed):
            o_and_lse = prefill_on_host(
                memory,
                q,
                of_q,
                options,
                scores,
                arrays,
                out,
                cu_seqlens_q,
                packed,
                given_rope,
                (score_mod, mask_mod),
            )
            return o_and_lse if options.return_lse else o_and_lse[0]
        query = Query.of(memory.geometry, of_q, options, arrays)
        problem = query.problem
        target = None if out is None else output_on_host(out, problem, {"q": q, **scores})
        given = {name: scores[name] for name in SCORE_NAMES if name in scores}
        values = {name: score_values(x, name, whole_last=True) for name, x in given.items()}
        lengths = memory.host_state.lengths
        mask = values.get("attn_mask")
        rows = heads_first(to_host(q, "q").values, problem.layout)
        if given_rope is not None:
            n = np.full(len(lengths), rows.shape[2])
            rows = turned(memory, given_rope, rows, of_q.dtype, n, behind=rows.shape[2])
        o, lse = decode(
            rows,
            *cached_operands(memory, lengths),
            lengths,
            scale=problem.softmax_scale,
            is_causal=query.scores.is_causal,
            window_size=query.scores.window_size,
            softcap=query.scores.softcap,
            sinks=values.get("sinks"),
            attn_mask=None if mask is None else of_tokens(mask, lengths),
            alibi_slopes=values.get("alibi_slopes"),
            score_mod=score_mod,
            mask_mod=mask_mod,
        )
        result, of_lse = delivered(o, lse, problem, q, out, target)
        return (result, of_lse) if problem.return_lse else result
