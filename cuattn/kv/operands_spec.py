"""What the kernel fixes at compile time that makes operands of attention of a KV cache.

Mirrors kernels_cu/kv/operands_spec.cuh.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from ..common.sizes import round_up
from ..kv_format import UNIT_TOKENS, KVFormat
from ..reference.sorting import PLACE_SCALES, SORTED_BLOCK
from ..specs.kernel_spec import KernelSpec
from ..specs.row_lanes import row_lanes

__all__ = ["OperandsSpec"]

# Registers of a multiprocessor over those that a thread takes.
_MOST_THREADS = 1024
_MANY_CHANNELS = 256

# Of each token of a block: `SortedTokens` in quant/token_ranks.cuh.
_SORTING = (4 * 4 + 2) * SORTED_BLOCK + 8 * PLACE_SCALES


@dataclass(frozen=True)
class OperandsSpec(KernelSpec):
    """Template argument of `store_operands`; the fields are those of `KVFormat`.

    `head_dim` are the channels of units, `channels` those of K's offset.
    """

    source: ClassVar[str] = "cache_operands.cu"
    entry: ClassVar[str] = "cache_operands"
    function: ClassVar[str] = "store_operands"
    params: ClassVar[str] = "OperandsParams"
    params_file: ClassVar[str] = "kv/kv_params.cuh"

    head_dim: int
    channels: int
    k_bits: int
    v_bits: int
    group: int
    v_zero: bool
    rotate: bool
    nested: bool

    @classmethod
    def of(cls, kv_format: KVFormat) -> OperandsSpec:
        """Return the spec of a format."""
        given: dict[str, Any] = asdict(kv_format)
        return cls(**given | {"head_dim": kv_format.padded, "channels": kv_format.head_dim})

    @property
    def kv_format(self) -> KVFormat:
        """The format that the kernel is made for."""
        of_units = {x.name: getattr(self, x.name) for x in fields(KVFormat)}
        return KVFormat(**of_units | {"head_dim": self.channels})

    @property
    def num_threads(self) -> int:
        """Threads of a CTA: each makes words of four or eight tokens of 16 channels of V."""
        return min(SORTED_BLOCK // 4 * row_lanes(self.head_dim), 256)

    @property
    def min_ctas(self) -> int:
        """CTAs of a multiprocessor: 64 registers a thread, more of rows of many channels."""
        threads = _MOST_THREADS // 2 if self.head_dim == _MANY_CHANNELS else _MOST_THREADS
        return min(threads // self.num_threads, 8)

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: `OperandsStorage` in cache_operands.cu."""
        unit = self.kv_format.unit_bytes
        # Rows of V that do not fit where its codes have been, or lower halves of nested codes.
        more = UNIT_TOKENS // 2 * self.head_dim if self.v_bits == 4 else 0
        units = SORTED_BLOCK // UNIT_TOKENS * (unit + (unit if self.nested else more))
        # V's codes by channels, as they are written, take the place of what was read.
        block = max(units, SORTED_BLOCK * self.head_dim)
        return round_up(round_up(block, 128) + _SORTING + 4 * self.head_dim, 128)
