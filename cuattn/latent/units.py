"""Between tokens of a latent cache and the bytes of their units: kernels_cu/kv/latent_unit.cuh."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..common.sizes import ceil_div
from ..kv.memory import Memory
from ..kv_format import UNIT_TOKENS
from ..reference.latent import LatentTokens
from ..reference.layout import in_slots, in_tokens
from ..reference.rounding import round_half
from .format import LATENT, LATENT_UNIT_TOKENS, ROPE, LatentFormat

__all__ = ["parts_of", "read_tokens", "write_tokens"]

# Codes and rotary channels lie in rows of 16 bytes.
_ROW = 16


class _Parts(NamedTuple):
    """Views of some units of a page: [unit, row of 16 bytes of a token, token, element]."""

    codes: Any
    rope: Any
    scale: Any  # [unit, slot]


def write_tokens(memory: Memory, sequence: int, first: int, tokens: LatentTokens) -> None:
    """Put tokens of one sequence, a batch of 1, into their places from token `first` on."""
    count = tokens.codes.shape[1]
    codes = tokens.codes.reshape(count, LATENT // _ROW, _ROW)
    rope = _half_bits(tokens).reshape(count, ROPE // (_ROW // 2), _ROW // 2)
    scale = tokens.scale.reshape(count)
    for unit in range(first // LATENT_UNIT_TOKENS, ceil_div(first + count, LATENT_UNIT_TOKENS)):
        begin = unit * LATENT_UNIT_TOKENS
        low, high = max(begin, first), min(begin + LATENT_UNIT_TOKENS, first + count)
        to, some = slice(low - begin, high - begin), slice(low - first, high - first)
        parts = _parts(memory, sequence, unit)
        parts.codes[0, :, to] = codes[some].swapaxes(0, 1)
        parts.rope[0, :, to] = rope[some].swapaxes(0, 1)
        of_unit = in_tokens(parts.scale)
        of_unit[0, to] = scale[some]
        parts.scale[...] = in_slots(of_unit)


def read_tokens(memory: Memory, lengths: NDArray[np.int64]) -> LatentTokens:
    """Copy the tokens of all sequences to the host; all is 0 beyond the length of one."""
    batch, most = len(lengths), int(lengths.max())
    dtype = _dtype_of(memory)
    codes = np.zeros((batch, most, LATENT), np.int8)
    scale = np.zeros((batch, most), np.float32)
    rope = np.zeros((batch, most, ROPE), np.float32)
    for b in np.flatnonzero(lengths).tolist():
        n = int(lengths[b])
        for unit in range(ceil_div(n, LATENT_UNIT_TOKENS)):
            begin = unit * LATENT_UNIT_TOKENS
            count = min(n - begin, LATENT_UNIT_TOKENS)
            at = slice(begin, begin + count)
            parts = _Parts(*(memory.to_host(x) for x in _parts(memory, b, unit)))
            codes[b, at] = parts.codes[0].swapaxes(0, 1).reshape(-1, LATENT)[:count]
            halves = parts.rope[0].swapaxes(0, 1).reshape(-1, ROPE)[:count]
            rope[b, at] = _widened(np.ascontiguousarray(halves), dtype)
            scale[b, at] = in_tokens(parts.scale)[0, :count]
    return LatentTokens(codes, scale, rope, "float16" if dtype == "float16" else "bfloat16")


def _parts(memory: Memory, sequence: int, unit: int) -> _Parts:
    geometry = memory.geometry
    page = sequence
    if memory.pages is not None:
        units = geometry.page_units * UNIT_TOKENS // LATENT_UNIT_TOKENS
        page = int(memory.to_host(memory.pages[sequence, unit // units]))
        unit %= units
    size = LatentFormat.whole_bytes
    return parts_of(memory.units[page].reshape(-1)[None, unit * size : (unit + 1) * size])


def parts_of(units: Any) -> _Parts:
    """Return the parts of units [unit, byte] where they are."""
    count, of = len(units), LatentFormat
    codes, rope, scale = (
        units[:, : of.rope_at],
        units[:, of.rope_at : of.scale_at],
        units[:, of.scale_at :],
    )
    return _Parts(
        codes.view(np.int8).reshape(count, LATENT // _ROW, LATENT_UNIT_TOKENS, _ROW),
        rope.view(np.uint16).reshape(count, ROPE * 2 // _ROW, LATENT_UNIT_TOKENS, _ROW // 2),
        scale.view(np.float32).reshape(count, LATENT_UNIT_TOKENS),
    )


def _dtype_of(memory: Memory) -> str:
    kv_format = memory.geometry.kv_format
    return kv_format.rope_dtype if isinstance(kv_format, LatentFormat) else "bfloat16"


def _half_bits(tokens: LatentTokens) -> NDArray[np.uint16]:
    """Return rotary channels as the bits of their type."""
    if tokens.dtype == "float16":
        with np.errstate(over="ignore", invalid="ignore"):
            return tokens.rope.astype(np.float16).view(np.uint16)
    bits = round_half(tokens.rope, "bfloat16").astype(np.float32).view(np.uint32)
    return (bits >> np.uint32(16)).astype(np.uint16)


def _widened(bits: NDArray[np.uint16], dtype: str) -> NDArray[np.float32]:
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
