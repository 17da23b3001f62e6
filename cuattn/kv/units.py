"""Between tokens of a KV cache and the bytes of their units: kernels_cu/kv/unit.cuh."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..kv_format import UNIT_TOKENS, KVFormat
from ..reference.layout import in_slots, in_tokens

__all__ = ["Coded", "Tokens", "pack_units", "unpack_units"]

# Codes lie in rows of 16 bytes, 8 rows to a matrix.
_ROW = 16
_ROWS = 8


class Coded(Protocol):
    """What has codes of tokens: `Tokens`, or the reference's `CachedOperand`."""

    @property
    def codes(self) -> Any:
        """As those of `Tokens`."""

    @property
    def scale(self) -> Any:
        """As those of `Tokens`."""

    @property
    def zero(self) -> Any:
        """As those of `Tokens`."""


class Tokens(NamedTuple):
    """K or V of some tokens, in their natural order; arrays of NumPy or of CuPy.

    Parameters
    ----------
    codes : ndarray of int8 [batch, head, token, channel]
        Channels are those of `KVFormat.padded`.
    scale : ndarray of float32 [batch, head, token, group]
    zero : ndarray of float32 [batch, head, token, group], or None
    """

    codes: Any
    scale: Any
    zero: Any = None

    def values(self) -> Any:
        """Return what the codes stand for, float32 [batch, head, token, channel]."""
        group = self.codes.shape[3] // self.scale.shape[3]
        x = self.codes.astype("float32") * self.scale.repeat(group, axis=3)
        return x if self.zero is None else x + self.zero.repeat(group, axis=3)


def pack_units(k: Coded, v: Coded, kv_format: KVFormat) -> Any:
    """Put tokens into units.

    Parameters
    ----------
    k, v : Tokens or CachedOperand
        Of whole units: the number of tokens is a multiple of 16.
    kv_format : KVFormat

    Returns
    -------
    ndarray of uint8 [batch, head, unit, unit_bytes]
        Of the library of the codes.
    """
    parts = [
        _packed_keys(k.codes, kv_format.k_bits),
        _packed_values(v.codes, kv_format.v_bits),
        _packed_numbers(k.scale),
        _packed_numbers(v.scale),
        *([_packed_numbers(v.zero)] if kv_format.v_zero else []),
    ]
    to_next = kv_format.unit_bytes - kv_format.used_bytes
    return np.pad(np.concatenate(parts, axis=-1), [(0, 0)] * 3 + [(0, to_next)])


def unpack_units(units: Any, kv_format: KVFormat) -> tuple[Tokens, Tokens]:
    """Undo `pack_units`: return K and V in new arrays."""
    of = kv_format
    k_codes = _keys(units[..., : of.v_at], of.padded, of.k_bits)
    v_codes = _values(units[..., of.v_at : of.k_scale_at], of.padded, of.v_bits)
    k_scale = _numbers(units[..., of.k_scale_at : of.v_scale_at], of.k_groups)
    v_scale = _numbers(units[..., of.v_scale_at : of.v_zero_at], of.v_groups)
    zero = _numbers(units[..., of.v_zero_at : of.used_bytes], of.v_groups) if of.v_zero else None
    return Tokens(k_codes, k_scale), Tokens(v_codes, v_scale, zero)


def _packed_keys(codes: Any, bits: int) -> Any:
    head_dim = codes.shape[3]
    if bits == 8:
        rows = _by_units(codes, head_dim // _ROW, _ROW).view("uint8")
    else:
        halves = _by_units(codes, head_dim // (2 * _ROW), 2, _ROW)
        rows = _pairs(halves[..., 0, :], halves[..., 1, :])
    return _run(rows.swapaxes(3, 4))


def _keys(packed: Any, head_dim: int, bits: int) -> Any:
    columns = head_dim * bits // (8 * _ROW)
    rows = packed.reshape(*packed.shape[:3], columns, UNIT_TOKENS, _ROW).swapaxes(3, 4)
    return _in_order(rows.view("int8") if bits == 8 else np.stack(_halves(rows), axis=-2), head_dim)


def _packed_values(codes: Any, bits: int) -> Any:
    head_dim = codes.shape[3]
    slots = in_slots(_by_units(codes, head_dim).swapaxes(3, 4))
    if bits == 8:
        return _run(slots.view("uint8"))
    tiles = slots.reshape(*slots.shape[:3], head_dim // (2 * _ROWS), 2, _ROWS, UNIT_TOKENS)
    return _run(_pairs(tiles[..., 0, :, :], tiles[..., 1, :, :]))


def _values(packed: Any, head_dim: int, bits: int) -> Any:
    if bits == 8:
        slots = packed.view("int8")
    else:
        shape = (*packed.shape[:3], head_dim // (2 * _ROWS), _ROWS, UNIT_TOKENS)
        slots = np.stack(_halves(packed.reshape(shape)), axis=-3)
    tokens = in_tokens(slots.reshape(*packed.shape[:3], head_dim, UNIT_TOKENS))
    return _in_order(tokens.swapaxes(3, 4), head_dim)


def _packed_numbers(of_tokens: Any) -> Any:
    return _run(in_slots(_by_units(of_tokens, of_tokens.shape[3]).swapaxes(3, 4))).view("uint8")


def _numbers(packed: Any, groups: int) -> Any:
    slots = packed.copy().view("float32").reshape(*packed.shape[:3], groups, UNIT_TOKENS)
    return _in_order(in_tokens(slots).swapaxes(3, 4), groups)


def _by_units(x: Any, *channels: int) -> Any:
    """Split the axis of tokens into [unit, token of the unit], and the last one."""
    batch, heads, tokens, _ = x.shape
    return x.reshape(batch, heads, tokens // UNIT_TOKENS, UNIT_TOKENS, *channels)


def _run(x: Any) -> Any:
    """Make one contiguous run of all of a unit."""
    return x.reshape(*x.shape[:3], math.prod(x.shape[3:])).copy()


def _in_order(x: Any, channels: int) -> Any:
    """Join [batch, head, unit, token of the unit, ...] to [batch, head, token, channel]."""
    batch, heads, units = x.shape[:3]
    return x.reshape(batch, heads, units * UNIT_TOKENS, channels).copy()


def _pairs(low: Any, high: Any) -> Any:
    return low.view("uint8") & 15 | high.view("uint8") << 4


def _halves(pairs: Any) -> tuple[Any, Any]:
    return (pairs << 4).view("int8") >> 4, pairs.view("int8") >> 4
