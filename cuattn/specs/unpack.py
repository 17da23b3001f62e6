"""What the kernel that unpacks codes fixes at compile time; mirrors kernels_cu/unpack.cu."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..common.sizes import ceil_div
from .kernel_spec import KernelSpec

__all__ = ["PIECE", "UnpackSpec"]

# Codes that a thread unpacks at a time: 8 bytes of them become 16.
PIECE = 16


@dataclass(frozen=True)
class UnpackSpec(KernelSpec):
    """Template argument of `unpack`: codes of 4 bits, two a byte, become one a byte."""

    derived: ClassVar[tuple[str, ...]] = ("pieces", "num_threads", "min_ctas", "smem_bytes")
    source: ClassVar[str] = "unpack.cu"
    entry: ClassVar[str] = "unpack"
    function: ClassVar[str] = "unpack"
    params: ClassVar[str] = "UnpackParams"
    params_file: ClassVar[str] = "unpack.cu"
    pieces: ClassVar[int] = 1024
    num_threads: ClassVar[int] = 256
    min_ctas: ClassVar[int] = 4
    smem_bytes: ClassVar[int] = 0

    def ctas(self, codes: int) -> int:
        """Return the CTAs that a number of codes takes, a multiple of `PIECE`."""
        return ceil_div(codes // PIECE, self.pieces)
