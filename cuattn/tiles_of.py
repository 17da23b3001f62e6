"""The tensor maps through which the Hopper family reads Q, K and V."""

from __future__ import annotations

from collections.abc import Mapping

from .problem import Problem
from .quantize_spec import TOKEN_PAD
from .spec import Type
from .tensor_map import TensorMap
from .wgmma_spec import WgmmaSpec

__all__ = ["tensor_maps"]

_DTYPES = {Type.int8: "uint8", Type.e4m3: "uint8", Type.fp16: "float16", Type.bf16: "bfloat16"}
_GROUP_ROWS = 64


def tensor_maps(
    spec: WgmmaSpec, problem: Problem, places: Mapping[str, tuple[int, tuple[int, ...]]]
) -> dict[str, TensorMap]:
    """Return the maps by the names of the kernel's parameters.

    Parameters
    ----------
    places : mapping of {"q", "k", "v"} to (number of a buffer, strides in bytes)
        Axes [batch, head, token] of the strides; those of 8-bit V count blocks of tokens.
    """
    maps = {}
    for name, rows in (("q", _GROUP_ROWS), ("k", spec.block_kv), ("v", spec.block_kv)):
        operand = getattr(problem, name)
        number, strides = places[name]
        batch, heads, tokens, head_dim = operand.shape
        element = spec.pv if name == "v" else spec.qk
        if name == "v" and element.nbytes == 1:
            shape = (TOKEN_PAD, spec.head_dim, -(-tokens // TOKEN_PAD), batch * heads)
            steps = (TOKEN_PAD, strides[2], strides[1])
            box = (TOKEN_PAD, spec.head_dim, 1, 1)
            swizzle = 128
        else:
            channels = spec.head_dim if element.nbytes == 1 else head_dim
            shape = (channels, tokens, heads, batch)
            steps = (strides[2], strides[1], strides[0])
            swizzle = 64 if spec.head_dim * element.nbytes <= 64 else 128
            box = (swizzle // element.nbytes, rows, 1, 1)
        maps[f"{name}_map"] = TensorMap(_DTYPES[element], shape, steps, box, swizzle, number)
    return maps
