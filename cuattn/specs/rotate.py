"""What the kernel that rotates V fixes at compile time; mirrors quant/rotate_params.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..common.sizes import ceil_div
from .attention import Type
from .kernel_spec import KernelSpec
from .row_lanes import row_lanes

__all__ = ["RotateSpec"]


@dataclass(frozen=True)
class RotateSpec(KernelSpec):
    """Template argument of `rotate_values`: V, less its vector, times Hadamard's matrix.

    `cuattn.reference.rotation` has the matrix, and where it is from.

    Parameters
    ----------
    input : Type
        Elements of V.
    head_dim : int
        Padded: one of those of `cuattn.reference.layout`.
    aligned : bool
        Whether base and strides of V are multiples of 16 bytes.
    varlen : bool
        Whether lengths are read from memory.
    """

    derived: ClassVar[tuple[str, ...]] = ("tile", "num_threads", "min_ctas", "smem_bytes")
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
    varlen: bool = False

    @property
    def tile(self) -> int:
        """Tokens of one CTA: a lane has 32 to 48 floats, and half as many 16-byte loads under way.

        `RowLanes` in quant/row_lanes.cuh says how many lanes share a row.
        """
        lanes = row_lanes(self.head_dim * self.input.nbytes)
        whole = self.head_dim * self.input.nbytes == 16 * lanes
        rows = (2 if whole else 1) * self.input.nbytes
        return self.num_threads // lanes * rows

    def tiles(self, seqlen: int) -> int:
        """Return the CTAs of one head."""
        return ceil_div(seqlen, self.tile)
