"""What the kernel that looks at a mask fixes at compile time; mirrors kernels_cu/mask_map.cu."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..common.sizes import ceil_div, round_up
from .kernel_spec import KernelSpec
from .rules import MaskKind

__all__ = ["MAP_TILE", "MaskMapSpec", "bit_words", "map_words"]

# Rows, and keys, of a tile of the map.
MAP_TILE = 64

_WORD = 32

# Rows of bits are read by 16 bytes.
_BITS_PAD = 128


@dataclass(frozen=True)
class MaskMapSpec(KernelSpec):
    """Template argument of `mask_map`.

    Parameters
    ----------
    input : MaskKind
    last : bool
        Whether columns are of each sequence's last keys.
    """

    source: ClassVar[str] = "mask_map.cu"
    entry: ClassVar[str] = "mask_map"
    function: ClassVar[str] = "mask_map"
    params: ClassVar[str] = "MaskMapParams"
    params_file: ClassVar[str] = "mask_map.cu"
    num_threads: ClassVar[int] = 256
    smem_bytes: ClassVar[int] = 0

    input: MaskKind
    last: bool = False

    @property
    def min_ctas(self) -> int:
        """CTAs of a multiprocessor; columns that may be missing take registers."""
        return 2 if self.last else 4


def bit_words(seqlen_kv: int) -> int:
    """Return the words of a row of bits."""
    return round_up(seqlen_kv, _BITS_PAD) // _WORD


def map_words(seqlen_kv: int) -> int:
    """Return the words of a row of the map, of which it has two for every 64 rows of Q."""
    return ceil_div(seqlen_kv, MAP_TILE * _WORD)
