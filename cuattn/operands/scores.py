"""What a call changes about its logits before the softmax: checked, and as kernels need it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.view import Array
from ..errors import ArgumentError
from ..specs.attention import Type
from ..specs.mods import ModSource
from .masks import MaskBlocks, ScoreMask, broadcast_strides, score_mask
from .mods import Mods, Number, mod_sources
from .operand import DTYPES, check_alignment
from .score_arrays import SCORE_NAMES, ScoreArrays

__all__ = [
    "ALL_KEYS",
    "UNLIMITED",
    "ScoreOptions",
    "Vector",
    "checked_softcap",
    "checked_window",
]

# Of a side of a window: no bound.
UNLIMITED = -1
# A window that hides nothing.
ALL_KEYS = (UNLIMITED, UNLIMITED)

# Kernels hold softcap * log2 e, and scale / softcap, in float32.
_LARGEST = float(np.finfo(np.float32).max)
_LEAST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Vector:
    """A number of each query head.

    Attributes
    ----------
    dtype : Type
        fp32, fp16 or bf16.
    strides : tuple of int
        Of axes [batch, head], in elements; 0 where all have the same.
    """

    dtype: Type
    strides: tuple[int, int]


@dataclass(frozen=True)
class ScoreOptions:
    """The options of a call that change logits or hide keys; see `cuattn.attention`.

    Attributes
    ----------
    window_size : tuple of int (left, right)
        Row i sees key j if ``-left <= j - (i + seqlen_kv - seqlen_q) <= right``. -1 is no bound: a
        side that hides nothing is -1, but for a right side of 0, which is that of `is_causal`.
        Other sides are less than the number of keys and of rows.
    softcap : float
        0 if there is none.
    sinks, alibi_slopes : Vector, optional
    attn_mask : ScoreMask, optional
    score_mod, mask_mod : ModSource, optional
    mod_numbers : tuple of Number
        Of both.
    first_sequence, first_head : int
        What expressions count sequences and query heads from: not 0 in a part of a call.
    """

    window_size: tuple[int, int] = ALL_KEYS
    softcap: float = 0.0
    sinks: Vector | None = None
    alibi_slopes: Vector | None = None
    attn_mask: ScoreMask | None = None
    score_mod: ModSource | None = None
    mask_mod: ModSource | None = None
    mod_numbers: tuple[Number, ...] = ()
    first_sequence: int = 0
    first_head: int = 0

    @classmethod
    def of(
        cls,
        shape: tuple[int, int, int, int],
        device: tuple[int, int],
        arrays: ScoreArrays,
        *,
        is_causal: bool,
        window_size: tuple[int, int],
        softcap: float,
        softmax_scale: float,
        mods: Mods | None = None,
    ) -> ScoreOptions:
        """Check the arrays of a call and tell what is left of its options.

        Parameters
        ----------
        shape : tuple of int
            Of the logits: [batch, num_q_heads, seqlen_q, seqlen_kv].
        device : tuple of int
            Where the arrays have to be.
        arrays : ScoreArrays
        is_causal, window_size, softcap
            As for `cuattn.attention`; a window is a `checked_window`.
        softmax_scale : float
        mods : Mods, optional

        Raises
        ------
        ArgumentError
            If an array has another shape, type or place, or softcap makes no sense.
        """
        sinks, slopes, mask, of_mods = arrays
        for name, x in zip(SCORE_NAMES, (sinks, slopes, mask), strict=True):
            if x is not None:
                _check(name, x, device)
        score_mod, mask_mod = mod_sources(mods, of_mods, device)
        return cls(
            window_size=_bounds(window_size, is_causal, *shape[2:]),
            softcap=checked_softcap(softcap, softmax_scale),
            sinks=None if sinks is None else _sinks(sinks, shape[1]),
            alibi_slopes=None if slopes is None else _slopes(slopes, shape[:2]),
            attn_mask=None if mask is None else score_mask(mask, shape),
            score_mod=score_mod,
            mask_mod=mask_mod,
            mod_numbers=() if mods is None else mods.numbers,
        )

    @property
    def is_causal(self) -> bool:
        """Whether the window is that of ``is_causal=True``."""
        return self.window_size == (UNLIMITED, 0)

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but what `is_causal` says."""
        return self in (_NONE, _CAUSAL)


