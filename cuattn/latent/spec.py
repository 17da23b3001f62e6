"""What the kernels of the latent cache fix at compile time; mirrors kernels_cu/kv/latent_spec.cuh.

`latent_decode_spec` chooses the kernel that attends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..arrays.device import Target
from ..common.sizes import round_up
from ..errors import UnsupportedError
from ..kv.spec import KV_BLOCK
from ..specs.attention import Type
from ..specs.kernel_spec import KernelSpec
from .format import LATENT, LATENT_UNIT_TOKENS, ROPE, LatentFormat

__all__ = ["LatentAppendSpec", "LatentDecodeSpec", "LatentMergeSpec", "latent_decode_spec"]

# Of a CTA that decodes. With a ninth, a quarter of a multiprocessor would have three.
_WARPS = 8

# Rows of a CTA: 64 leave no registers for more.
_ROWS = (16, 32, 64)

# Shared memory that the driver takes of every CTA.
_RESERVED_SMEM = 1024


@dataclass(frozen=True)
class LatentDecodeSpec(KernelSpec):
    """Template argument of `decode_latent`: queries of all heads against the latent cache.

    Parameters
    ----------
    input : Type
        Elements of Q and O.
    rope : Type
        Of the cache's rotary channels.
    rows : int
        Queries times query heads of a CTA: 16, 32 or 64.
    stages : int
        Blocks of 128 tokens in shared memory.
    warpgroups : bool
        Whether products are those of Hopper's warpgroups; of 64 rows, and two stages.
    """

    source: ClassVar[str] = "decode_latent.cu"
    entry: ClassVar[str] = "decode_latent"
    function: ClassVar[str] = "decode_latent"
    params: ClassVar[str] = "DecodeParams"
    params_file: ClassVar[str] = "kv/kv_params.cuh"
    num_threads: ClassVar[int] = 32 * _WARPS
    min_ctas: ClassVar[int] = 1

    input: Type
    rope: Type
    rows: int
    stages: int
    warpgroups: bool = False

    @property
    def smem_bytes(self) -> int:
        """Dynamic shared memory of one CTA: `LatentStorage` in kernels_cu/kv/latent_storage.cuh."""
        units = self.stages * KV_BLOCK // LATENT_UNIT_TOKENS * LatentFormat.whole_bytes
        # Codes and rotary channels of Q, and codes of P.
        operands = self.rows * (LATENT + 2 * ROPE + KV_BLOCK)
        row_groups = 4 if self.warpgroups else 2 if self.rows == _ROWS[-1] else 1
        shares = _WARPS // row_groups
        # Of each row and share a maximum and a sum, and Q's scale.
        numbers = 4 * self.rows * (2 * shares + 1)
        # Of warpgroups for each row two factors of O and an address, for each token of a block two
        # numbers; what is next of a CTA's share. All that lies before the units.
        extras = 16 * self.rows + 8 * KV_BLOCK + 208 if self.warpgroups else 0
        sums = units + operands + numbers + 16 * self.stages + 8
        return round_up(extras, 128) + round_up(sums, 128)

    @property
    def partial_bytes(self) -> int:
        """Bytes of a part of O: `Partial` in kernels_cu/kv/partials.cuh."""
        return 4 * self.rows * (LATENT + 3)


@dataclass(frozen=True)
class LatentMergeSpec(KernelSpec):
    """Template argument of `merge_latent`: merges the parts that CTAs of `decode_latent` leave.

    A CTA has a row, and a thread four of its channels.

    Parameters
    ----------
    input : Type
        Elements of O.
    rows : int
        Of a part: those of the `LatentDecodeSpec`.
    """

    source: ClassVar[str] = "merge_latent.cu"
    entry: ClassVar[str] = "merge_latent"
    function: ClassVar[str] = "merge_latent"
    params: ClassVar[str] = "DecodeParams"
    params_file: ClassVar[str] = "kv/kv_params.cuh"
    num_threads: ClassVar[int] = LATENT // 4
    min_ctas: ClassVar[int] = 4
    smem_bytes: ClassVar[int] = 0

    input: Type
    rows: int


@dataclass(frozen=True)
class LatentAppendSpec(KernelSpec):
    """Template argument of `append_latent`: quantizes tokens into their units.

    Parameters
    ----------
    input : Type
        Elements of the tokens.
    rope : Type
        What their rotary channels become.
    aligned : bool
        Whether bases and strides of the arrays are multiples of 16 bytes.
    packed : bool
        Whether the tokens of all sequences lie end to end.
    """

    source: ClassVar[str] = "append_latent.cu"
    entry: ClassVar[str] = "append_latent"
    function: ClassVar[str] = "append_latent"
    params: ClassVar[str] = "AppendParams"
    params_file: ClassVar[str] = "kv/kv_params.cuh"
    num_threads: ClassVar[int] = 128
    min_ctas: ClassVar[int] = 8
    smem_bytes: ClassVar[int] = 0
    tokens: ClassVar[int] = num_threads // 32

    input: Type
    rope: Type
    aligned: bool
    packed: bool = False


def latent_decode_spec(element: Type, rope: Type, rows: int, target: Target) -> LatentDecodeSpec:
    """Return the kernel for queries of a type.

    Parameters
    ----------
    element, rope : Type
        Of queries, and of the cache's rotary channels.
    rows : int
        Queries of a sequence, times query heads.
    target : Target

    Raises
    ------
    UnsupportedError
        If a block of tokens is too large for the shared memory of the GPU.
    """
    of_cta = next((n for n in _ROWS if rows <= n), _ROWS[-1])
    room = min(target.max_smem_per_sm - _RESERVED_SMEM, target.max_smem_per_cta)
    for count in reversed(_ROWS[: _ROWS.index(of_cta) + 1]):
        for stages in (2, 1):
            warpgroups = target.arch == "90a" and (count, stages) == (_ROWS[-1], 2)
            spec = LatentDecodeSpec(element, rope, count, stages, warpgroups)
            if spec.smem_bytes <= room:
                return spec
    found = f"sm_{target.arch} has {room} bytes of shared memory for a CTA"
    raise UnsupportedError(
        f"a latent cache wants {spec.smem_bytes}, {found}; keep it in host memory"
    )
