"""From the arguments of `KVCache` to the geometry that they ask for."""

from __future__ import annotations

from dataclasses import replace

from ..common.sizes import is_whole_number
from ..errors import ArgumentError
from ..kv_format import KV_BITS, KVFormat, padded_head_dim
from .geometry import KVGeometry

__all__ = ["check_choices", "geometry_of"]

# What caches with nested codes have, unless they are asked for something else.
_FIRST = 16
_RECENT = 256
_NESTED_GROUP = 64


def geometry_of(
    batch: int,
    num_kv_heads: int,
    head_dim: int,
    capacity: int,
    bits: int = 8,
    k_bits: int | None = None,
    v_bits: int | None = None,
    group: int | None = None,
    v_zero: bool = False,
    page_size: int = 0,
    num_pages: int | None = None,
    rotate: bool = True,
    nested: bool | None = None,
    first: int | None = None,
    recent: int | None = None,
    window: int | None = None,
    sink_tokens: int = 0,
) -> KVGeometry:
    """Return the geometry of a cache, whose arguments are those of `KVCache`.

    Raises
    ------
    ArgumentError
        If one of them is wrong.
    """
    if not is_whole_number(bits) or bits not in KV_BITS:
        raise ArgumentError("bits", bits, f"one of {KV_BITS}")
    if nested is None:
        # 4 bits and no more said of them.
        nested = bits == 4 and (k_bits, v_bits, v_zero) == (None, None, False)
    if group is None:
        in_groups = nested is True and (bits, k_bits) != (8, None)
        divides = in_groups and padded_head_dim(head_dim) % _NESTED_GROUP == 0
        group = _NESTED_GROUP if divides else 0
    kv_format = KVFormat(
        head_dim,
        bits if k_bits is None else k_bits,
        bits if v_bits is None else v_bits,
        group,
        v_zero,
        rotate,
        nested,
    )
    # Everything else is checked before a number of pages is worked out from it.
    sizes = (kv_format, batch, num_kv_heads, capacity, page_size)
    if window is not None and (not is_whole_number(window) or window < 1):
        raise ArgumentError("window", window, "a whole number from 1 on, or None")
    if first is None:
        first = _FIRST if nested else 0
    if recent is None:
        recent = _RECENT if nested else 0
    if not page_size:
        geometry = KVGeometry(*sizes, batch, first, recent, window or 0, sink_tokens)
        if num_pages is not None:
            raise ArgumentError("num_pages", num_pages, "None, unless there is a page_size")
        return geometry
    one = KVGeometry(*sizes, 1, first, recent, window or 0, sink_tokens)
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
