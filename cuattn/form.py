"""What the quantizing kernels write: shapes, in the order in which the attention kernels read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .operand import Name, coding
from .quantize_spec import TOKEN_PAD
from .reference.layout import pad_head_dim
from .scheme import Scheme

__all__ = ["Form"]


@dataclass(frozen=True)
class Form:
    """An operand of the products. Arrays are contiguous; scales and vectors are float32.

    Parameters
    ----------
    data : tuple of int
        Shape of INT8 codes or of 16-bit values: [batch, head, token, channel], of codes of V
        [batch, head, block, channel, 128]. Channels are padded to a size that has kernels, V's
        tokens to whole blocks.
    nbytes : int
        Of `data`.
    scale : tuple of int
        Of Q [batch, head, token]; of K [batch, head, padded token] or [batch, head, block]; of V
        [batch, head, block, 3, 128], of the 3 the scale, its log2 and its inverse, or
        [batch, head, channel]; none for values. Tokens of K and V are in the order of slots.
    vector : tuple of int
        [batch, head, head_dim]: what smoothing subtracts.
    smoothed : bool
        Whether it does.
    """

    data: tuple[int, ...]
    nbytes: int
    scale: tuple[int, ...]
    vector: tuple[int, ...]
    smoothed: bool

    @classmethod
    def of(cls, scheme: Scheme, name: Name, shape: tuple[int, ...]) -> Form:
        """Return the form of an operand [batch, head, token, head_dim] under a scheme."""
        batch, heads, tokens, head_dim = shape
        channels = pad_head_dim(head_dim)
        integer = coding(scheme, name) is not None
        blocks = -(-tokens // TOKEN_PAD)
        scales: tuple[int, ...] = (tokens,)
        if name == "k":
            by_block = scheme.k_scope == "block"
            scales = (-(-tokens // scheme.p_block),) if by_block else (blocks * TOKEN_PAD,)
        elif name == "v":
            scales = (blocks, 3, TOKEN_PAD) if scheme.v_scope == "token" else (channels,)
        transposed = integer and name == "v"
        last = (blocks, channels, TOKEN_PAD) if transposed else (tokens, channels)
        data = (batch, heads, *last)
        return cls(
            data=data,
            nbytes=math.prod(data) * (1 if integer else 2),
            scale=(batch, heads, *scales) if integer else (),
            vector=(batch, heads, head_dim),
            smoothed={"k": scheme.smooth_k, "v": scheme.smooth_v}.get(name, "none") != "none",
        )

    @property
    def byte_strides(self) -> tuple[int, int, int]:
        """Bytes from one batch, head and row, or block of V, of `data` to the next."""
        batch, heads, rows = self.data[:3]
        head = self.nbytes // max(batch * heads, 1)
        return heads * head, head, head // max(rows, 1)
