"""Where the tokens of a KV cache lie: pages, heads and units, and the bytes of them all."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..common.sizes import ceil_div, is_whole_number
from ..errors import ArgumentError
from ..kv_format import KV_BITS, UNIT_TOKENS, KVFormat

__all__ = ["KVGeometry", "check_choices", "geometry_of"]

# Tokens of a page; 0 keeps each sequence in one piece.
_PAGE_SIZES = (0, 16, 32, 64, 128, 256)

# Kernels count tokens of a sequence, and heads of all sequences, in 32-bit integers.
_MAX_TOKENS = 2**30
_MAX_HEADS = 2**20

# Of sequences, and of the heads of one, with more of which arrays are no operands (`operand_of`).
_MAX_AXIS = 2**16 - 1

# Entries of page tables are 32-bit integers.
_MAX_PAGES = 2**31 - 1

# Bytes of a length, a limit, an entry of the page table and a component of an offset.
_WORD = 4


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
        if not is_whole_number(self.page_size) or self.page_size not in _PAGE_SIZES:
            raise ArgumentError("page_size", self.page_size, "a power of two from 16 to 256, or 0")
        least = 1 if self.page_size else self.batch
        if not is_whole_number(self.num_pages) or not least <= self.num_pages <= _MAX_PAGES:
            expected = f"a whole number from {least} to {_MAX_PAGES}"
            raise ArgumentError("num_pages", self.num_pages, expected)

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

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token of a sequence: codes and scales of all heads, of K and V."""
        return self.num_kv_heads * self.kv_format.unit_bytes // UNIT_TOKENS

    def nbytes(self, smooth_k: bool) -> int:
        """Bytes of a cache: units, lengths and limits, page table, offsets of K."""
        words = 2 * self.batch
        if self.page_size:
            words += self.batch * self.pages_per_sequence
        if smooth_k:
            words += self.batch * self.num_kv_heads * self.kv_format.head_dim
        return self.units_bytes + _WORD * words


def geometry_of(
    batch: int,
    num_kv_heads: int,
    head_dim: int,
    capacity: int,
    bits: int = 8,
    k_bits: int | None = None,
    v_bits: int | None = None,
    group: int = 0,
    v_zero: bool = False,
    page_size: int = 0,
    num_pages: int | None = None,
) -> KVGeometry:
    """Return the geometry of a cache, whose arguments are those of `KVCache`.

    Raises
    ------
    ArgumentError
        If one of them is wrong.
    """
    if not is_whole_number(bits) or bits not in KV_BITS:
        raise ArgumentError("bits", bits, f"one of {KV_BITS}")
    kv_format = KVFormat(
        head_dim,
        bits if k_bits is None else k_bits,
        bits if v_bits is None else v_bits,
        group,
        v_zero,
    )
    # Everything else is checked before a number of pages is worked out from it.
    sizes = (kv_format, batch, num_kv_heads, capacity, page_size)
    if not page_size:
        geometry = KVGeometry(*sizes, num_pages=batch)
        if num_pages is not None:
            raise ArgumentError("num_pages", num_pages, "None, unless there is a page_size")
        return geometry
    one = KVGeometry(*sizes, num_pages=1)
    wanted = batch * one.pages_per_sequence if num_pages is None else num_pages
    return replace(one, num_pages=wanted)


def check_choices(smooth_k: object, device: object) -> None:
    """Check the arguments of `KVCache` that say nothing of its geometry.

    Raises
    ------
    ArgumentError
        If one of them is wrong.
    """
    if not isinstance(smooth_k, bool):
        raise ArgumentError("smooth_k", smooth_k, "True or False")
    if not (device is None or (isinstance(device, str) and device == "cpu")):
        raise ArgumentError("device", device, "None, for CuPy's current GPU, or 'cpu'")
