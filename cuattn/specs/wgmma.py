"""What a kernel of the Hopper family fixes at compile time; mirrors sm90/wgmma_spec.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from ..common.sizes import round_up
from .attention import PRange, Scope, Type, scale_bytes
from .kernel_spec import KernelSpec
from .mods import prelude
from .rules import Rules

__all__ = ["GROUP_ROWS", "Order", "WgmmaSpec"]

# Query rows of a warpgroup.
GROUP_ROWS = 64

_WARPGROUP = 128
# Bytes of a barrier, and of where an item lies.
_BARRIERS = 8
_ITEM = 24
# Of where the item's sequence lies.
_PLACE = 24


class Order(Enum):
    """When a warpgroup multiplies what: sm90/wgmma_spec.cuh."""

    in_turn = "in_turn"
    ahead = "ahead"
    interleaved = "interleaved"


@dataclass(frozen=True)
class WgmmaSpec(KernelSpec):
    """Template argument of `attention_wgmma`; the fields and their order follow wgmma_spec.cuh."""

    source: ClassVar[str] = "attention_sm90.cu"
    entry: ClassVar[str] = "attention"
    function: ClassVar[str] = "attention_wgmma"
    params: ClassVar[str] = "WgmmaParams"
    params_file: ClassVar[str] = "params.cuh"
    min_ctas: ClassVar[int] = 1

    qk: Type
    pv: Type
    out: Type
    head_dim: int
    head_dim_v: int
    k_scope: Scope
    v_scope: Scope
    p_range: PRange
    p_terms: int
    q_smooth: bool
    v_rotated: bool
    is_causal: bool
    rules: Rules
    block_kv: int
    integer_o: bool
    groups: int
    stages: int
    q_buffers: int
    value_slice: int
    order: Order
    group_registers: int
    tied_steps: bool
    float_sums: bool
    column_starts: bool

    @property
    def prelude(self) -> str:
        """The caller's own expressions."""
        return prelude(self.rules.score_mod, self.rules.mask_mod, self.rules.score_slope)

    @property
    def channels_v(self) -> int:
        """Channels of V and O, padded."""
        return self.head_dim_v

    @property
    def rows(self) -> int:
        """Query rows of one CTA."""
        return GROUP_ROWS * self.groups

    @property
    def num_threads(self) -> int:
        """Threads of one CTA: the warpgroups that attend and one that copies."""
        return _WARPGROUP * (self.groups + 1)

    @staticmethod
    def pitch(head_dim: int, dtype: Type) -> int:
        """Bytes from token to token in shared memory, in a panel of a tile, and its swizzle."""
        return 64 if head_dim * dtype.nbytes <= 64 else 128

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: `TileStorage` in sm90/tile_storage.cuh."""
        row = _panels(self.head_dim * self.qk.nbytes)
        v_rows, v_row = self.head_dim_v, self.block_kv
        if self.pv.nbytes == 2:
            v_rows, v_row = self.block_kv, 2 * self.head_dim_v
        tiles = self.stages * (self.block_kv * row + v_rows * _panels(v_row))
        tiles += self.q_buffers * self.groups * GROUP_ROWS * row
        tiles += 16 * (2 * _WARPGROUP * self.groups if self.p_range is PRange.block else 1)
        if self.column_starts and self.k_scope is Scope.sorted:
            tiles += 4 * self.block_kv * 4 * self.groups
        row_scale = self.rows if self.qk.nbytes == 1 else 4
        by_channel = self.pv.coded and self.v_scope is Scope.channel
        channel_scale = self.head_dim_v if by_channel else 4
        item = _ITEM + (_PLACE if self.rules.varlen else 0)
        constants = round_up(4 * (row_scale + channel_scale + self.head_dim_v) + item, 16)
        barriers = _BARRIERS * (2 * self.stages + 3 * self.q_buffers) + 4 * self.q_buffers
        scales = self.stages * round_up(scale_bytes(self, deltas=self.groups), 128)
        return round_up(tiles + scales + self.q_buffers * constants + barriers, 1024)


def _panels(row_bytes: int) -> int:
    """Bytes that a row takes in shared memory: `Panels` in sm90/tile_shape.cuh."""
    return 64 if row_bytes <= 64 else round_up(row_bytes, 128)
