"""`block_mask`: what attention makes of a mask, made once for many calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays.caller import Caller, device_of, on_device
from .arrays.host import score_values
from .arrays.view import CPU, CUDA, cupy_module, view_cupy
from .common.public import public
from .emulation.arrays import signature_on_host
from .errors import ArgumentError
from .operands.block_mask import BlockMask
from .operands.masks import blocks_of, checked_seqlen
from .plan.mask_map import prepare_map

__all__ = ["block_mask"]


@public
def block_mask(
    attn_mask: Any,
    *,
    seqlen_q: int | None = None,
    seqlen_kv: int | None = None,
    stream: Any = None,
) -> BlockMask:
    """Make of a mask what `cuattn.attention` needs of it, to be used any number of times.

    A call with an array as `attn_mask` makes the same, and forgets it. Layers of a model, and
    steps of a sampler, have the same mask: make it once, and give them the result as `attn_mask`.
    The results of the calls are the same, bit for bit.

    Parameters
    ----------
    attn_mask : array
        As for `cuattn.attention`, with any axis of length 1, or expanded, for which it has one for
        all: of bool, float16, bfloat16 or float32, of CuPy, PyTorch, JAX or NumPy. One of booleans
        is done with when the work on the stream is, and may be changed. One of floats is read by
        the calls, through its strides: it is kept, and must not be changed.
    seqlen_q : int, optional
        Rows that calls have to have. By default those of the mask; with one row for all, any.
    seqlen_kv : int, optional
        Keys of the calls; needed only of a mask that has one column for all.
    stream : int or stream, optional
        As for `cuattn.attention`. Calls on other streams have to wait for it.

    Returns
    -------
    BlockMask
        In CuPy's memory, or in NumPy's for a mask in host memory. It fits calls on the same device
        of any batch, number of heads and of rows of which the mask has one for all.

    Raises
    ------
    ArgumentError
        If an argument is wrong, or the number of keys is not known.
    NoGPUError, UnsupportedError, CompileError
        As for `cuattn.attention`.

    Notes
    -----
    Of booleans it has a bit each, an eighth of the mask's bytes; of the axes of which the mask has
    one for all, one. The map of tiles adds two bits for every 4096 keys and rows.

    On the GPU nothing waits for the GPU.
    """
    rows, keys = checked_seqlen("seqlen_q", seqlen_q), checked_seqlen("seqlen_kv", seqlen_kv)
    if isinstance(attn_mask, BlockMask):
        raise ArgumentError("attn_mask", attn_mask, "an array, of which nothing is made yet")
    kind, ordinal = device_of(attn_mask, "attn_mask")
    if kind == CUDA:
        with on_device(ordinal):
            return _on_gpu(attn_mask, rows, keys, stream)
    if kind != CPU:
        raise ArgumentError("attn_mask", attn_mask, "on an NVIDIA GPU or in host memory")
    if stream is not None:
        raise ArgumentError("stream", stream, "None for arrays in host memory")
    blocks, _ = blocks_of(signature_on_host(attn_mask, "attn_mask"), rows, keys)
    if blocks.dtype == "bool":
        return BlockMask(blocks, score_values(attn_mask, "attn_mask").copy())
    return BlockMask(blocks, attn_mask)


def _on_gpu(attn_mask: Any, rows: int | None, keys: int | None, stream: Any) -> BlockMask:
    """Look at a mask on the current device."""
    caller = Caller(attn_mask, stream)
    seen = caller.look(attn_mask, "attn_mask")
    call = prepare_map(seen.signature, rows, keys)
    with caller:
        cupy = cupy_module()
        tile_map = cupy.ndarray(call.tile_map, np.uint32)
        bits = None if call.bits is None else cupy.ndarray(call.bits, np.uint32)
        if call.launches:
            at_bits = 0 if bits is None else view_cupy(bits).ptr
            call.launches((seen.ptr, at_bits, view_cupy(tile_map).ptr), caller.stream)
        else:
            tile_map.fill(0)
    return BlockMask(call.blocks, seen if bits is None else None, bits, tile_map)
