"""What the quantizing kernels write: shapes, in the order in which the attention kernels read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..common.sizes import ceil_div
from ..reference.layout import pad_head_dim
from ..reference.quantized import AMAX_FLOOR, LARGEST_CODE
from ..reference.smoothing import Q_BLOCK
from ..reference.sorting import PLACE_SCALES
from ..scheme import Scheme
from ..specs.attention import Scope, Type
from ..specs.coding import Name, code_type, stored_scope
from ..specs.quantize import TOKEN_PAD

__all__ = ["CodeLayout"]


@dataclass(frozen=True)
class CodeLayout:
    """An operand of the products. Arrays are contiguous; scales and vectors are float32.

    Parameters
    ----------
    code : Type or None
        Of `data`: int8, int4 or e4m3, or None for 16-bit values.
    data : tuple of int
        Shape of codes or of 16-bit values: [batch, head, token, channel], of sorted keys
        [batch, head, padded token, channel], of codes of V [batch, head, block, channel, 128].
        Channels are padded to a size that has kernels, V's
        tokens to whole blocks. Of int4 the last axis counts bytes, of two codes each.
    nbytes : int
        Of `data`.
    scale : tuple of int
        Of Q [batch, head, token], for groups of channels [batch, head, token, group]; of K
        [batch, head, padded token], [batch, head, group, padded token], for threads
        [batch, head, scope], four of each 64 padded tokens, sorted [batch, head, block, 16], or
        [batch, head, block]; of V [batch, head, block, 3, 128], of the 3 the scale, its log2 and
        its inverse, sorted [batch, head, block, 3, 16], [batch, head, block], or
        [batch, head, channel]; none for values. Tokens of K and V are in the order of slots, groups
        are those of padded channels. A scale of more is repeated.
    order : tuple of int
        Shape of the order of sorted tokens: [batch, head, block, 128], or none.
    vector : tuple of int
        What smoothing subtracts: [batch, head, head_dim], of Q [batch, head, block, head_dim].
    smoothed : bool
        Whether it does.
    empty_scale : float32
        Scale of a scope that holds nothing but zeros, and of channels that are padding.
    """

    code: Type | None
    data: tuple[int, ...]
    nbytes: int
    scale: tuple[int, ...]
    order: tuple[int, ...]
    vector: tuple[int, ...]
    smoothed: bool
    empty_scale: np.float32

    @classmethod
    def of(
        cls, scheme: Scheme, name: Name, shape: tuple[int, ...], packed: bool = False
    ) -> CodeLayout:
        """Return the layout of an operand [batch, head, token, head_dim] under a scheme.

        Parameters
        ----------
        packed : bool
            Whether codes of 4 bits are stored two to a byte.
        """
        batch, heads, tokens, head_dim = shape
        channels = pad_head_dim(head_dim)
        code = code_type(scheme, name, packed)
        blocks = ceil_div(tokens, TOKEN_PAD)
        transposed = code is not None and name == "v"
        in_order = code is not None and name != "q" and scheme.k_scope == "sorted"
        padded = blocks * TOKEN_PAD if in_order else tokens
        *rows, last = (blocks, channels, TOKEN_PAD) if transposed else (padded, channels)
        bits = 16 if code is None else code.bits
        data = (batch, heads, *rows, last // 2 if code is Type.int4 else last)
        product = scheme.pv if name == "v" else scheme.qk
        largest = 1.0 if product == "fp16" else LARGEST_CODE[product]
        smoothing = {"q": scheme.smooth_q, "k": scheme.smooth_k, "v": scheme.smooth_v}[name]
        means = (ceil_div(tokens, Q_BLOCK),) if name == "q" else ()
        return cls(
            code=code,
            data=data,
            nbytes=batch * heads * math.prod(rows) * last * bits // 8,
            scale=() if code is None else (batch, heads, *_scales(scheme, name, tokens, channels)),
            order=(batch, heads, blocks, TOKEN_PAD) if in_order else (),
            vector=(batch, heads, *means, head_dim),
            smoothed=code is not None and smoothing != "none",
            empty_scale=np.float32(AMAX_FLOOR) / np.float32(largest),
        )

    @property
    def dtype(self) -> str:
        """NumPy's type of `data`; it has none of fewer bits or of e4m3, so these are bits."""
        return "int8" if self.code is Type.int8 else "uint8"

    @property
    def byte_strides(self) -> tuple[int, int, int]:
        """Bytes from one batch, head and row, or block of V, of `data` to the next."""
        batch, heads, rows = self.data[:3]
        head = self.nbytes // max(batch * heads, 1)
        return heads * head, head, head // max(rows, 1)


def _scales(scheme: Scheme, name: Name, tokens: int, channels: int) -> tuple[int, ...]:
    """Return the shape of the scales of one head."""
    blocks = ceil_div(tokens, TOKEN_PAD)
    stored = stored_scope(scheme, name)
    if name == "v":
        of_values = {
            Scope.token: (blocks, 3, TOKEN_PAD),
            Scope.sorted: (blocks, 3, PLACE_SCALES),
            Scope.block: (blocks,),
        }
        return of_values.get(stored, (channels,))
    groups = channels // scheme.qk_group
    if name == "q":
        return (tokens, groups) if stored is Scope.group else (tokens,)
    padded = blocks * TOKEN_PAD
    of_keys = {
        Scope.group: (groups, padded),
        Scope.thread: (padded // 16,),
        Scope.sorted: (blocks, PLACE_SCALES),
        Scope.block: (ceil_div(tokens, scheme.p_block),),
    }
    return of_keys.get(stored, (padded,))
