"""Q, K and V as the Hopper family reads them: by tensor maps, a tile at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..common.sizes import ceil_div
from ..compile.tensor_map import TensorMap, can_map
from ..operands.operand import Operand
from ..specs.attention import Type
from ..specs.coding import Name
from ..specs.quantize import TOKEN_PAD
from ..specs.wgmma import GROUP_ROWS, WgmmaSpec

__all__ = ["Source", "can_read", "operand_maps"]

_DTYPES = {Type.int8: "uint8", Type.e4m3: "uint8", Type.fp16: "float16", Type.bf16: "bfloat16"}

# Bytes of a row of a box of 8-bit V, which are its codes of a block of tokens.
_V_PITCH = 128

# Of arrays that kernels read where they are; see `Operand.direct`.
_ALIGNMENT = 16


class Source(NamedTuple):
    """Where the kernel finds an operand.

    Parameters
    ----------
    shape : tuple of int
        [batch, head, token, head_dim], without padding.
    strides : tuple of int
        In bytes, from one batch, head and token to the next; of 8-bit V, block of tokens.
    number : int
        Of its address in a `Buffers`.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    number: int


def can_read(operand: Operand) -> bool:
    """Whether a map can describe an array whose rows begin at multiples of 16 bytes.

    Arrays that repeat or interleave rows have none, for example broadcast ones.
    """
    itemsize = operand.dtype.nbytes
    strides = tuple(step * itemsize for step in operand.strides[2::-1])
    return can_map(operand.shape[::-1], strides, _ALIGNMENT, itemsize)


def operand_maps(spec: WgmmaSpec, sources: Mapping[Name, Source]) -> dict[str, TensorMap]:
    """Return the maps of Q, K and V by the names of the kernel's parameters."""
    q = _rows_map(spec.head_dim, spec.qk, GROUP_ROWS, sources["q"])
    k = _rows_map(spec.head_dim, spec.qk, spec.block_kv, sources["k"])
    of_values = _codes_map if spec.pv.coded else _rows_map
    v = of_values(spec.head_dim_v, spec.pv, spec.block_kv, sources["v"])
    return {"q_map": q, "k_map": k, "v_map": v}


def _rows_map(padded: int, dtype: Type, rows: int, source: Source) -> TensorMap:
    """Return a map [batch, head, token, channel], of which a box is a panel of a tile."""
    batch, heads, tokens, head_dim = source.shape
    # Codes are padded in memory; of values what is missing arrives as zeros.
    channels = padded if dtype.coded else head_dim
    pitch = WgmmaSpec.pitch(padded, dtype)
    return TensorMap(
        _DTYPES[dtype],
        shape=(channels, tokens, heads, batch),
        strides=source.strides[::-1],
        box=(pitch // dtype.nbytes, rows, 1, 1),
        swizzle=pitch,
        number=source.number,
    )


def _codes_map(padded: int, dtype: Type, rows: int, source: Source) -> TensorMap:
    """Return a map of 8-bit V, of which a box is a tile.

    Its axes, from the outermost: batch, head, block of tokens and 32 channels in one; i, t and e of
    channel 8 t + 2 i + e of the 32; token. So row 8 i + 2 t + e of the tile is that channel, and
    what lane t of a row of O has of the 32 are 8 neighbours (store_rows in attn/output.cuh).
    """
    batch, heads, tokens, _ = source.shape
    blocks = ceil_div(tokens, TOKEN_PAD)
    return TensorMap(
        _DTYPES[dtype],
        shape=(TOKEN_PAD, 2, 4, 4, batch * heads * blocks * padded // 32),
        strides=(TOKEN_PAD, 8 * TOKEN_PAD, 2 * TOKEN_PAD, 32 * TOKEN_PAD),
        box=(rows, 2, 4, 4, padded // 32),
        swizzle=_V_PITCH,
        number=source.number,
    )
