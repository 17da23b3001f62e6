"""A mask that is looked at once and used in many calls."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..arrays.host import score_values
from ..arrays.view import CUDA, View, cupy_module, view_cupy
from ..common.public import class_naming_keywords
from ..common.sizes import ceil_div
from ..specs.mask_map import MAP_TILE
from .masks import MaskBlocks

__all__ = ["BlockMask"]


@class_naming_keywords
class BlockMask:
    """What `cuattn.attention` makes of an `attn_mask`, made once: `cuattn.block_mask` makes it.

    On the GPU that is a map of the tiles of 64 rows by 64 keys: which have keys that are seen, and
    which are seen whole and add nothing. Of booleans it is their bits, too: it has nothing more to
    do with the mask. Floats stay where they are: it keeps their array, which must not be changed.
    In host memory, where nothing is made of a mask, it has a copy of booleans. It cannot be copied
    or pickled.
    """

    def __init__(
        self, signature: MaskBlocks, source: Any, bits: Any = None, tile_map: Any = None
    ) -> None:
        """Put together what there is.

        Parameters
        ----------
        signature : MaskBlocks
        source : View or array, optional
            The mask: on the GPU a view of one of floats, in host memory an array in any case.
        bits, tile_map : ndarray of uint32, optional
            As kernels_cu/mask_map.cu writes them; `bits` only of booleans.
        """
        self.signature = signature
        self.source = source
        self._bits, self._map = bits, tile_map

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[batch, num_q_heads, seqlen_q, seqlen_kv], 1 for any number but of the last."""
        return self.signature.shape

    @property
    def dtype(self) -> str:
        """One of "bool", "float16", "bfloat16" and "float32"."""
        return self.signature.dtype

    @property
    def device(self) -> tuple[int, int]:
        """DLPack's device type and the ordinal."""
        return self.signature.device

    @property
    def nbytes(self) -> int:
        """Bytes that it has for itself, so without the array of a mask of floats."""
        made = [x for x in (self._bits, self._map) if x is not None]
        if self.device[0] != CUDA and self.dtype == "bool":
            made.append(self.source)
        return sum(int(x.nbytes) for x in made)

    @cached_property
    def density(self) -> float:
        """Share of the tiles, of 64 rows by 64 keys, that have a key that is seen.

        Others are not computed. This waits for the GPU the first time.
        """
        if self.device[0] != CUDA:
            return _share_of_tiles(score_values(self.source, "attn_mask"))
        cupy = cupy_module()
        with cupy.cuda.Device(self.device[1]) as device:
            device.synchronize()
            words: NDArray[np.uint32] = cupy.asnumpy(self._map)
        *rows_of_tiles, _, _ = words.shape
        tiles = math.prod(rows_of_tiles) * ceil_div(self.shape[3], MAP_TILE)
        if not tiles:
            return 0.0
        bits = np.unpackbits(np.ascontiguousarray(words[..., 0, :]).view(np.uint8))
        return int(np.count_nonzero(bits)) / tiles

    @cached_property
    def ptr(self) -> int:
        """Where the bits are on the GPU, or the floats."""
        seen = self.view if self._bits is None else view_cupy(self._bits)
        return 0 if seen is None else seen.ptr

    @cached_property
    def map_ptr(self) -> int:
        """Where the map is on the GPU."""
        return view_cupy(self._map).ptr

    @property
    def view(self) -> View | None:
        """Of the caller's array, if calls on the GPU read it."""
        return self.source if isinstance(self.source, View) else None

    def __repr__(self) -> str:
        kind, ordinal = self.device
        where = f"on GPU {ordinal}" if kind == CUDA else "in host memory"
        return f"BlockMask({self.shape} of {self.dtype}, {self.nbytes} bytes {where})"

    def __reduce__(self) -> NoReturn:
        # A copy would have the addresses, but not the memory.
        raise TypeError("a BlockMask cannot be copied or pickled: make it anew of the mask")


def _share_of_tiles(mask: NDArray[Any]) -> float:
    """Return the share of tiles in which a mask, as the reference takes it, does not hide all."""
    mask = np.atleast_2d(mask)
    if not mask.size:
        return 0.0
    seen = mask if mask.dtype == bool else ~(mask <= np.finfo(mask.dtype).min)  # NaN is seen
    for axis in (-2, -1):
        seen = np.logical_or.reduceat(seen, np.arange(0, seen.shape[axis], MAP_TILE), axis=axis)
    return float(seen.mean())
