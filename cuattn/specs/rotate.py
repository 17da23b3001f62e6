"""What the kernel that rotates V fixes at compile time; mirrors quant/rotate_params.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..common.sizes import ceil_div
from .attention import Type, designated

__all__ = ["RotateSpec"]


@dataclass(frozen=True)
class RotateSpec:
    """Template argument of `rotate_values`: V, less its vector, times Hadamard's matrix.

    `cuattn.reference.rotation` has the matrix, and where it is from.

    Parameters
    ----------
    input : Type
        Elements of V.
    head_dim : int
        Padded: one of 32, 64, 96, 128, 192, 256.
    aligned : bool
        Whether base and strides of V are multiples of 16 bytes.
    """

    source: ClassVar[str] = "rotate.cu"
    entry: ClassVar[str] = "rotate"
    function: ClassVar[str] = "rotate_values"
    params: ClassVar[str] = "RotateParams"
    params_file: ClassVar[str] = "quant/rotate_params.cuh"
    num_threads: ClassVar[int] = 256
    min_ctas: ClassVar[int] = 2
    smem_bytes: ClassVar[int] = 0

    input: Type
    head_dim: int
    aligned: bool

    @property
    def tile(self) -> int:
        """Tokens of one CTA: a lane has 32 to 48 floats, and half as many 16-byte loads under way.

        `RowLanes` in quant/row_lanes.cuh says how many lanes share a row.
        """
        elements = 16 // self.input.nbytes
        chunks = self.head_dim // elements
        lanes = min(chunks & -chunks, 32)
        rows = (32 if chunks == lanes else 16) // elements
        return self.num_threads // lanes * rows

    def tiles(self, seqlen: int) -> int:
        """Return the CTAs of one head."""
        return ceil_div(seqlen, self.tile)

    def cxx(self) -> str:
        """Render the spec as a C++20 literal."""
        return designated(self, "tile", "num_threads", "min_ctas", "smem_bytes")
