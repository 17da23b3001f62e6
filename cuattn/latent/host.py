"""Calls on a latent cache in host memory: the units of the kernels, the reference's arithmetic."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from ..arrays.host import heads_first, look_on_host, new_on_host, to_host, write_on_host
from ..arrays.overlap import check_writable, overlap
from ..arrays.pytorch import note_write
from ..arrays.view import View
from ..errors import ArgumentError
from ..kv.host_arrays import fresh_on_host, host_signature
from ..kv.memory import Memory
from ..kv.packed_tokens import GivenTokens
from ..kv.plans import appended
from ..operands.operand import dtype_name
from ..reference.latent import LatentTokens, decode_latent, quantize_latent
from ..reference.rounding import HalfType, saturate
from .format import LatentGeometry
from .query import LatentOptions, LatentQuery, token_operands
from .units import read_tokens, write_tokens

__all__ = ["append_on_host", "attend_on_host"]


def append_on_host(memory: Memory, latent: Any, rope: Any, given: GivenTokens, stream: Any) -> None:
    """Do what `LatentKVCache.append` says, of arrays in host memory."""
    geometry = _geometry(memory)
    with memory.call_on(stream):
        arrays = host_signature(latent, "latent"), host_signature(rope, "rope")
        sequences = given.checked_sequences(geometry.batch)
        tokens, _ = token_operands(geometry, *arrays, sequences is not None)
        fresh, packed = fresh_on_host(memory, given, sequences, tokens.tokens)
        plan = appended(memory.host_state, fresh, arrays[0].shape, "latent")
        dtype = cast(HalfType, geometry.kv_format.rope_dtype)
        latents, ropes = to_host(latent, "latent").values, to_host(rope, "rope").values
        if packed is not None:
            latents, ropes = packed.by_sequence(latents), packed.by_sequence(ropes)
        made = quantize_latent(latents, ropes, dtype)
        with memory.transaction(plan.after, *memory.undoing(plan, offsets=False)):
            memory.write_pages(plan)
            for b in np.flatnonzero(fresh).tolist():
                some = slice(b, b + 1), slice(int(fresh[b]))
                of_sequence = LatentTokens(
                    made.codes[some], made.scale[some], made.rope[some], dtype
                )
                write_tokens(memory, b, int(memory.lengths[b]), of_sequence)
            memory.write_lengths(plan.after)


def attend_on_host(memory: Memory, q: Any, options: LatentOptions, out: Any, stream: Any) -> Any:
    """Do what `LatentKVCache.attend` says, of arrays in host memory."""
    with memory.call_on(stream):
        query = LatentQuery.of(_geometry(memory), host_signature(q, "q"), options)
        target = None if out is None else _output(out, query, q)
        lengths = memory.host_state.lengths
        o, lse = decode_latent(
            heads_first(to_host(q, "q").values, query.layout),
            read_tokens(memory, lengths),
            lengths,
            scale=query.softmax_scale,
            is_causal=query.is_causal,
        )
        dtype = dtype_name(query.q.dtype)
        o = saturate(heads_first(o, query.layout), dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            if target is None:
                result = new_on_host(o, dtype, q)
            else:
                write_on_host(target, o)
                result = out
            return (result, new_on_host(lse, "float32", q)) if query.return_lse else result


def _output(out: Any, query: LatentQuery, q: Any) -> View:
    """Look at a caller's output, and check it against the query."""
    target = look_on_host(out, "out")
    query.output(target.signature._replace(misalignment=0))
    check_writable(out, target)
    if overlap(target, look_on_host(q, "q"), query.q.dtype.nbytes):
        raise ArgumentError("out", out, "in memory apart from that of q")
    note_write(out)
    return target


def _geometry(memory: Memory) -> LatentGeometry:
    return cast(LatentGeometry, memory.geometry)
