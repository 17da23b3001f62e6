"""What the quantizing kernels write: shapes, in the order in which the attention kernels read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .operand import Name, code_type
from .quantize_spec import TOKEN_PAD
from .reference.layout import pad_head_dim
from .reference.quantized import AMAX_FLOOR, LARGEST_CODE
from .scheme import Scheme
from .sizes import ceil_div
from .spec import Type

__all__ = ["Form"]


@dataclass(frozen=True)
class Form:
    """An operand of the products. Arrays are contiguous; scales and vectors are float32.

    Parameters
    ----------
    code : Type or None
        Of `data`: int8 or e4m3, or None for 16-bit values.
    data : tuple of int
        Shape of codes or of 16-bit values: [batch, head, token, channel], of codes of V
        [batch, head, block, channel, 128]. Channels are padded to a size that has kernels, V's
        tokens to whole blocks.
    nbytes : int
        Of `data`.
    scale : tuple of int
        Of Q [batch, head, token]; of K [batch, head, padded token] or [batch, head, block]; of V
        [batch, head, block, 3, 128], of the 3 the scale, its log2 and its inverse, or
        [batch, head, channel]; none for values. Tokens of K and V are in the order of slots. The
        one scale of a head is repeated: for each token of Q, block of K, channel of V.
    vector : tuple of int
        [batch, head, head_dim]: what smoothing subtracts.
    smoothed : bool
        Whether it does.
    """

    code: Type | None
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
        code = code_type(scheme, name)
        blocks = ceil_div(tokens, TOKEN_PAD)
        scales: tuple[int, ...] = (tokens,)
        if name == "k":
            by_token = scheme.k_scope == "token"
            scales = (blocks * TOKEN_PAD,) if by_token else (ceil_div(tokens, scheme.p_block),)
        elif name == "v":
            scales = (blocks, 3, TOKEN_PAD) if scheme.v_scope == "token" else (channels,)
        transposed = code is not None and name == "v"
        last = (blocks, channels, TOKEN_PAD) if transposed else (tokens, channels)
        data = (batch, heads, *last)
        return cls(
            code=code,
            data=data,
            nbytes=math.prod(data) * (2 if code is None else 1),
            scale=() if code is None else (batch, heads, *scales),
            vector=(batch, heads, head_dim),
            smoothed={"k": scheme.smooth_k, "v": scheme.smooth_v}.get(name, "none") != "none",
        )

    @property
    def dtype(self) -> str:
        """NumPy's type of codes; it has none of 8 bits in floating point, so e4m3 are bits."""
        return "uint8" if self.code is Type.e4m3 else "int8"

    @property
    def empty_scale(self) -> np.float32:
        """Scale of a scope that holds nothing but zeros, and of channels that are padding."""
        largest = LARGEST_CODE["fp8" if self.code is Type.e4m3 else "int8"]
        return np.float32(AMAX_FLOOR) / np.float32(largest)

    @property
    def byte_strides(self) -> tuple[int, int, int]:
        """Bytes from one batch, head and row, or block of V, of `data` to the next."""
        batch, heads, rows = self.data[:3]
        head = self.nbytes // max(batch * heads, 1)
        return heads * head, head, head // max(rows, 1)
