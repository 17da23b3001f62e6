"""What is made of a mask before the attention kernel: its map, and the bits of booleans."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..arrays.device import Device, current_device
from ..arrays.view import Array
from ..common.remember import remember
from ..common.sizes import ceil_div
from ..compile.chain import Chain
from ..compile.launch import NULL, Buffers, Launch
from ..operands.masks import MaskBlocks, ScoreMask, blocks_of
from ..specs.attention import Type
from ..specs.mask_map import MAP_TILE, MaskMapSpec, bit_words, map_words
from ..specs.rules import MaskKind

__all__ = ["MASK_KINDS", "MaskCall", "MaskLayout", "map_launch", "prepare_map"]

MASK_KINDS = {
    "bool": MaskKind.bits,
    Type.fp32: MaskKind.fp32,
    Type.fp16: MaskKind.fp16,
    Type.bf16: MaskKind.bf16,
}

# Kinds of masks that a process remembers.
_REMEMBERED = 256


@dataclass(frozen=True)
class MaskLayout:
    """How the map of a mask lies in memory, and the bits of one of booleans: both contiguous.

    Attributes
    ----------
    mask : ScoreMask
    batch, heads, rows : int
        1 where the mask has one for all; a mask of last keys is another one for every sequence.
    keys : int
    """

    mask: ScoreMask
    batch: int
    heads: int
    rows: int
    keys: int

    @classmethod
    def of(cls, mask: ScoreMask, shape: tuple[int, ...]) -> MaskLayout:
        """Return the layout for logits [batch, num_q_heads, seqlen_q, seqlen_kv]."""
        sizes = zip(shape[:3], mask.strides[:3], strict=True)
        batch, heads, rows = (n if step else 1 for n, step in sizes)
        batch = batch if mask.columns is None else shape[0]
        return cls(mask, batch, heads, rows, shape[3])

    @property
    def kind(self) -> MaskKind:
        """How kernels read it."""
        return MASK_KINDS[self.mask.dtype]

    @property
    def tiles(self) -> int:
        """Tiles of rows of a head."""
        return ceil_div(self.rows, MAP_TILE)

    @property
    def bits(self) -> tuple[int, int, int, int]:
        """Shape of the bits, in words."""
        return self.batch, self.heads, self.rows, bit_words(self.keys)

    @property
    def tile_map(self) -> tuple[int, int, int, int, int]:
        """Shape of the map, in words."""
        return self.batch, self.heads, self.tiles, 2, map_words(self.keys)


def map_launch(
    layout: MaskLayout, device: Device, source: int, bits: int, tile_map: int, lengths: int = NULL
) -> Launch:
    """Return the launch that looks at a mask.

    Parameters
    ----------
    layout : MaskLayout
        Of which no size is 0.
    device : Device
    source, bits, tile_map : int
        Numbers of addresses: of the mask, and of what is made of it.
    lengths : int
        That of the keys of each sequence, if the mask is of their last ones.
    """
    of_batch, of_head, of_row, of_key = layout.mask.strides
    words = map_words(layout.keys)
    values: dict[str, float] = {
        "mask": source,
        "bits": bits,
        "map": tile_map,
        "lengths": lengths,
        "stride_batch": of_batch,
        "stride_head": of_head,
        "stride_row": of_row,
        "stride_key": of_key,
        "heads": layout.heads,
        "rows": layout.rows,
        "keys": layout.keys,
        "bit_words": bit_words(layout.keys),
        "map_words": words,
        "tiles": layout.tiles,
        "columns": layout.keys if layout.mask.columns is None else layout.mask.columns,
    }
    ctas = layout.batch * layout.heads * layout.tiles * words
    spec = MaskMapSpec(layout.kind, layout.mask.columns is not None)
    return Launch(spec, device, (ctas,), values)


@dataclass(frozen=True, eq=False)
class MaskCall:
    """What all masks of one kind have in common.

    Attributes
    ----------
    blocks : MaskBlocks
        What is made of one.
    bits, tile_map : tuple of int
        Shapes of its parts; None for the former if the mask has floats.
    launches : Chain
        Of the addresses of the mask, the bits and the map. Empty if there is no element.
    """

    blocks: MaskBlocks
    bits: tuple[int, ...] | None
    tile_map: tuple[int, ...]
    launches: Chain


@remember(_REMEMBERED)
def prepare_map(x: Array, seqlen_q: int | None, seqlen_kv: int | None) -> MaskCall:
    """Check a mask on CuPy's current device, plan what is made of it and load the kernel.

    Raises
    ------
    ArgumentError, UnsupportedError, CompileError
        As `cuattn.block_mask`.
    """
    blocks, mask = blocks_of(x, seqlen_q, seqlen_kv)
    layout = MaskLayout.of(mask, blocks.shape)
    buffers = Buffers("mask", "bits", "map")
    launches: list[Launch] = []
    is_bits = layout.kind is MaskKind.bits
    if math.prod(x.shape) and blocks.shape[3]:
        parts = buffers["bits"] if is_bits else NULL, buffers["map"]
        launches.append(map_launch(layout, current_device(), buffers["mask"], *parts))
    return MaskCall(
        blocks, layout.bits if is_bits else None, layout.tile_map, Chain(launches, buffers)
    )
