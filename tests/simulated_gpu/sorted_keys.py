"""Sorted keys in the memory of the simulated GPU: their order, and scales of sections of lanes.

Written from kernels_cu/layout.cuh; nothing here is `cuattn.operands.token_order`.
"""

import numpy as np

from .memory import BLOCK, compact, floats

# Of a place, its lane, the section that it is in there and its column among those of a product.
LANE = np.arange(BLOCK) // 32
SECTION = np.array(4 * ([0] * 2 + [1] * 12 + [2] * 14 + [3] * 4))
COLUMN = np.array([8 * (i // 2) + 2 * t + i % 2 for t in range(4) for i in range(32)])
# Of a place, which of the scales of its block it has, of K and of V.
SCALE_OF_PLACE = 4 * LANE + SECTION
SCALES = 16

# Of places that no token is in.
EMPTY = np.float32(2.0**-64) / np.float32(127)


def order_at(address, batch, heads, tokens):
    """Return the tokens of all places [batch, head, block, 128]; a null pointer means columns."""
    shape = (batch, heads, -(-tokens // BLOCK), BLOCK)
    if not address:
        return np.broadcast_to(COLUMN, shape)
    order = compact(address, shape, "|u1").astype(np.intp)
    np.testing.assert_array_equal(np.sort(order), np.broadcast_to(np.arange(BLOCK), shape))
    return order


def in_columns(rows, order):
    """Put rows of tokens [batch, head, token, ...] where the places of whole blocks are."""
    padded = np.zeros((*rows.shape[:2], order.shape[2] * BLOCK, *rows.shape[3:]), rows.dtype)
    padded[:, :, : rows.shape[2]] = rows
    blocks = padded.reshape(*order.shape, *rows.shape[3:])
    stored = np.empty_like(blocks)
    stored[:, :, :, COLUMN] = _taken(blocks, order)
    return stored.reshape(padded.shape)


def in_tokens(rows, order, tokens):
    """Undo `in_columns`."""
    blocks = rows.reshape(*order.shape, *rows.shape[3:])[:, :, :, COLUMN]
    natural = _taken(blocks, np.argsort(order, axis=-1))
    return natural.reshape(rows.shape)[:, :, :tokens]


def stored_scale(name, of_token, order):
    """Return scales as they lie in memory, of K or V whose tokens have theirs."""
    padded = np.full(order.shape, EMPTY).reshape(*order.shape[:2], -1)
    padded[:, :, : of_token.shape[2]] = of_token
    by_place = np.take_along_axis(padded.reshape(order.shape), order, axis=-1)
    inside = np.take_along_axis(_exists(order, of_token.shape[2]), order, axis=-1)
    scale = np.full((*order.shape[:3], SCALES), EMPTY)
    for at in range(SCALES):
        here = at == SCALE_OF_PLACE
        some = by_place[..., here]
        counted = inside[..., here]
        # All tokens of a scope have one scale, which may be NaN.
        top = np.max(np.where(counted, some, 0), axis=-1)
        differs = counted & (some != top[..., None])
        assert not (differs & np.isfinite(top[..., None])).any()
        scale[..., at] = np.where(counted.any(axis=-1), top, EMPTY)
    if name == "k":
        return scale
    return np.stack([scale, np.log2(scale), 1 / scale], axis=3)


def scale_of_tokens(name, address, order, tokens):
    """Return the scale of each token [batch, head, token]."""
    if name == "k":
        scale = floats(address, (*order.shape[:3], SCALES))
    else:
        scale, log2, inverse = np.moveaxis(floats(address, (*order.shape[:3], 3, SCALES)), 3, 0)
        np.testing.assert_array_equal(log2, np.log2(scale))
        np.testing.assert_array_equal(inverse, 1 / scale)
    by_place = scale[..., SCALE_OF_PLACE]
    by_token = np.take_along_axis(by_place, np.argsort(order, axis=-1), axis=-1)
    return by_token.reshape(*order.shape[:2], -1)[:, :, :tokens]


def _exists(order, tokens):
    count = order.shape[2] * BLOCK
    return np.broadcast_to(np.arange(count) < tokens, (*order.shape[:2], count)).reshape(
        order.shape
    )


def _taken(blocks, at):
    """Return rows of blocks [batch, head, block, 128, ...] at some places of each block."""
    return np.take_along_axis(blocks, at.reshape(*at.shape, *[1] * (blocks.ndim - at.ndim)), axis=3)
