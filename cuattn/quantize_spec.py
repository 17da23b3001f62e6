"""What the quantizing kernels fix at compile time; mirrors kernels_cu/quant/quantize_spec.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .operand import code_type
from .reference.layout import TOKEN_PAD
from .scheme import Scheme
from .sizes import ceil_div, round_up
from .spec import Scope, Type, designated

__all__ = ["TOKEN_PAD", "FinishSpec", "QuantizeSpec", "StatsSpec"]

# Threads of a CTA, and 16-byte loads of each that leave registers for a second CTA beside it.
_THREADS = 256
_LOADS = 16


@dataclass(frozen=True)
class QuantizeSpec:
    """Template argument of `quantize_operands`: one launch for any of Q, K and V.

    Parameters
    ----------
    input : Type
        Elements of the operands.
    q, k, v : Type
        What each becomes: int8 or e4m3 codes, or values of type fp16 or bf16.
    head_dim : int
        Padded: one of 32, 64, 96, 128, 192, 256.
    qk_per_tensor : bool
        Whether all of a head of Q, and all of one of K, has one scale.
    k_scope : Scope
        token or block, of the scales as they are stored.
    k_block : int
        Keys of a block, 64 or 128.
    k_smooth, v_smooth : bool
        Whether a vector is subtracted from every token.
    v_scope : Scope
        token or channel.
    v_per_tensor : bool
        Whether all channels of a head share the scale of the largest.
    aligned : bool
        Whether bases and strides of the inputs are multiples of 16 bytes.
    """

    source: ClassVar[str] = "quantize.cu"
    entry: ClassVar[str] = "quantize"
    function: ClassVar[str] = "quantize_operands"
    params: ClassVar[str] = "QuantizeParams"
    params_file: ClassVar[str] = "quant/quantize_params.cuh"

    input: Type
    q: Type
    k: Type
    v: Type
    head_dim: int
    qk_per_tensor: bool
    k_scope: Scope
    k_block: int
    k_smooth: bool
    v_scope: Scope
    v_per_tensor: bool
    v_smooth: bool
    aligned: bool

    @classmethod
    def of(cls, scheme: Scheme, element: Type, head_dim: int, aligned: bool) -> QuantizeSpec:
        """Return the spec that a scheme needs for inputs of a type and padded head dimension."""
        half = Type.bf16 if scheme.qk == "fp16" and element is Type.bf16 else Type.fp16
        return cls(
            input=element,
            q=code_type(scheme, "q") or half,
            k=code_type(scheme, "k") or half,
            v=code_type(scheme, "v") or half,
            head_dim=head_dim,
            qk_per_tensor=scheme.k_scope == "tensor",
            k_scope=Scope.token if scheme.k_scope == "token" else Scope.block,
            k_block=scheme.p_block,
            k_smooth=scheme.smooth_k != "none",
            v_scope=Scope.token if scheme.v_scope == "token" else Scope.channel,
            v_per_tensor=scheme.v_scope == "tensor",
            v_smooth=scheme.smooth_v != "none",
            aligned=aligned,
        )

    @property
    def num_threads(self) -> int:
        """Threads of one CTA: more only where registers must hold a large block of keys."""
        return _THREADS * (2 if self._block * self._row_bytes > 16 * _LOADS * _THREADS else 1)

    @property
    def q_tile(self) -> int:
        """Queries of one CTA."""
        return self._rows * self.num_threads // self._lanes

    @property
    def k_tile(self) -> int:
        """Keys of one CTA: at least a whole block if they share a scale."""
        return max(self.q_tile, self._block)

    @property
    def v_tile(self) -> int:
        """Tokens of V of one CTA: no transposed row is shorter than the padding."""
        return max(self.q_tile, TOKEN_PAD if self.v.coded else 0)

    @property
    def min_ctas(self) -> int:
        """CTAs of a multiprocessor: as many as leave registers for the 16-byte loads of a lane."""
        loads = self.k_tile * self._row_bytes // (16 * self.num_threads)
        # Rows of 1 KiB take so many passes over V that their addresses claim registers too.
        few = loads <= 8 and self._row_bytes < 1024
        return (3 if few else 2) * _THREADS // self.num_threads

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: `QuantizeStorage` in quant/storage.cuh."""
        codes = self.v_tile * self.head_dim if self.v.coded else 16
        return codes + 2 * 4 * self.head_dim + 4 * self.num_threads // 32

    def tiles(self, operand: Literal["q", "k", "v"], seqlen: int) -> int:
        """Return the CTAs of one head of an operand."""
        tile: int = getattr(self, f"{operand}_tile")
        if operand == "k" and self.k.coded and self.k_scope is Scope.token:
            seqlen = round_up(seqlen, TOKEN_PAD)  # the scales are padded
        return ceil_div(seqlen, tile)

    def cxx(self) -> str:
        """Render the spec as a C++20 literal."""
        return designated(
            self, "q_tile", "k_tile", "v_tile", "num_threads", "min_ctas", "smem_bytes"
        )

    @property
    def _block(self) -> int:
        """Keys that a CTA has to have together."""
        by_block = self.k.coded and self.k_scope is Scope.block and not self.qk_per_tensor
        return self.k_block if by_block else 0

    @property
    def _row_bytes(self) -> int:
        return self.head_dim * self.input.nbytes

    @property
    def _lanes(self) -> int:
        """Lanes that share a row, in 16-byte chunks: `RowLanes` in quant/row_tile.cuh."""
        chunks = self._row_bytes // 16
        return min(chunks & -chunks, 32)

    @property
    def _rows(self) -> int:
        """Rows of a lane."""
        return 8 if self._row_bytes == 16 * self._lanes else 4


