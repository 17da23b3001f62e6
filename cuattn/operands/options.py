"""The arguments of a call that are not arrays."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..errors import ArgumentError
from ..scheme import Scheme
from .mods import Mods
from .scores import ALL_KEYS

__all__ = ["Options", "check_flag", "checked_scale"]

# Kernels hold scale * log2 e in float32.
_MAX_SCALE = float(np.finfo(np.float32).max) / math.log2(math.e)


class Options(NamedTuple):
    """The arguments of `cuattn.attention` that are not arrays, as the caller gave them."""

    scheme: str | Scheme
    scale: float | None
    is_causal: bool
    return_lse: bool
    layout: str
    window_size: tuple[int, int] = ALL_KEYS
    softcap: float = 0.0
    mods: Mods | None = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None


def checked_scale(scale: float | None, head_dim: int) -> float:
    """Return the factor of the products of q and k.

    Raises
    ------
    ArgumentError
        If it is no number that kernels can hold.
    """
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    if isinstance(scale, bool) or not isinstance(scale, (int, float, np.floating, np.integer)):
        raise ArgumentError("scale", scale, "a number or None")
    if scale < 0:
        raise ArgumentError("scale", scale, "at least 0; for a negative one negate q")
    # As one of Python: a float16 would round the bound to infinity, and an int may be too large.
    number = scale if isinstance(scale, int) else float(scale)
    if not number <= _MAX_SCALE:  # NaN fails too
        raise ArgumentError("scale", scale, "finite, in float32 too")
    return float(number)


def check_flag(name: str, value: object) -> None:
    """Check that an argument is True or False.

    Raises
    ------
    ArgumentError
        If it is anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(name, value, "True or False")
