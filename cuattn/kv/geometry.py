"""Where the tokens of a KV cache lie: pages, heads and units, and the bytes of them all."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..common.sizes import ceil_div, is_whole_number
from ..common.typed_json import ADDED
from ..errors import ArgumentError
from ..kv_format import UNIT_TOKENS, KVFormat

__all__ = ["KVGeometry"]

# Kernels count tokens of a sequence, and heads of all sequences, in 32-bit integers.
_MAX_TOKENS = 2**30
_MAX_HEADS = 2**20

# Of sequences, and of the heads of one, with more of which arrays are no operands (`operand_of`).
_MAX_AXIS = 2**16 - 1

# Entries of page tables are 32-bit integers.
_MAX_PAGES = 2**31 - 1

# Most tokens of a sequence that may keep all 8 bits of nested codes, at its beginning or its end.
_MAX_FINE = 2**16

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
        Tokens of a page, one of `page_sizes`; 0 if every sequence lies in one piece.
    num_pages : int
        Pages of all sequences; `batch` if `page_size` is 0.
    first, recent : int
        Of nested codes, how many tokens at the beginning of a sequence, and at its end, have all 8
        bits; multiples of 16.
    window : int
        Tokens that are kept at the end of a sequence when more come, the next one included; 0: all.
    sink_tokens : int
        Tokens at its beginning that are kept besides.

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
    first: int = 0
    recent: int = 0
    window: int = field(default=0, metadata=ADDED)
    sink_tokens: int = field(default=0, metadata=ADDED)

    # Tokens that a page may have.
    page_sizes: ClassVar[tuple[int, ...]] = (16, 32, 64, 128, 256)

    def __post_init__(self) -> None:
        sizes = ("batch", "num_kv_heads", "capacity")
        for name, most in zip(sizes, (_MAX_AXIS, _MAX_AXIS, _MAX_TOKENS), strict=True):
            value = getattr(self, name)
            if not is_whole_number(value) or not 1 <= value <= most:
                raise ArgumentError(name, value, f"a whole number from 1 to {most}")
        if self.batch * self.num_kv_heads > _MAX_HEADS:
            heads = self.batch * self.num_kv_heads
            raise ArgumentError("batch", self.batch, f"at most {_MAX_HEADS} heads, not {heads}")
        if not is_whole_number(self.page_size) or self.page_size not in (0, *self.page_sizes):
            expected = f"one of {self.page_sizes}, or 0 for no pages"
            raise ArgumentError("page_size", self.page_size, expected)
        least = 1 if self.page_size else self.batch
        if not is_whole_number(self.num_pages) or not least <= self.num_pages <= _MAX_PAGES:
            expected = f"a whole number from {least} to {_MAX_PAGES}"
            raise ArgumentError("num_pages", self.num_pages, expected)
        for name in ("first", "recent"):
            value = getattr(self, name)
            if not is_whole_number(value) or not 0 <= value <= _MAX_FINE or value % UNIT_TOKENS:
                expected = f"a multiple of {UNIT_TOKENS} from 0 to {_MAX_FINE}"
                raise ArgumentError(name, value, expected)
            if value and not self.kv_format.nested:
                raise ArgumentError(name, value, "0, unless codes are nested (bits=4)")
        self._check_window()

    def _check_window(self) -> None:
        for name, needs, without in (
            ("window", "page_size", "None without pages, as page_size is 0"),
            ("sink_tokens", "window", "0 without a window, beside which they are kept"),
        ):
            value = getattr(self, name)
            if not is_whole_number(value) or not 0 <= value <= _MAX_TOKENS:
                raise ArgumentError(name, value, f"a whole number from 0 to {_MAX_TOKENS}")
            if value and not getattr(self, needs):
                raise ArgumentError(name, value, without)
        least = self.sink_pages * self.page_size + self.window + self.page_size - 1
        if self.window and self.capacity < least:
            expected = f"at least {least} for a window of {self.window}, whose oldest page is whole"
            raise ArgumentError("capacity", self.capacity, expected)

    @property
    def first_units(self) -> int:
        """Units at the beginning of a sequence whose tokens keep all 8 bits of nested codes."""
        return min(self.first, self.capacity + -self.capacity % UNIT_TOKENS) // UNIT_TOKENS

    @property
    def first_pages(self) -> int:
        """Pages with those units, which no sequence loses before its last tokens."""
        return ceil_div(self.first_units * UNIT_TOKENS, self.page_size) if self.page_size else 0

    @property
    def sink_pages(self) -> int:
        """Pages at the beginning of a sequence that stay when a window moves on."""
        sinks = ceil_div(self.sink_tokens, self.page_size) if self.page_size else 0
        return max(self.first_pages, sinks)

    @property
    def recent_units(self) -> int:
        """Places for units at its end: `recent` tokens may lie in one unit more than they fill."""
        wanted = self.recent // UNIT_TOKENS + 1 if self.recent else 0
        return min(wanted, ceil_div(self.capacity, UNIT_TOKENS) - self.first_units)

    @property
    def fine_shape(self) -> tuple[int, int, int, int]:
        """Shape of the memory of lower halves: [sequence, kv head, place, byte]."""
        places = self.first_units + self.recent_units
        return (self.batch, self.num_kv_heads, places, self.kv_format.unit_bytes)

    def fine_place(self, unit: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of units that have all 8 bits."""
        first = self.first_units
        return np.where(unit < first, unit, first + (unit - first) % max(self.recent_units, 1))

    def coarse_after(
        self, coarse: NDArray[Any], lengths: NDArray[Any], after: NDArray[Any]
    ) -> NDArray[np.int64]:
        """Return from which unit on sequences have all 8 bits, behind the first ones.

        Parameters
        ----------
        coarse, lengths : ndarray of int [batch]
            Before an append.
        after : ndarray of int [batch]
            Lengths after it.
        """
        # Units beyond a length that was shortened are new.
        kept = np.minimum(coarse, -(-lengths // UNIT_TOKENS))
        newest = -(-after // UNIT_TOKENS) - self.recent_units
        most: NDArray[np.int64] = np.maximum(np.maximum(kept, newest), self.first_units)
        return most

    @property
    def page_units(self) -> int:
        """Units of one head in a page."""
        return ceil_div(self.page_size or self.capacity, UNIT_TOKENS)

    def used_units(self, length: int) -> int:
        """Return how many units of one head have the bytes of so many tokens."""
        return ceil_div(length, UNIT_TOKENS)

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
        """Bytes of a token of a sequence: codes and scales of all heads, of K and V.

        Of nested codes without the lower halves, whose memory does not grow with the tokens.
        """
        return self.num_kv_heads * self.kv_format.unit_bytes // UNIT_TOKENS

    def nbytes(self, smooth_k: bool) -> int:
        """Bytes of a cache: units, lower halves, lengths and limits, page table, offsets of K."""
        words = 2 * self.batch
        if self.kv_format.nested:
            words += self.batch
        if self.page_size:
            words += self.batch * self.pages_per_sequence
        if smooth_k:
            words += self.batch * (self.num_kv_heads * self.kv_format.head_dim + 1)
            words += self.batch if self.page_size else 0
        fine = math.prod(self.fine_shape) if self.kv_format.nested else 0
        return self.units_bytes + fine + _WORD * words
