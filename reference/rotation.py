"""A rotation of head_dim that spreads channels with outliers over all channels."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .arrays import Float32Array, FloatArray

__all__ = [
    "butterflies",
    "hadamard_block",
    "rotate",
    "rotate_exactly",
    "rotation_factor",
    "signs",
    "turn",
    "unrotate",
]

# Where the generator of signs begins, which kernels repeat: xorshift32 (Marsaglia, 2003).
_SEED = 0x9E3779B9


def rotate(x: Float32Array) -> Float32Array:
    """Return ``x · R`` along the last axis, R orthogonal: signs, then Hadamard's matrix.

    ``(q R) (k R)ᵀ = q kᵀ``, so a rotation of both Q and K leaves attention as it is, and one of V
    is undone on the output by `unrotate`. What it changes is the largest magnitude of a token,
    which is what quantization pays for: a single channel of size c becomes D of size c / √D
    (QuaRot, arXiv 2404.00456; SpinQuant, 2405.16406).

    Parameters
    ----------
    x : ndarray of float32 [..., head_dim]
        If head_dim is not a power of two, blocks of its largest factor that is one are rotated.

    Returns
    -------
    ndarray of float32 [..., head_dim]
        Bit for bit what kernels have: `turn`, and one multiplication at the end.

    Raises
    ------
    ArgumentError
        If head_dim is odd, of which no part can be rotated.
    """
    return turn(x) * rotation_factor(x.shape[-1])


def turn(x: Float32Array) -> Float32Array:
    """Return `rotate` without its factor: sums and differences only.

    Of neighbours, then of pairs that are 2 apart, 4, and so on; the same shapes and errors.
    """
    turned: Float32Array = butterflies(
        x * signs(x.shape[-1]).astype(np.float32), hadamard_block(x.shape[-1])
    )
    return turned


def rotation_factor(head_dim: int) -> np.float32:
    """Return what `turn` lacks of an orthogonal matrix."""
    return np.float32(hadamard_block(head_dim) ** -0.5)


def rotate_exactly(x: FloatArray) -> FloatArray:
    """Return the same in float64."""
    size = hadamard_block(x.shape[-1])
    turned: FloatArray = butterflies(x * signs(x.shape[-1]), size) * size**-0.5
    return turned


def unrotate(x: FloatArray) -> FloatArray:
    """Return ``x · Rᵀ``, in float64: undo `rotate`; the same shapes and errors."""
    size = hadamard_block(x.shape[-1])
    back: FloatArray = butterflies(x, size) * (size**-0.5 * signs(x.shape[-1]))
    return back


def hadamard_block(head_dim: int) -> int:
    """Return the largest power of two that divides head_dim: the channels of one rotation.

    Raises
    ------
    ArgumentError
        If it is 1.
    """
    block = head_dim & -head_dim
    if block < 2:
        raise ArgumentError("head_dim", head_dim, "even, to be rotated")
    return block


@cache
def signs(head_dim: int) -> FloatArray:
    """Return what channels are multiplied by before Hadamard's matrix, -1 or 1, always the same.

    Without them a token whose channels are all alike would become a single outlier.
    """
    state, found = _SEED, []
    for _ in range(head_dim):
        state ^= state << 13 & 0xFFFFFFFF
        state ^= state >> 17
        state ^= state << 5 & 0xFFFFFFFF
        found.append(1.0 - 2.0 * (state >> 31))
    array = np.array(found)
    array.flags.writeable = False
    return array


def butterflies(x: Any, size: int) -> Any:
    """Multiply blocks of `size` by Hadamard's matrix, in the type of `x`; of any library."""
    x = x.copy()
    step = 1
    while step < size:
        # A view: what is written to it is `x`.
        pairs = x.reshape(*x.shape[:-1], x.shape[-1] // (2 * step), 2, step)
        difference = pairs[..., 0, :] - pairs[..., 1, :]
        pairs[..., 0, :] += pairs[..., 1, :]
        pairs[..., 1, :] = difference
        step *= 2
    return x
