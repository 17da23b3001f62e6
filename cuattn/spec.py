"""What an attention kernel fixes at compile time; the mirror of kernels_cu/spec.cuh."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import ClassVar

__all__ = ["AttentionSpec", "PRange", "Scope", "Type", "literal"]


class Type(Enum):
    """Element type of an operand."""

    int8 = "int8"
    e4m3 = "e4m3"
    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"

    @property
    def nbytes(self) -> int:
        """Bytes of one element."""
        return {"int8": 1, "e4m3": 1, "fp32": 4}.get(self.value, 2)

    @property
    def coded(self) -> bool:
        """Whether elements are codes, which mean something with a scale only."""
        return self in (Type.int8, Type.e4m3)


class Scope(Enum):
    """Elements that share a scale."""

    token = "token"
    block = "block"
    channel = "channel"


class PRange(Enum):
    """What P is quantized against."""

    block = "block"
    row = "row"
    row_pow2 = "row_pow2"
    static127 = "static127"


def literal(value: object) -> str:
    """Render a field as C++."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}::{value.value}"
    return str(value).lower() if isinstance(value, bool) else str(value)


# Two barriers of 8 bytes for each stage.
_BARRIERS = 16


def _aligned(nbytes: int) -> int:
    """Round up to the alignment of tiles in shared memory."""
    return -(-nbytes // 128) * 128


@dataclass(frozen=True)
class AttentionSpec:
    """Template argument of `attention_mma`; the fields and their order follow spec.cuh."""

    source: ClassVar[str] = "attention_mma.cu"
    entry: ClassVar[str] = "attention"
    function: ClassVar[str] = "attention_mma"
    params: ClassVar[str] = "AttentionParams"
    params_file: ClassVar[str] = "params.cuh"

    qk: Type
    pv: Type
    out: Type
    head_dim: int
    k_scope: Scope
    v_scope: Scope
    p_range: PRange
    is_causal: bool
    block_kv: int
    num_warps: int
    row_tiles: int
    stages: int
    q_in_registers: bool
    min_ctas: int

    @property
    def rows(self) -> int:
        """Query rows of one CTA."""
        return 16 * self.row_tiles * self.num_warps

    @property
    def num_threads(self) -> int:
        """Threads of one CTA."""
        return 32 * self.num_warps

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: `Storage` in attention_mma.cu."""
        qk_row = self.head_dim * self.qk.nbytes
        v_tile = self.block_kv * self.head_dim * self.pv.nbytes
        token_k = self.qk is Type.int8 and self.k_scope is Scope.token
        token_v = self.pv is Type.int8 and self.v_scope is Scope.token
        per_token = self.block_kv * 4
        scales = (per_token if token_k else 16) + 2 * (per_token if token_v else 16)
        stage = _aligned(self.block_kv * qk_row + v_tile + scales)
        return _aligned(self.stages * (stage + _BARRIERS) + self.rows * qk_row)

    def cxx(self) -> str:
        """Render the spec as a C++20 literal."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        min_ctas = values.pop("min_ctas")
        values |= {
            "num_threads": self.num_threads,
            "min_ctas": min_ctas,
            "smem_bytes": self.smem_bytes,
        }
        return f"AttentionSpec{{{', '.join(f'.{k} = {literal(v)}' for k, v in values.items())}}}"
