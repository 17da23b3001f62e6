"""What kernels that measure ceilings fix at compile time; mirrors rate.cuh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .attention import Type
from .kernel_spec import KernelSpec

__all__ = ["MemoryRateSpec", "ProductRateSpec", "RateSpec"]


@dataclass(frozen=True)
class MemoryRateSpec(KernelSpec):
    """Template argument of `memory_rate`.

    Parameters
    ----------
    writes : bool
        Whether what is read is written elsewhere.
    """

    derived: ClassVar[tuple[str, ...]] = ("chunks", "num_threads", "min_ctas", "smem_bytes")
    source: ClassVar[str] = "memory_rate.cu"
    entry: ClassVar[str] = "memory_rate"
    function: ClassVar[str] = "memory_rate"
    params: ClassVar[str] = "MemoryRateParams"
    params_file: ClassVar[str] = "rate.cuh"
    num_threads: ClassVar[int] = 1024
    smem_bytes: ClassVar[int] = 0

    writes: bool

    # Memory that changes between reading and writing loses time: of the shapes that were tried, on
    # an H200, one large CTA copies fastest, and two of half the loads read fastest.
    @property
    def chunks(self) -> int:
        """Loads of 16 bytes that a thread has under way."""
        return 8 if self.writes else 4

    @property
    def min_ctas(self) -> int:
        """CTAs of a multiprocessor."""
        return 1 if self.writes else 2

    @property
    def turn(self) -> int:
        """Bytes that a CTA has under way."""
        return 16 * self.chunks * self.num_threads


@dataclass(frozen=True)
class ProductRateSpec(KernelSpec):
    """Template argument of `mma_rate` and `wgmma_rate`: A Bᵀ, again and again.

    Parameters
    ----------
    type : {Type.int8, Type.e4m3, Type.fp16}
        Of both operands; sums are int32, or float32.
    warpgroups : bool
        Whether warpgroups multiply (``wgmma``), or single warps (``mma.sync``).
    """

    derived: ClassVar[tuple[str, ...]] = (
        *("a_rows", "b_rows", "row_bytes"),
        *KernelSpec.derived,
    )
    params: ClassVar[str] = "ProductRateParams"
    params_file: ClassVar[str] = "rate.cuh"
    # Two warpgroups keep Hopper's tensor cores busy, and two warps a quarter of an SM.
    num_threads: ClassVar[int] = 256
    min_ctas: ClassVar[int] = 1

    type: Type
    warpgroups: bool

    @property
    def function(self) -> str:
        """Name of the function template and its entry."""
        return "wgmma_rate" if self.warpgroups else "mma_rate"

    @property
    def entry(self) -> str:
        """Name of the kernel."""
        return self.function

    @property
    def source(self) -> str:
        """File under kernels_cu/."""
        return "wgmma_rate_sm90.cu" if self.warpgroups else "mma_rate_sm80.cu"

    @property
    def a_rows(self) -> int:
        """Rows of A."""
        return 64 if self.warpgroups else 32

    @property
    def b_rows(self) -> int:
        """Rows of B, columns of the product."""
        return 128 if self.warpgroups else 64

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of A and of B, along which products are added."""
        return 128 if self.warpgroups else 32

    @property
    def smem_bytes(self) -> int:
        """Both tiles, or nothing."""
        return (self.a_rows + self.b_rows) * self.row_bytes if self.warpgroups else 0

    @property
    def operations(self) -> int:
        """Multiplications and additions of all threads of a CTA in a round."""
        multiply = self.num_threads // (128 if self.warpgroups else 32)
        return 2 * multiply * self.a_rows * self.b_rows * (self.row_bytes // self.type.nbytes)


RateSpec = MemoryRateSpec | ProductRateSpec
