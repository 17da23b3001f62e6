"""Codes of many queries to a KV cache, of rows that turn first or are padded as the cache's are."""

from __future__ import annotations

from typing import Any

from ..arrays.device import Device
from ..compile.launch import NULL, Buffers, Launch
from ..operands.layout import CodeLayout
from ..operands.problem import Problem
from .device_rope import rope_values
from .geometry import KVGeometry
from .queries_spec import QueriesSpec
from .rope import RopeSizes

__all__ = ["codes_of_queries", "needs_own_codes"]

_WORD = 4


def needs_own_codes(geometry: KVGeometry, rope: RopeSizes | None) -> bool:
    """Whether the quantizer of `attention` does not make what a call's Q becomes."""
    return rope is not None or geometry.kv_format.padded != geometry.kv_format.head_dim


def codes_of_queries(
    geometry: KVGeometry,
    device: Device,
    given: Problem,
    made: Problem,
    rope: RopeSizes | None,
    buffers: Buffers,
) -> Launch:
    """Return the launch that makes codes of Q; they take the place of "q" among the buffers.

    Parameters
    ----------
    geometry : KVGeometry
    device : Device
    given, made : Problem
        The call with Q as the caller has it, and as codes.
    rope : RopeSizes, optional
    buffers : Buffers
        Gets "q", "q_scale" and, if it is needed, "lse_shift".
    """
    spec = QueriesSpec.of(geometry.kv_format, given.q.dtype, rope=rope is not None)
    layout = CodeLayout.of(made.scheme, "q", made.q.shape)
    rows = made.q.heads * made.q.tokens
    q, strides = buffers["q"], given.q.strides
    buffers.name(q=buffers.take(layout.nbytes), q_scale=buffers.take(_WORD * rows))
    if made.needs_lse_shift:
        buffers.name(lse_shift=buffers.take(_WORD * rows))
    heads, tiles = made.q.shape[1], spec.tiles(made.seqlen_q)
    values: dict[str, Any] = {
        "q": q,
        "codes": buffers["q"],
        "scale": buffers["q_scale"],
        "lse_shift": buffers["lse_shift"],
        "k_offset": buffers["k_offset"],
        "lengths": buffers["lengths"],
        "ends": buffers["ends"],
        "cu_seqlens_q": buffers["cu_seqlens_q"] if made.is_packed else NULL,
        "q_stride_batch": strides[0],
        "q_stride_head": strides[1],
        "q_stride_row": strides[2],
        "num_q_heads": heads,
        "heads_per_kv": made.group,
        "seqlen_q": made.seqlen_q,
        "pitch": made.q.tokens,
        "tiles": tiles,
        "q_aligned": int(given.q.aligned),
        "softmax_scale": made.softmax_scale,
        "rope": rope_values(rope, buffers),
    }
    return Launch(spec, device, (made.batch * heads * tiles,), values)
