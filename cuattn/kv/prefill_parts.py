"""Parts of a call with many queries to a KV cache, and where their arrays begin."""

from __future__ import annotations

from typing import NamedTuple

from ..operands.problem import Problem
from .geometry import KVGeometry

__all__ = ["Part", "offsets_of"]

_WORD = 4


class Part(NamedTuple):
    """Whole sequences, or some heads of K and V of one."""

    sequence: int
    sequences: int
    head: int
    heads: int


def offsets_of(
    geometry: KVGeometry, problem: Problem, o_strides: tuple[int, ...], part: Part
) -> dict[str, int]:
    """Return by how many bytes a part's addresses are above those of the call."""
    sequence, head = part.sequence, part.head
    first = sequence * geometry.num_kv_heads + head  # of all heads of K and V
    rows, row = problem.q.tokens, head * problem.group
    of_word = _WORD * sequence
    _, _, places, unit_bytes = geometry.fine_shape
    paged = geometry.page_size > 0
    offsets = {
        "units": head * geometry.head_stride + (0 if paged else sequence * geometry.page_stride),
        "pages": of_word * geometry.pages_per_sequence,
        "positions": 0 if problem.is_packed else of_word * rows,
        **dict.fromkeys(("lengths", "bare", "coarse", "cu_seqlens_q", "ends"), of_word),
        "k_offset": _WORD * first * geometry.kv_format.head_dim,
        "fine": first * places * unit_bytes,
        "lse": _WORD * rows * (row if problem.is_packed else first * problem.group),
    }
    batch = 0 if problem.is_packed else sequence
    size = problem.q.dtype.nbytes
    for name, steps in (("q", problem.q.strides), ("o", o_strides)):
        offsets[name] = size * (batch * steps[0] + row * steps[1])
    for name in ("sinks", "alibi_slopes"):
        vector = getattr(problem.scores, name)
        if vector is not None:
            of_batch, of_head = vector.strides
            offsets[name] = vector.dtype.nbytes * (sequence * of_batch + row * of_head)
    mask = problem.scores.attn_mask
    if mask is not None:
        size = 1 if mask.dtype == "bool" else mask.dtype.nbytes
        offsets["attn_mask"] = size * (sequence * mask.strides[0] + row * mask.strides[1])
    return offsets
