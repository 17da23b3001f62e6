"""Operations for each byte of memory that has to move: where a call stands in a roofline."""

from __future__ import annotations

from ..presets import resolve
from ..records.record import Timing
from . import prefill

__all__ = ["intensity"]

BITS = {"int4": 4, "int8": 8, "fp8": 8, "fp16": 16}


def intensity(timing: Timing) -> float | None:
    """Return operations for each byte that the kernel cannot but move; None if not known.

    Attention to as many keys as queries reads codes of Q, K and V once and writes O in 16 bits, if
    its caches are large enough. Decoding says itself what it reads.
    """
    if timing.gbps is not None:
        if not timing.kernel_ms:
            return None
        return timing.operations / (timing.gbps * timing.kernel_ms * 1e6)
    if timing.case != prefill.KIND:
        return None
    how = resolve(timing.scheme)
    q_rows = timing.batch * timing.num_q_heads * timing.seqlen_q
    kv_rows = timing.batch * timing.num_kv_heads * timing.seqlen_kv
    bits = (q_rows + kv_rows) * BITS[how.qk] + kv_rows * BITS[how.pv] + 16 * q_rows
    return timing.operations / (timing.head_dim * bits / 8)