_NONE, _CAUSAL = ScoreOptions(), ScoreOptions((UNLIMITED, 0))


def checked_window(window_size: Any) -> tuple[int, int]:
    """Return a window as a key of plans: two integers of Python, -1 for no bound.

    Raises
    ------
    ArgumentError
        If it is anything else.
    """
    expected = "(left, right), how many keys before and behind its own a row sees, -1 for all"
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise ArgumentError("window_size", window_size, expected)
    for side in window_size:
        # True is an int, and equal to 1.
        if isinstance(side, bool) or not isinstance(side, (int, np.integer)) or side < UNLIMITED:
            raise ArgumentError("window_size", window_size, expected)
    left, right = map(int, window_size)
    return left, right


def checked_softcap(softcap: float, softmax_scale: float) -> float:
    """Return a softcap as a float of Python, 0 for none.

    Raises
    ------
    ArgumentError
        If it is no such number, or float32 does not hold what kernels make of it.
    """
    if isinstance(softcap, bool) or not isinstance(softcap, (int, float, np.floating, np.integer)):
        raise ArgumentError("softcap", softcap, "a number, 0 for none")
    # As in `problem`: a float16 would round the bound, and an int may be too large.
    number = softcap if isinstance(softcap, int) else float(softcap)
    if not 0 <= number <= _LARGEST / math.log2(math.e):  # NaN fails too
        raise ArgumentError("softcap", softcap, "at least 0, which is none, and finite in float32")
    if number and (number < _LEAST or softmax_scale > number * _LARGEST):
        expected = f"0 for none, or such that scale / softcap is finite; scale is {softmax_scale}"
        raise ArgumentError("softcap", softcap, expected)
    return float(number)


def _bounds(
    window_size: tuple[int, int], is_causal: bool, seqlen_q: int, seqlen_kv: int
) -> tuple[int, int]:
    """Return a window whose sides are -1 where they hide nothing."""
    left, right = window_size
    if is_causal:
        right = 0
    # The last row, at the last key, has the most before it; the first one, which is seqlen_q - 1
    # further ahead, has the most behind it.
    if left >= seqlen_kv - 1:
        left = UNLIMITED
    if right and right >= seqlen_q - 1:
        right = UNLIMITED
    return left, right


def _check(name: str, x: Array | MaskBlocks, device: tuple[int, int]) -> None:
    if x.dtype not in DTYPES and (name != "attn_mask" or x.dtype != "bool"):
        expected = [*DTYPES, "bool"] if name == "attn_mask" else [*DTYPES]
        raise ArgumentError(f"{name}.dtype", x.dtype, f"one of {expected}")
    if x.device != device:
        raise ArgumentError(f"{name}.device", x.device, f"{device}, the device of q")
    if x.dtype in DTYPES and isinstance(x, Array):
        check_alignment(name, x)


def _sinks(x: Array, heads: int) -> Vector:
    if x.shape != (heads,):
        raise ArgumentError("sinks.shape", x.shape, f"({heads},), one for each query head")
    return Vector(DTYPES[x.dtype], (0, x.strides[0] if heads > 1 else 0))


def _slopes(x: Array, shape: tuple[int, int]) -> Vector:
    batch, heads = shape
    expected = f"({heads},) or {shape}: [num_q_heads] or [batch, num_q_heads]"
    of_batch, of_head = broadcast_strides("alibi_slopes", x, (batch, heads), expected)
    return Vector(DTYPES[x.dtype], (of_batch, of_head))
