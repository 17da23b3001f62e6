"""What a kernel that decodes is told of CTAs and rows, by which it divides and multiplies."""

from __future__ import annotations

from typing import Any

from ..common.sizes import ceil_div

__all__ = ["reciprocal", "share_values"]

# Numerators are below this.
_LIMIT = 2**31


def reciprocal(divisor: int) -> dict[str, int]:
    """Return `Reciprocal` of kernels_cu/kv/reciprocal.cuh.

    For 0 <= n < 2^31, n // divisor is (2 n multiplier >> 32) >> shift. 2^shift is the least power
    of two that is not below the divisor, the multiplier 2^(31 + shift) / divisor, rounded up, which
    has 32 bits. Rounding adds less than 1 to it, so less than 2^-shift to the quotient, at most
    1 / divisor: too little for the next whole number.

    Parameters
    ----------
    divisor : int
        From 1 to 2^31 - 1.
    """
    shift = (divisor - 1).bit_length()
    return {"multiplier": ceil_div(_LIMIT << shift, divisor), "shift": shift}


def share_values(
    *, heads_per_kv: int, row_tiles: int, num_kv_heads: int, batch: int, ctas: int
) -> dict[str, Any]:
    """Return what DecodeParams in kernels_cu/kv/kv_params.cuh has of the sizes of a launch.

    Parameters
    ----------
    heads_per_kv : int
        Query heads that share a head of K and V.
    row_tiles : int
        CTAs that the rows of a head of K and V take.
    num_kv_heads, batch : int
    ctas : int
        Of the launch that decodes.
    """
    ctas_of_head = ctas // (batch * num_kv_heads * row_tiles)
    return {
        "heads_per_kv": heads_per_kv,
        "row_tiles": row_tiles,
        "ctas_of_head": ctas_of_head,
        "by_heads_per_kv": reciprocal(heads_per_kv),
        "by_row_tiles": reciprocal(row_tiles),
        "by_ctas": reciprocal(ctas),
        "by_ctas_of_head": reciprocal(max(ctas_of_head, 1)),
    }
