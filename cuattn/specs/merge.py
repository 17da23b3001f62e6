"""What the kernel that merges states fixes at compile time; mirrors kernels_cu/merge_states.cu."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..common.sizes import ceil_div
from .attention import Type
from .kernel_spec import KernelSpec

__all__ = ["MergeSpec"]


@dataclass(frozen=True)
class MergeSpec(KernelSpec):
    """Template argument of `merge_states`: attention to the parts of a set becomes that to it.

    Parameters
    ----------
    input : Type
        Elements of the parts: fp16, bf16 or fp32.
    out : Type
        The same, or fp32 where launches follow that merge what this one cannot take.
    aligned : bool
        Whether rows of the parts, and of an output of their type, begin at multiples of 16 bytes.
    """

    derived: ClassVar[tuple[str, ...]] = (
        *("parts", "chunks", "num_threads", "min_ctas", "smem_bytes"),
    )
    source: ClassVar[str] = "merge_states.cu"
    entry: ClassVar[str] = "merge_states"
    function: ClassVar[str] = "merge_states"
    params: ClassVar[str] = "MergeParams"
    params_file: ClassVar[str] = "merge_states.cu"
    parts: ClassVar[int] = 16
    # Where a row is and what its parts count takes as many instructions as two chunks do. With four
    # there are registers for 512 threads of a multiprocessor, whose loads cover the way to memory.
    chunks: ClassVar[int] = 4
    num_threads: ClassVar[int] = 256
    min_ctas: ClassVar[int] = 2
    smem_bytes: ClassVar[int] = 0

    input: Type
    out: Type
    aligned: bool

    def lanes(self, head_dim: int) -> int:
        """Return the threads that share a row."""
        return ceil_div(head_dim * self.input.nbytes, 16 * self.chunks)

    def tile(self, head_dim: int) -> int:
        """Return the rows of one CTA."""
        return self.num_threads // self.lanes(head_dim)
