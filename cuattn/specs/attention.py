"""What an attention kernel fixes at compile time; the mirror of kernels_cu/spec.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol

from ..common.sizes import round_up
from ..reference.sorting import PLACE_SCALES
from .kernel_spec import KernelSpec
from .mods import prelude
from .rules import Rules

__all__ = ["AttentionSpec", "PRange", "Scope", "Type", "scale_bytes"]


class Type(Enum):
    """Element type of an operand."""

    # Members are single objects. Enum hashes their names in Python, in keys of every call.
    __hash__ = object.__hash__

    int8 = "int8"
    int4 = "int4"
    e4m3 = "e4m3"
    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"

    @property
    def bits(self) -> int:
        """Bits of one element; codes of int4 are two to a byte."""
        return {"int8": 8, "int4": 4, "e4m3": 8, "fp32": 32}.get(self.value, 16)

    @property
    def nbytes(self) -> int:
        """Bytes of one element; not of int4."""
        return self.bits // 8

    @property
    def integer(self) -> bool:
        """Whether elements are integer codes."""
        return self in (Type.int8, Type.int4)

    @property
    def coded(self) -> bool:
        """Whether elements are codes, which mean something with a scale only."""
        return self.integer or self is Type.e4m3


class Scope(Enum):
    """Elements that share a scale."""

    __hash__ = object.__hash__  # as in `Type`

    token = "token"
    group = "group"
    thread = "thread"
    sorted = "sorted"
    block = "block"
    channel = "channel"
    tensor = "tensor"


class PRange(Enum):
    """What P is quantized against."""

    block = "block"
    row = "row"
    row_pow2 = "row_pow2"
    static127 = "static127"
    twin = "twin"


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
    def q_smooth(self) -> bool: ...
    @property
    def block_kv(self) -> int: ...


def scale_bytes(spec: _Operands, *, groups: int = 1, deltas: int = 1) -> int:
    """Return the bytes of what a block's keys have in shared memory.

    Parameters
    ----------
    spec : spec of an attention kernel
    groups : int
        Scales of a key of K.
    deltas : int
        Parts of a CTA's rows that have a mean of Q each.
    """
    scales = {Scope.token: spec.block_kv, Scope.group: groups * spec.block_kv}
    scales |= {Scope.thread: spec.block_kv // 16, Scope.sorted: PLACE_SCALES}
    of_k = scales.get(spec.k_scope, 1) if spec.qk.integer else 1
    scales_v = {Scope.token: spec.block_kv, Scope.sorted: PLACE_SCALES}
    of_v = scales_v.get(spec.v_scope, 4) if spec.pv.integer else 4
    order = spec.block_kv if spec.k_scope is Scope.sorted else 16
    means = deltas * spec.block_kv if spec.q_smooth else 0
    return 4 * (max(of_k, 4) + 2 * of_v + means) + order


# Two barriers of 8 bytes for each stage.
_BARRIERS = 16

# Of tiles in shared memory, in bytes.
_ALIGNMENT = 128


@dataclass(frozen=True)
class AttentionSpec(KernelSpec):
    """Template argument of `attention_mma`; the fields and their order follow spec.cuh."""

    source: ClassVar[str] = "attention_sm80.cu"
    entry: ClassVar[str] = "attention"
    function: ClassVar[str] = "attention_mma"
    params: ClassVar[str] = "AttentionParams"
    params_file: ClassVar[str] = "params.cuh"

    qk: Type
    pv: Type
    out: Type
    head_dim: int
    head_dim_v: int
    v_parts: int
    equal_rows: bool
    k_scope: Scope
    qk_group: int
    v_scope: Scope
    p_range: PRange
    p_terms: int
    q_smooth: bool
    v_rotated: bool
    is_causal: bool
    rules: Rules
    block_kv: int
    num_warps: int
    row_tiles: int
    stages: int
    q_in_registers: bool
    min_ctas: int

    @property
    def prelude(self) -> str:
        """The caller's own expressions."""
        return prelude(self.rules.score_mod, self.rules.mask_mod, self.rules.score_slope)

    @property
    def channels_v(self) -> int:
        """Channels of V and O, padded."""
        return self.head_dim_v * self.v_parts

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
        """Dynamic shared memory of one CTA: `Storage` in attention_sm80.cu."""
        qk_row = self.head_dim * self.qk.bits // 8
        v_tile = self.block_kv * self.head_dim_v * self.pv.nbytes
        groups = self.head_dim // self.qk_group if self.k_scope is Scope.group else 1
        scales = scale_bytes(self, groups=groups)
        stage = round_up(self.block_kv * qk_row + v_tile + scales, _ALIGNMENT)
        return round_up(self.stages * (stage + _BARRIERS) + self.rows * qk_row, _ALIGNMENT)
