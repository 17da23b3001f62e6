"""The layout in which the kernels read codes of V: transposed, padded, tokens permuted."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError

__all__ = [
    "HEAD_DIMS",
    "LOG2_BIAS",
    "TOKEN_OF_SLOT",
    "WIDE_HEAD_DIMS",
    "in_slots",
    "in_tokens",
    "pack_pairs",
    "pad_head_dim",
    "transpose_v",
    "unpack_pairs",
    "untranspose_v",
]

Code = TypeVar("Code", np.int8, np.uint8)

# Head dimensions that the kernels are built for; others are padded with zero channels.
HEAD_DIMS = (32, 64, 96, 128, 192, 256)

# Larger ones, whose kernels are compiled when they are first called for.
WIDE_HEAD_DIMS = (320, 384, 512)

# Tokens are padded to this, so that no copy of a whole block reads past the end.
TOKEN_PAD = 128

# Added to the logarithms of V's scales, so that exponents of scores are rarely negative: kernels
# may then compare their bits as integers.
LOG2_BIAS = 64.0

# Slot 4t + e of every 16 holds token 2t + e if e < 2 and 8 + 2t + (e - 2) otherwise (t, e in 0..3).
# In the accumulators of m16n8 products, thread t of a row owns columns 2t, 2t + 1 of two adjacent
# tiles of 8; as the left operand of the next product it must own slots 4t .. 4t + 3. With V's
# tokens in this order the former are the latter, and P never moves between threads. Scales of
# tokens of K and V lie in it too, so that a thread's are neighbours.
TOKEN_OF_SLOT: NDArray[np.intp] = np.array(
    [2 * t + e if e < 2 else 8 + 2 * t + e - 2 for t in range(4) for e in range(4)], dtype=np.intp
)


def pad_head_dim(head_dim: int) -> int:
    """Return the smallest head dimension with a kernel that is at least `head_dim`.

    Raises
    ------
    ArgumentError
        If it is not in 1 … 512.
    """
    for padded in (*HEAD_DIMS, *WIDE_HEAD_DIMS):
        if 1 <= head_dim <= padded:
            return padded
    raise ArgumentError("head_dim", head_dim, f"in 1..{WIDE_HEAD_DIMS[-1]}")


def in_slots(x: Any) -> Any:
    """Permute the last axis, whole groups of 16 tokens, by `TOKEN_OF_SLOT`; of any library."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // 16, 2, 4, 2).swapaxes(-3, -2).reshape(x.shape)


def in_tokens(x: Any) -> Any:
    """Undo `in_slots`."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // 16, 4, 2, 2).swapaxes(-3, -2).reshape(x.shape)


def pack_pairs(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Put codes of 4 bits, in -8 ... 7, two to a byte along the last axis, which is even.

    The first of a pair is the lower half of its byte.
    """
    halves = codes.view(np.uint8) & np.uint8(15)
    return halves[..., 0::2] | halves[..., 1::2] << np.uint8(4)


def unpack_pairs(packed: Any) -> Any:
    """Undo `pack_pairs`; of any library."""
    # Each byte becomes two, its halves in the upper halves of both: CuPy's repeat() is a loop.
    wide = packed.astype("uint16")
    return ((wide & 15) << 4 | (wide & 240) << 8).view("int8") >> 4


def transpose_v(codes: NDArray[Code]) -> NDArray[Code]:
    """Put codes of V into the kernels' order.

    Parameters
    ----------
    codes : ndarray of int8 or uint8 [batch, head, token, head_dim]

    Returns
    -------
    ndarray of that type [batch, head, block, padded head_dim, 128]
        Blocks of 128 tokens, of which the last is padded; tokens are permuted inside every 16 by
        `TOKEN_OF_SLOT`. Padding is 0.
    """
    batch, heads, n, d = codes.shape
    blocks, channels, size = -(-n // TOKEN_PAD), pad_head_dim(d), TOKEN_OF_SLOT.size
    padded = np.zeros((batch, heads, blocks * TOKEN_PAD, channels), codes.dtype)
    padded[:, :, :n, :d] = codes
    groups = padded.reshape(batch, heads, blocks * TOKEN_PAD // size, size, channels)
    slots = groups[..., TOKEN_OF_SLOT, :].reshape(batch, heads, blocks, TOKEN_PAD, channels)
    return np.ascontiguousarray(slots.swapaxes(3, 4))


def untranspose_v(stored: NDArray[Code], n: int, d: int) -> NDArray[Code]:
    """Undo `transpose_v`: return the codes [batch, head, n, d] of `n` tokens and `d` channels.

    Raises
    ------
    ArgumentError
        If `stored` is not of the shape that `transpose_v` gives for `n` and `d`.
    """
    fits = (-(-n // TOKEN_PAD), pad_head_dim(d), TOKEN_PAD)
    if stored.ndim != 5 or stored.shape[2:] != fits:
        raise ArgumentError("stored.shape", stored.shape, f"[batch, head, *{fits}] for {n}, {d}")
    batch, heads, blocks, channels = stored.shape[:4]
    tokens, size = blocks * TOKEN_PAD, TOKEN_OF_SLOT.size
    slots = stored.swapaxes(3, 4).reshape(batch, heads, tokens // size, size, channels)
    natural = slots[..., np.argsort(TOKEN_OF_SLOT), :].reshape(batch, heads, tokens, channels)
    return np.ascontiguousarray(natural[:, :, :n, :d])
