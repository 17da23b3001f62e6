"""What a kernel of the Hopper family fixes at compile time; mirrors hopper/wgmma_spec.cuh."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from .spec import PRange, Scope, Type, literal

__all__ = ["GROUP_ROWS", "WgmmaSpec"]

# Query rows of a warpgroup.
GROUP_ROWS = 64

_WARPGROUP = 128
_BARRIERS = 8  # bytes of one


@dataclass(frozen=True)
class WgmmaSpec:
    """Template argument of `attention_wgmma`; the fields and their order follow wgmma_spec.cuh."""

    source: ClassVar[str] = "attention_wgmma.cu"
    entry: ClassVar[str] = "attention"
    function: ClassVar[str] = "attention_wgmma"
    params: ClassVar[str] = "WgmmaParams"
    params_file: ClassVar[str] = "params.cuh"
    min_ctas: ClassVar[int] = 1

    qk: Type
    pv: Type
    out: Type
    head_dim: int
    k_scope: Scope
    v_scope: Scope
    p_range: PRange
    is_causal: bool
    block_kv: int
    integer_o: bool
    groups: int
    stages: int
    q_buffers: int
    value_slice: int
    interleaved: bool
    group_registers: int

    @property
    def rows(self) -> int:
        """Query rows of one CTA."""
        return GROUP_ROWS * self.groups

    @property
    def num_threads(self) -> int:
        """Threads of one CTA: the warpgroups that attend and one that copies."""
        return _WARPGROUP * (self.groups + 1)

    def pitch(self, dtype: Type) -> int:
        """Bytes from token to token in shared memory, in a panel of a tile, and its swizzle."""
        return 64 if self.head_dim * dtype.nbytes <= 64 else 128

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: `TileStorage` in hopper/tile_storage.cuh."""
        row = _panels(self.head_dim * self.qk.nbytes)
        v_rows, v_row = self.head_dim, self.block_kv
        if self.pv.nbytes == 2:
            v_rows, v_row = self.block_kv, 2 * self.head_dim
        token_k = self.qk is Type.int8 and self.k_scope is Scope.token
        token_v = self.pv is Type.int8 and self.v_scope is Scope.token
        per_token = self.block_kv * 4
        scales = (per_token if token_k else 16) + 2 * (per_token if token_v else 16)
        tiles = self.stages * (self.block_kv * row + v_rows * _panels(v_row))
        tiles += self.q_buffers * self.groups * GROUP_ROWS * row
        barriers = _BARRIERS * 2 * (self.stages + self.q_buffers) + 4 * self.q_buffers
        return _up(tiles + self.stages * _up(scales, 128) + barriers, 1024)

    def cxx(self) -> str:
        """Render the spec as a C++20 literal."""
        names = [f.name for f in fields(self)] + ["num_threads", "min_ctas", "smem_bytes"]
        values = ", ".join(f".{name} = {literal(getattr(self, name))}" for name in names)
        return f"WgmmaSpec{{{values}}}"


def _panels(row_bytes: int) -> int:
    """Bytes that a row takes in shared memory: `Panels` in hopper/tile_shape.cuh."""
    return 64 if row_bytes <= 64 else _up(row_bytes, 128)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
