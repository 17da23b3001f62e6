"""Which kernel decodes: rows and stages of a CTA, and what fits a GPU."""

from __future__ import annotations

from functools import cache

from ..arrays.device import Target
from ..kv_format import UNIT_TOKENS, KVFormat
from ..specs.attention import Type
from .spec import KV_BLOCK, DecodeSpec

__all__ = ["decode_spec"]

# Shared memory that the driver takes of every CTA.
_RESERVED_SMEM = 1024

# Rows of a CTA. More of them read the cache less often where there are as many queries, but take
# registers that O, of many channels, or P of groups of channels do not leave.
_ROWS = (8, 16, 32)
_MANY_CHANNELS = 256

# Blocks in the shared memory of a multiprocessor, in bytes, that keep memory busy. More is no
# faster: what else a CTA reads and writes would wait behind them (docs/lab-notebook.md, 11).
_UNDER_WAY = 136_000
_STAGES = range(2, 7)

# CTAs of a multiprocessor, one computing while another waits. Small blocks, and few rows, which
# leave registers, take one more.
_CTAS = 2
_SMALL_BLOCK = 14_000


@cache
def decode_spec(kv_format: KVFormat, element: Type, rows: int, target: Target) -> DecodeSpec:
    """Return the kernel for queries of a type.

    Parameters
    ----------
    rows : int
        Queries of a sequence, times the query heads that share a head of K and V.
    """
    large = (kv_format.head_dim == _MANY_CHANNELS) + (kv_format.v_groups > 1)
    sizes = _ROWS[: len(_ROWS) - large]
    of_cta = next((n for n in sizes if rows <= n), sizes[-1])
    block = KV_BLOCK // UNIT_TOKENS * kv_format.unit_bytes
    most_ctas = _CTAS + 1 if of_cta == _ROWS[0] and block <= _SMALL_BLOCK else _CTAS
    for ctas in range(most_ctas, 0, -1):
        room = min(target.max_smem_per_sm // ctas - _RESERVED_SMEM, target.max_smem_per_cta)
        wanted = min(max(_UNDER_WAY // ctas // block, _STAGES[0]), _STAGES[-1])
        for stages in range(wanted, _STAGES[0] - 1, -1):
            spec = DecodeSpec.of(kv_format, element, rows=of_cta, stages=stages, min_ctas=ctas)
            if spec.smem_bytes <= room:
                return spec
    return DecodeSpec.of(kv_format, element, rows=of_cta, stages=1, min_ctas=1)
