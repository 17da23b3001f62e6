"""Quantization to E4M3 in PyTorch, for FP8 kernels that leave it to the caller."""

from __future__ import annotations

import math
from typing import Any

E4M3_MAX = 448.0
# The inverse of a smaller range would overflow float16.
SMALLEST_RANGE = 2.0**-7


def quantize(x: Any, codes: Any, axes: tuple[int, ...] | None = None) -> Any:
    """Write the codes of a float16 tensor, and return what they are to be multiplied by.

    Parameters
    ----------
    x : Tensor of float16
    codes : Tensor of float8_e4m3fn
        Of the same shape; written.
    axes : tuple of int, optional
        Those that share a scale; by default all.

    Returns
    -------
    Tensor of float32
        As many axes as `x`, of length 1 where they share a scale.
    """
    import torch

    largest = torch.linalg.vector_norm(x, math.inf, dim=axes, keepdim=True)
    scale = (E4M3_MAX / largest.clamp(min=SMALLEST_RANGE).float()).half()
    codes.copy_(x * scale)
    return scale.float().reciprocal()
