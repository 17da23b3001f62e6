"""Where the tokens of a KV cache lie: pages, heads and units, and the bytes of them all."""

from __future__ import annotations

from dataclasses import dataclass

from ..common.sizes import ceil_div, is_whole_number
from ..errors import ArgumentError
from ..kv_format import UNIT_TOKENS, KVFormat

__all__ = ["MAX_PAGE", "KVGeometry"]

# Tokens of the largest page.
MAX_PAGE = 256

# Kernels count tokens of a sequence, and heads of all sequences, in 32-bit integers.
_MAX_TOKENS = 2**30
_MAX_HEADS = 2**20

# Of sequences, and of the heads of one, with more of which arrays are no operands (`operand_of`).
_MAX_AXIS = 2**16 - 1


@dataclass(frozen=True)
class KVGeometry:
    """The shape of a cache; its memory is units [page, kv head, unit of the page, byte].

    Parameters
    ----------
    kv_format : KVFormat
    batch : int
        Sequences.
    num_kv_heads : int
    capacity : int
        Most tokens of a sequence.
    page_size : int
        Tokens of a page, a power of two from 16 to 256; 0 if every sequence lies in one piece.
    num_pages : int
        Pages of all sequences; `batch` if `page_size` is 0.

    Raises
    ------
    ArgumentError
        For sizes that no kernel takes.
    """

    kv_format: KVFormat
    batch: int
    num_kv_heads: int
    capacity: int
    page_size: int
    num_pages: int

    def __post_init__(self) -> None:
        sizes = ("batch", "num_kv_heads", "capacity")
        for name, most in zip(sizes, (_MAX_AXIS, _MAX_AXIS, _MAX_TOKENS), strict=True):
            value = getattr(self, name)
            if not is_whole_number(value) or not 1 <= value <= most:
                raise ArgumentError(name, value, f"a whole number from 1 to {most}")
        if self.batch * self.num_kv_heads > _MAX_HEADS:
            heads = self.batch * self.num_kv_heads
            raise ArgumentError("batch", self.batch, f"at most {_MAX_HEADS} heads, not {heads}")
        sizes_of_pages = (0, 16, 32, 64, 128, MAX_PAGE)
        if not is_whole_number(self.page_size) or self.page_size not in sizes_of_pages:
            raise ArgumentError("page_size", self.page_size, "a power of two from 16 to 256, or 0")
        least = 1 if self.page_size else self.batch
        if not is_whole_number(self.num_pages) or self.num_pages < least:
            raise ArgumentError("num_pages", self.num_pages, f"at least {least}")

    @property
    def page_units(self) -> int:
        """Units of one head in a page."""
        return ceil_div(self.page_size or self.capacity, UNIT_TOKENS)

    @property
    def pages_per_sequence(self) -> int:
        """Pages that a sequence of `capacity` tokens takes."""
        return ceil_div(self.capacity, self.page_size) if self.page_size else 1

    @property
    def units_shape(self) -> tuple[int, int, int, int]:
        """Shape of the memory in bytes: [page, kv head, unit of the page, byte]."""
        return (self.num_pages, self.num_kv_heads, self.page_units, self.kv_format.unit_bytes)

    @property
    def head_stride(self) -> int:
        """Bytes from one head of a page to the next."""
        return self.page_units * self.kv_format.unit_bytes

    @property
    def page_stride(self) -> int:
        """Bytes from one page to the next."""
        return self.num_kv_heads * self.head_stride

    @property
    def units_bytes(self) -> int:
        """Bytes of all units."""
        return self.num_pages * self.page_stride
