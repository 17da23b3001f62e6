"""An array that quantizing kernels read."""

from __future__ import annotations

from dataclasses import dataclass

from ..compile.launch import NULL
from ..operands.operand import Operand

__all__ = ["Item", "source", "vector_bytes"]


@dataclass(frozen=True)
class Item:
    """An array to convert; all but the first field are numbers of a `Buffers`.

    Parameters
    ----------
    operand : Operand
    x : int
        The array.
    data, scale : int
        Where codes and scales go, or values.
    vector : int
        Where the smoothing vector goes, or those of blocks of Q.
    """

    operand: Operand
    x: int
    data: int = NULL
    scale: int = NULL
    vector: int = NULL


def source(item: Item) -> dict[str, int]:
    """Return the members that the parameter structs of all such kernels have in common."""
    operand = item.operand
    batch, head, token = operand.strides[:3]
    return {
        "x": item.x,
        "stride_batch": batch,
        "stride_head": head,
        "stride_token": token,
        "num_heads": operand.shape[1],
        "seqlen": operand.tokens,
    }


def vector_bytes(operand: Operand) -> int:
    """Return the bytes of a float32 vector for each head."""
    return 4 * operand.heads * operand.shape[3]
