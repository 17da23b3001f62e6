"""What the kernel that lists the work of the Hopper family fixes; mirrors kernels_cu/units.cu."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..common.sizes import ceil_div
from .kernel_spec import KernelSpec

__all__ = ["UnitsSpec"]


@dataclass(frozen=True)
class UnitsSpec(KernelSpec):
    """Template argument of `list_units`.

    Parameters
    ----------
    rows : int
        Query rows of an item of the attention kernel.
    """

    source: ClassVar[str] = "units.cu"
    entry: ClassVar[str] = "list_units"
    function: ClassVar[str] = "list_units"
    params: ClassVar[str] = "UnitsParams"
    params_file: ClassVar[str] = "units.cu"
    num_threads: ClassVar[int] = 128
    min_ctas: ClassVar[int] = 1
    smem_bytes: ClassVar[int] = 0

    rows: int

    def ctas(self, batch: int) -> int:
        """Return the CTAs of a launch, a thread for each sequence."""
        return ceil_div(batch, self.num_threads)

    def most(self, batch: int, total_q: int) -> int:
        """Return how many units there may be."""
        return total_q // self.rows + batch