@dataclass(frozen=True)
class StatsSpec:
    """Template argument of `stats`: means of K and V, and ranges, over chunks of tokens.

    Parameters
    ----------
    input : Type
        Elements of Q, K and V.
    head_dim : int
        Padded, as above.
    aligned : bool
        As above.
    k_sample, v_sample : bool
        Whether the mean is that of at most 512 tokens, which are one chunk.
    qk_range : bool
        Whether the smallest and largest elements of Q's and K's channels are wanted; only then is Q
        looked at.
    v_range : bool
        The same of V.
    """

    source: ClassVar[str] = "stats.cu"
    entry: ClassVar[str] = "stats"
    function: ClassVar[str] = "stats"
    params: ClassVar[str] = "StatsParams"
    params_file: ClassVar[str] = "quant/quantize_params.cuh"
    num_threads: ClassVar[int] = _THREADS
    min_ctas: ClassVar[int] = 3

    input: Type
    head_dim: int
    aligned: bool
    k_sample: bool
    v_sample: bool
    qk_range: bool
    v_range: bool

    @classmethod
    def of(cls, scheme: Scheme, element: Type, head_dim: int, aligned: bool) -> StatsSpec:
        """Return the spec that a scheme needs for inputs of a type and padded head dimension."""
        return cls(
            input=element,
            head_dim=head_dim,
            aligned=aligned,
            k_sample=scheme.smooth_k == "sample",
            v_sample=scheme.smooth_v == "sample",
            qk_range=scheme.k_scope == "tensor",
            v_range=scheme.v_scope != "token",
        )

    @property
    def chunk(self) -> int:
        """Tokens of one CTA: 128 KiB, which take much longer than its start and end.

        Not chosen by the GPU, because the order of the additions depends on it.
        """
        return 128 * 1024 // (self.head_dim * self.input.nbytes) // 64 * 64

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: `GroupMoments` in quant/moments.cuh."""
        return _joined_bytes(self.head_dim, self.input, self.qk_range or self.v_range)

    def chunks(self, operand: Literal["q", "k", "v"], seqlen: int) -> int:
        """Return the CTAs of one head of an operand."""
        if {"q": False, "k": self.k_sample, "v": self.v_sample}[operand]:
            return min(seqlen, 1)
        return ceil_div(seqlen, self.chunk)

    def ranges(self, operand: Literal["q", "k", "v"]) -> bool:
        """Whether the smallest and largest elements of an operand are wanted."""
        return self.v_range if operand == "v" else self.qk_range

    def kinds(self, operand: Literal["q", "k", "v"]) -> int:
        """Return how many numbers of a channel `partial` holds for each chunk."""
        return 3 if self.ranges(operand) else 1

    @property
    def finish(self) -> FinishSpec:
        """The kernel that joins the chunks, where there is more than one."""
        return FinishSpec(self.head_dim, self.qk_range, self.v_range)

    def cxx(self) -> str:
        """Render the spec as a C++20 literal."""
        return designated(self, "num_threads", "min_ctas", "smem_bytes")


@dataclass(frozen=True)
class FinishSpec:
    """Template argument of `stats_finish`; see `StatsSpec`."""

    source: ClassVar[str] = "stats.cu"
    entry: ClassVar[str] = "stats_finish"
    function: ClassVar[str] = "stats_finish"
    params: ClassVar[str] = "StatsParams"
    params_file: ClassVar[str] = "quant/quantize_params.cuh"
    num_threads: ClassVar[int] = _THREADS
    min_ctas: ClassVar[int] = 2

    head_dim: int
    qk_range: bool
    v_range: bool

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: `GroupMoments` in quant/moments.cuh."""
        return _joined_bytes(self.head_dim, Type.fp32, self.qk_range or self.v_range)

    def cxx(self) -> str:
        """Render the spec as a C++20 literal."""
        return designated(self, "num_threads", "min_ctas", "smem_bytes")


def _joined_bytes(head_dim: int, element: Type, ranges: bool) -> int:
    groups = _THREADS * 16 // (head_dim * element.nbytes)
    return (3 if ranges else 1) * groups * head_dim * 4
