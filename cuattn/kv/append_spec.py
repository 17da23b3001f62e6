"""What the kernels that fill a KV cache fix at compile time; mirrors kernels_cu/kv/kv_spec.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..common.sizes import ceil_div
from ..kv_format import UNIT_TOKENS, KVFormat
from ..specs.attention import Type
from ..specs.kernel_spec import KernelSpec, joined_bytes
from .spec import OfFormat

__all__ = ["AppendSpec", "OffsetSpec"]

# Up to this head_dim, 16 float32 numbers of each channel leave registers for 16 warps.
_NARROW = 64


@dataclass(frozen=True)
class AppendSpec(OfFormat):
    """Template argument of `append`: quantizes tokens of K and V into their units.

    Parameters
    ----------
    aligned : bool
        Whether bases and strides of the arrays are multiples of 16 bytes.
    single : bool
        Whether they have one token of each sequence.
    rope : bool
        Whether keys turn by their positions first.
    packed : bool
        Whether the tokens of all sequences lie end to end.
    """

    source: ClassVar[str] = "append.cu"
    entry: ClassVar[str] = "append"
    function: ClassVar[str] = "append_tokens"
    params: ClassVar[str] = "AppendParams"
    params_file: ClassVar[str] = "kv/kv_params.cuh"
    num_threads: ClassVar[int] = 128

    aligned: bool
    single: bool = False
    rope: bool = False
    packed: bool = False

    @classmethod
    def of(
        cls,
        kv_format: KVFormat,
        element: Type,
        *,
        aligned: bool,
        single: bool = False,
        rope: bool = False,
        packed: bool = False,
    ) -> AppendSpec:
        """Return the spec of a format, for tokens of a type."""
        given: dict[str, Any] = {"aligned": aligned, "single": single, "packed": packed}
        return cls(input=element, **cls.fields_of(kv_format), **given, rope=rope)

    @property
    def min_ctas(self) -> int:
        """CTAs of a multiprocessor: a warp has a unit of K or V in registers.

        In float32, if it is turned or rotated or its codes are nested. Or it has a single token.
        """
        if self.single:
            return 4 if self.rope else 6
        if self.rotate or self.nested or self.rope:
            return 4 if self.head_dim <= _NARROW else 2
        row_bytes = self.head_dim * self.input.nbytes
        return 6 if row_bytes <= 256 else 3 if row_bytes <= 512 else 2

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: a `UnitImage` in kv/unit_image.cuh for each warp."""
        return self.num_threads // 32 * (UNIT_TOKENS + 2) * self.head_dim

    @classmethod
    def pieces(cls, tokens: int) -> int:
        """Return the CTAs of one head of a sequence, wherever in a unit its first token lies."""
        units_of_cta = cls.num_threads // 64
        most_units = (tokens + 2 * UNIT_TOKENS - 2) // UNIT_TOKENS
        return ceil_div(most_units, units_of_cta)

    @classmethod
    def shares(cls, tokens: int, parts: int) -> int:
        """Return the CTAs of one head of sequences that lie end to end: `cta_tokens` in append.cu.

        Parameters
        ----------
        tokens : int
            Of all of them.
        parts : int
            How many they are.
        """
        return tokens // (cls.num_threads // 64 * UNIT_TOKENS) + 2 * parts


@dataclass(frozen=True)
class OffsetSpec(KernelSpec):
    """Template argument of `fix_offsets`: the vector that K of a sequence is smoothed by.

    Parameters
    ----------
    input : Type
        Elements of K.
    head_dim : int
    aligned : bool
        Whether base and strides of K are multiples of 16 bytes.
    rope : bool
        Whether it is the mean of keys that have turned by their positions.
    packed : bool
        Whether the tokens of all sequences lie end to end.
    """

    source: ClassVar[str] = "offsets.cu"
    entry: ClassVar[str] = "offsets"
    function: ClassVar[str] = "fix_offsets"
    params: ClassVar[str] = "OffsetParams"
    params_file: ClassVar[str] = "kv/kv_params.cuh"
    num_threads: ClassVar[int] = 256
    min_ctas: ClassVar[int] = 3

    input: Type
    head_dim: int
    aligned: bool
    rope: bool = False
    packed: bool = False

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: `GroupMoments` in quant/moments.cuh."""
        return joined_bytes(self.num_threads, self.head_dim, self.input.nbytes)
