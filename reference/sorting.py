"""The order of sorted keys: which tokens of a block share a scale of K and of V.

Softmax does not see the order of the keys of a block, so a quantizer may choose one in which tokens
that share a scale are alike. A block of 128 keys has 128 places, 32 of each of the four lanes that
share a row of S in the accumulators of an m16n8 product: lane t has columns 8 i + 2 t + e, which
are its places 32 t + 2 i + e.

A lane's places lie in four sections of 2, 12, 14 and 4: sections hold tokens with like largest
elements of V, so that the few smallest, which attention sinks are, and the few largest have scales
of their own. A section of a lane has one scale of K and one of V.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32Array

__all__ = [
    "COLUMN_OF_PLACE",
    "LANES",
    "PLACE_OF_COLUMN",
    "PLACE_SCALES",
    "SCOPE_OF_PLACE",
    "SORTED_BLOCK",
    "natural_order",
    "scopes_of_order",
    "sorted_order",
]

SORTED_BLOCK = 128
LANES = 4
# Places of a lane in each section.
_WIDTHS = np.array([2, 12, 14, 4])
PLACE_SCALES = LANES * _WIDTHS.size

_PLACE = np.arange(SORTED_BLOCK)
_IN_LANE = _PLACE % 32
COLUMN_OF_PLACE: NDArray[np.intp] = 8 * (_IN_LANE // 2) + 2 * (_PLACE // 32) + _PLACE % 2

PLACE_OF_COLUMN: NDArray[np.intp] = np.argsort(COLUMN_OF_PLACE)

_LANE_OF_PLACE = _PLACE // 32
_SECTION_OF_PLACE = np.repeat(np.arange(_WIDTHS.size), _WIDTHS)[_IN_LANE]
# Of a place, the number of its scales in its block.
SCOPE_OF_PLACE: NDArray[np.intp] = _WIDTHS.size * _LANE_OF_PLACE + _SECTION_OF_PLACE

# Places in the order in which sorted tokens fill them: section by section, of one lane by lane.
_FILLED = np.lexsort((_IN_LANE, _LANE_OF_PLACE, _SECTION_OF_PLACE))
_SECTION_OF_RANK = _SECTION_OF_PLACE[_FILLED]

# Tokens of the first and of the last section.
_ENDS = LANES * _WIDTHS[[0, -1]]


def natural_order(batch: int, heads: int, n: int) -> NDArray[np.uint8]:
    """Return the order of keys that are not sorted: a place's token is its column.

    Returns
    -------
    ndarray of uint8 [batch, head, block, 128]
    """
    shape = (batch, heads, -(-n // SORTED_BLOCK), SORTED_BLOCK)
    return np.broadcast_to(COLUMN_OF_PLACE.astype(np.uint8), shape).copy()


def sorted_order(k_amax: Float32Array, v_amax: Float32Array) -> NDArray[np.uint8]:
    """Return which token of its block each place holds.

    Tokens are ranked by V's largest element, which decides their sections: the 8 smallest of a
    block come to those of two places, the next 48 to those of 12, the next 56 to those of 14 and
    the 16 largest to those of four. Their lanes follow from K's, the smallest in lane 0: in the two
    in the middle that of each token; in the first section the larger of two neighbours by V, which
    share a lane; in the last that of each token among the 8 smaller by V, for lanes 0 and 1, and
    among the 8 larger. Tokens past the end are the largest of all.

    Parameters
    ----------
    k_amax, v_amax : ndarray of float32 [batch, head, token]
        The largest magnitude of what is quantized of each token. Compared are their 15 leading bits
        of the fraction, then the numbers of the tokens; NaN is above infinity.

    Returns
    -------
    ndarray of uint8 [batch, head, block, 128]
    """
    k_key, v_key = _keys(k_amax), _keys(v_amax)
    by_v = np.argsort(v_key, axis=-1)
    section = _SECTION_OF_RANK[np.argsort(by_v, axis=-1)]
    place = k_key.copy()  # in its section, or what sorts like it
    ends = (by_v[..., : _ENDS[0]], _places_of_pairs), (by_v[..., -_ENDS[1] :], _places_of_halves)
    for tokens, places in ends:
        of_k = np.take_along_axis(k_key, tokens, axis=-1)
        np.put_along_axis(place, tokens, places(of_k), axis=-1)
    order = np.empty(place.shape, np.uint8)
    order[..., _FILLED] = np.argsort((section.astype(np.int64) << 30) + place, axis=-1)
    return order


def _places_of_pairs(of_k: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return places in the first section from keys of K, in the order of V: [..., token]."""
    largest = of_k.reshape(*of_k.shape[:-1], LANES, 2).max(axis=-1)
    places: NDArray[np.int64] = np.repeat(2 * _ranks(largest), 2, axis=-1)
    places += np.arange(of_k.shape[-1]) % 2
    return places


def _places_of_halves(of_k: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return places in the last section from keys of K, in the order of V: [..., token]."""
    half = of_k.shape[-1] // 2
    ranks = _ranks(of_k.reshape(*of_k.shape[:-1], 2, half))
    places: NDArray[np.int64] = (ranks + half * np.arange(2)[:, None]).reshape(of_k.shape)
    return places


def _ranks(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    ranks: NDArray[np.int64] = np.argsort(np.argsort(keys, axis=-1), axis=-1)
    return ranks


def scopes_of_order(order: NDArray[np.uint8], n: int) -> NDArray[np.intp]:
    """Return the number of each token's scales in its (batch, head): [batch, head, token].

    Parameters
    ----------
    order : ndarray of uint8 [batch, head, block, 128]
    n : int
        Tokens.
    """
    found = np.empty(order.shape, np.intp)
    of_place = np.broadcast_to(SCOPE_OF_PLACE, order.shape)
    np.put_along_axis(found, order.astype(np.intp), of_place, axis=-1)
    found += PLACE_SCALES * np.arange(order.shape[2])[:, None]
    return found.reshape(*order.shape[:2], order.shape[2] * SORTED_BLOCK)[..., :n]


def _keys(amax: Float32Array) -> NDArray[np.int64]:
    """Return distinct whole numbers below 2^30 that sort like the tokens of their blocks."""
    batch, heads, n = amax.shape
    blocks = -(-n // SORTED_BLOCK)
    bits = np.full((batch, heads, blocks * SORTED_BLOCK), 0x7FFFFFFF, np.int64)
    magnitudes = np.where(np.isnan(amax), np.float32(np.nan), amax).astype(np.float32)
    bits[..., :n] = np.where(np.isnan(amax), 0x7FFFFFFF, magnitudes.view(np.int32))
    keys = bits.reshape(batch, heads, blocks, SORTED_BLOCK) >> 1 & ~(SORTED_BLOCK - 1)
    return keys | np.arange(SORTED_BLOCK)
