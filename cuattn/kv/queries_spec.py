"""What the kernel fixes at compile time that makes codes of many queries to a KV cache.

Mirrors kernels_cu/kv/queries_spec.cuh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..common.sizes import ceil_div
from ..kv_format import KVFormat
from ..reference.rotation import hadamard_block
from ..specs.attention import Type
from ..specs.kernel_spec import KernelSpec

__all__ = ["QueriesSpec"]

# Lanes that have a row, each with neighbouring channels: `QueryRow` in kernels_cu/kv/query_row.cuh.
_MOST_LANES, _LANE_CHANNELS = 16, 8

# Channels of which a thread has more registers: those of a row, as it is and in float32.
_MANY_CHANNELS = 256


@dataclass(frozen=True)
class QueriesSpec(KernelSpec):
    """Template argument of `store_queries`.

    Parameters
    ----------
    input : Type
        Elements of Q.
    head_dim : int
        Channels of codes, those of a cache's units.
    channels : int
        Those that arrays have.
    rotate : bool
        Whether rows are rotated, as keys are.
    rope : bool
        Whether they turn by their positions before.
    """

    source: ClassVar[str] = "cache_queries.cu"
    entry: ClassVar[str] = "cache_queries"
    function: ClassVar[str] = "store_queries"
    params: ClassVar[str] = "CacheQueriesParams"
    params_file: ClassVar[str] = "kv/kv_params.cuh"
    num_threads: ClassVar[int] = 128
    smem_bytes: ClassVar[int] = 0

    input: Type
    head_dim: int
    channels: int
    rotate: bool
    rope: bool

    @classmethod
    def of(cls, kv_format: KVFormat, element: Type, *, rope: bool) -> QueriesSpec:
        """Return the spec for a cache of a format, and queries of a type."""
        return cls(element, kv_format.padded, kv_format.head_dim, kv_format.rotate, rope)

    @property
    def min_ctas(self) -> int:
        """CTAs of a multiprocessor."""
        return 3 if self.head_dim == _MANY_CHANNELS else 5

    @property
    def rows(self) -> int:
        """Rows of a CTA."""
        lanes = min(hadamard_block(self.head_dim) // _LANE_CHANNELS, _MOST_LANES)
        return self.num_threads // lanes

    def tiles(self, rows: int) -> int:
        """Return the CTAs of one head of so many rows."""
        return ceil_div(rows, self.rows)
