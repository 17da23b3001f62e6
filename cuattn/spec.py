"""What an attention kernel fixes at compile time; the mirror of kernels_cu/spec.cuh."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar, Protocol

from .sizes import round_up

__all__ = ["AttentionSpec", "PRange", "Scope", "Type", "designated", "scale_bytes"]


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


def designated(spec: Any, *derived: str) -> str:
    """Render a spec as a C++20 literal: its fields in their order, then those that are derived."""
    names = [f.name for f in fields(spec) if f.name not in derived]
    values = [f".{name} = {_literal(getattr(spec, name))}" for name in (*names, *derived)]
    return f"{type(spec).__name__}{{{', '.join(values)}}}"


def _literal(value: object) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}::{value.value}"
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Operands(Protocol):
    """What specs of attention kernels say of their operands."""

    @property
    def qk(self) -> Type: ...
    @property
    def pv(self) -> Type: ...
    @property
    def k_scope(self) -> Scope: ...
    @property
    def v_scope(self) -> Scope: ...
    @property
    def block_kv(self) -> int: ...


def scale_bytes(spec: _Operands) -> int:
    """Return the bytes of a block's scales in shared memory: of K, V's logarithms and inverses."""
    token_k = spec.qk is Type.int8 and spec.k_scope is Scope.token
    token_v = spec.pv is Type.int8 and spec.v_scope is Scope.token
    per_token = spec.block_kv * 4
    return (per_token if token_k else 16) + 2 * (per_token if token_v else 16)


# Two barriers of 8 bytes for each stage.
_BARRIERS = 16

# Of tiles in shared memory, in bytes.
_ALIGNMENT = 128


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
        stage = round_up(self.block_kv * qk_row + v_tile + scale_bytes(self), _ALIGNMENT)
        return round_up(self.stages * (stage + _BARRIERS) + self.rows * qk_row, _ALIGNMENT)

    def cxx(self) -> str:
        """Render the spec as a C++20 literal."""
        return designated(self, "num_threads", "min_ctas", "smem_bytes")
