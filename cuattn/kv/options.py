"""What the arguments of `KVCache` come to: a geometry, and the bytes of a cache."""

from __future__ import annotations

from dataclasses import replace

from ..common.sizes import is_whole_number
from ..errors import ArgumentError
from ..kv_format import KV_BITS, KVFormat
from .geometry import KVGeometry

__all__ = ["bytes_of", "check_choices", "geometry_of"]

# Lengths, limits, entries of page tables and components of offsets.
_WORD = 4


def geometry_of(
    batch: int,
    num_kv_heads: int,
    head_dim: int,
    capacity: int,
    *,
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


def bytes_of(geometry: KVGeometry, smooth_k: bool) -> int:
    """Return the bytes that a cache takes: units, lengths and limits, page table, offsets."""
    words = 2 * geometry.batch
    if geometry.page_size:
        words += geometry.batch * geometry.pages_per_sequence
    if smooth_k:
        words += geometry.batch * geometry.num_kv_heads * geometry.kv_format.head_dim
    return geometry.units_bytes + _WORD * words
