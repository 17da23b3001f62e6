"""The lower halves of nested codes, of the first and the newest units of each sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.sizes import ceil_div
from ..kv_format import UNIT_TOKENS
from ..reference.kv_cache import fine_units
from ..reference.nested import NestedCodes, scale_and_zero, words
from .memory import Memory
from .units import Tokens

__all__ = ["fine_places", "fine_tokens", "halves", "joined", "read_fine"]

_HALF_BITS = 4
_LOWER = 15


def fine_places(memory: Memory, sequence: int, length: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return which units of a sequence have all 8 bits, and where the lower halves of these are."""
    geometry = memory.geometry
    coarse = int(memory.to_host(memory.coarse)[sequence])
    unit = np.flatnonzero(fine_units(length, coarse, geometry.first_units))
    return unit, geometry.fine_place(unit)


def fine_tokens(memory: Memory, sequence: int, length: int) -> Any:
    """Return which tokens of a sequence's units have all 8 bits, where the cache is."""
    unit, _ = fine_places(memory, sequence, length)
    is_fine = np.zeros(ceil_div(length, UNIT_TOKENS), np.bool_)
    is_fine[unit] = True
    return memory.sent(np.repeat(is_fine, UNIT_TOKENS))


def read_fine(memory: Memory, sequence: int, length: int) -> Any:
    """Return lower halves of all units, [1, kv head, unit, unit_bytes], 0 where there are none."""
    unit, place = fine_places(memory, sequence, length)
    _, heads, _, nbytes = memory.geometry.fine_shape
    whole = memory.xp.zeros((1, heads, ceil_div(length, UNIT_TOKENS), nbytes), np.uint8)
    whole[0, :, memory.sent(unit)] = memory.fine[sequence][:, memory.sent(place)].swapaxes(0, 1)
    return whole


def joined(upper: Tokens, lower: Tokens, is_fine: Any) -> Tokens:
    """Put halves of codes together, as they come out of units.

    Parameters
    ----------
    upper, lower : Tokens
        Whose scales are pairs of a scale and a zero point.
    is_fine : ndarray of bool [token]
        Which tokens have lower halves.

    Returns
    -------
    Tokens
        Codes of 8 bits, multiples of 16 where there is no lower half.
    """
    which = is_fine[None, None, :, None]
    codes = (upper.codes << _HALF_BITS) | ((lower.codes & _LOWER) * which).astype("int8")
    pairs = upper.scale.view("uint32") * ~which + lower.scale.view("uint32") * which
    return Tokens(codes, *scale_and_zero(pairs.astype("uint32")))


def halves(x: NestedCodes) -> tuple[Tokens, Tokens]:
    """Return upper and lower halves of codes with their pairs, as units have them."""
    upper = Tokens(x.codes >> _HALF_BITS, words(x.scale, x.zero).view(np.float32))
    lower = Tokens(x.codes & _LOWER, words(x.fine_scale, x.fine_zero).view(np.float32))
    return upper, lower
