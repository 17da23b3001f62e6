"""Masks and biases of logits: checked, and as kernels need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ..arrays.overlap import extent
from ..arrays.view import Array
from ..errors import ArgumentError
from ..specs.attention import Type
from .operand import DTYPES, check_alignment, itemsize

__all__ = [
    "MaskBlocks",
    "ScoreMask",
    "blocks_of",
    "broadcast_strides",
    "checked_seqlen",
    "score_mask",
]

_AXES = "[batch, num_q_heads, seqlen_q, seqlen_kv]"


class MaskBlocks(NamedTuple):
    """What a `BlockMask` is, apart from its addresses: equal ones are treated alike.

    Of other fields than `Array` has, so that neither passes for the other as a key.

    Attributes
    ----------
    shape : tuple of int
        [batch, num_q_heads, seqlen_q, seqlen_kv], of which all but the last may be 1 for any.
    strides : tuple of int
        Of the mask in elements, 0 along axes of which it has one for all. Where it has booleans,
        which calls do not read, 1 along the others.
    dtype : str
    device : tuple of int
        DLPack's.
    """

    shape: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]
    dtype: str
    device: tuple[int, int]

    @property
    def extent(self) -> tuple[int, int]:
        """Where the bytes of the caller's that calls read begin and end, from element 0 on."""
        if self.dtype == "bool":
            return 0, 0
        return extent(self.shape, self.strides, itemsize(self.dtype))


@dataclass(frozen=True)
class ScoreMask:
    """A mask, or a bias, of each logit.

    Attributes
    ----------
    dtype : {"bool"} or Type
        Bytes of 0 for hidden and 1 for seen, or fp32, fp16 or bf16, which are added.
    strides : tuple of int
        Of axes [batch, head, row, key], in elements; 0 along axes of which it has one for all.
    is_mapped : bool
        Whether it is a `BlockMask`, of which the map, and the bits of booleans, are there already.
    columns : int, optional
        How many there are, if they are of each sequence's last keys, whatever its length; keys
        before them are seen, and add nothing. None if there is one of each key.
    """

    dtype: Literal["bool"] | Type
    strides: tuple[int, int, int, int]
    is_mapped: bool = False
    columns: int | None = None


def score_mask(x: Array | MaskBlocks, shape: tuple[int, int, int, int]) -> ScoreMask:
    """Return a mask as logits of a shape need it; its type has been checked.

    Raises
    ------
    ArgumentError
        If it does not broadcast to them, or, made once for some number of keys, is of another.
    """
    is_mapped = isinstance(x, MaskBlocks)
    expected = f"one that broadcasts to {shape}, which is {_AXES}"
    if is_mapped:
        expected = f"{shape}, or 1 in place of any but the last: {_AXES}"
        if x.shape[3] != shape[3]:
            raise ArgumentError("attn_mask.shape", x.shape, expected)
    of_batch, of_head, of_row, of_key = broadcast_strides("attn_mask", x, shape, expected)
    return ScoreMask(_type_of(x), (of_batch, of_head, of_row, of_key), is_mapped)


def blocks_of(
    x: Array, seqlen_q: int | None, seqlen_kv: int | None
) -> tuple[MaskBlocks, ScoreMask]:
    """Check a mask that is to become a `BlockMask`; return what that will be, and what is read.

    Parameters
    ----------
    x : Array
    seqlen_q, seqlen_kv : int, optional
        As for `cuattn.block_mask`, each a `checked_seqlen`.

    Raises
    ------
    ArgumentError
        If it is no mask, or has other rows or keys than are given, or they are not known.
    """
    if x.dtype not in DTYPES and x.dtype != "bool":
        raise ArgumentError("attn_mask.dtype", x.dtype, f"one of {[*DTYPES, 'bool']}")
    if len(x.shape) > 4:
        raise ArgumentError("attn_mask.shape", x.shape, f"one that broadcasts to {_AXES}")
    if x.dtype in DTYPES:
        check_alignment("attn_mask", x)
    batch, heads, rows, keys = (1,) * (4 - len(x.shape)) + x.shape
    if seqlen_q is not None and rows not in (1, seqlen_q):
        raise ArgumentError("seqlen_q", seqlen_q, f"{rows}, the rows of attn_mask")
    if seqlen_kv is not None and keys not in (1, seqlen_kv):
        raise ArgumentError("seqlen_kv", seqlen_kv, f"{keys}, the keys of attn_mask")
    if seqlen_kv is None and keys == 1:
        raise ArgumentError("seqlen_kv", None, "given, as attn_mask has one column for all keys")
    whole = batch, heads, rows, keys
    of_batch, of_head, of_row, of_key = strides = broadcast_strides("attn_mask", x, whole, _AXES)
    # An axis of which it has one for all, however long, fits any. Without elements strides are 0.
    one = [1 if not step and all(whole) else n for n, step in zip(whole, strides, strict=True)]
    if seqlen_q is not None:
        one[2] = seqlen_q
    if seqlen_kv is not None:
        keys = seqlen_kv
    if x.dtype == "bool":
        strides = [1 if step else 0 for step in strides]
    known = strides[0], strides[1], strides[2], strides[3]
    blocks = MaskBlocks((one[0], one[1], one[2], keys), known, x.dtype, x.device)
    return blocks, ScoreMask(_type_of(x), (of_batch, of_head, of_row, of_key))


def checked_seqlen(name: str, n: Any) -> int | None:
    """Return a number of rows or keys, if it is given, as a key of plans.

    Raises
    ------
    ArgumentError
        If it is anything else.
    """
    if n is None:
        return None
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
        raise ArgumentError(name, n, "an integer of at least 0, or None for that of attn_mask")
    return int(n)


def broadcast_strides(
    name: str, x: Array | MaskBlocks, shape: tuple[int, ...], expected: str
) -> list[int]:
    """Return strides along the axes of a shape, which are 0 where there is only one element.

    Raises
    ------
    ArgumentError
        If the array does not broadcast to it.
    """
    missing = len(shape) - len(x.shape)
    if missing < 0 or any(
        n not in (1, wanted) for n, wanted in zip(x.shape, shape[missing:], strict=True)
    ):
        raise ArgumentError(f"{name}.shape", x.shape, expected)
    steps = [step if n > 1 else 0 for n, step in zip(x.shape, x.strides, strict=True)]
    return [0] * missing + steps


def _type_of(x: Array | MaskBlocks) -> Literal["bool"] | Type:
    return "bool" if x.dtype == "bool" else DTYPES[x.dtype]
