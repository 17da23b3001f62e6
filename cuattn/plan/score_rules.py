"""What the score options of a call are to an attention kernel: its rules, and their arguments."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any

from ..arrays.device import Device
from ..common.sizes import ceil_div
from ..compile.launch import NULL, Buffers, Launch
from ..operands.problem import Problem
from ..operands.score_arrays import MOD_NAMES
from ..operands.scores import UNLIMITED, ScoreMask, ScoreOptions, Vector
from ..specs.attention import Type
from ..specs.mask_map import MAP_TILE, MaskMapSpec, bit_words, map_words
from ..specs.rules import MaskKind, Rules

__all__ = ["rules_of", "score_arguments"]

# Further away than any key: kernels compare before they add.
_ALL = 2**31 - 1

# How kernels are told the type of a vector: AttentionParams::sinks_type.
_VECTOR_TYPES = {Type.fp32: 0, Type.fp16: 1, Type.bf16: 2}

_MASK_KINDS = {
    "bool": MaskKind.bits,
    Type.fp32: MaskKind.fp32,
    Type.fp16: MaskKind.fp16,
    Type.bf16: MaskKind.bf16,
}

_NO_MASK: dict[str, float] = {
    **dict.fromkeys(("attn_mask", "mask_map"), NULL),
    "mask_words": 0,
    **{f"mask_stride_{axis}": 0 for axis in ("batch", "head", "row", "key")},
    **{f"map_stride_{axis}": 0 for axis in ("batch", "head", "tile")},
}


def rules_of(problem: Problem) -> Rules:
    """Return what of a call's score options chooses the kernel."""
    scores = problem.scores
    return Rules(
        windowed=scores.window_size not in ((UNLIMITED, UNLIMITED), (UNLIMITED, 0)),
        softcap=scores.softcap != 0.0,
        alibi=scores.alibi_slopes is not None,
        sinks=scores.sinks is not None,
        attn_mask=MaskKind.none
        if scores.attn_mask is None
        else _MASK_KINDS[scores.attn_mask.dtype],
        score_mod=scores.score_mod,
        mask_mod=scores.mask_mod,
    )


def score_arguments(
    problem: Problem, buffers: Buffers, device: Device
) -> tuple[dict[str, Any], list[Launch]]:
    """Return the arguments of an attention kernel that options of scores make, and launches.

    Parameters
    ----------
    problem : Problem
    buffers : Buffers
        Of the addresses of `SCORE_NAMES` and `MOD_NAMES`; gets what is made of a mask.
    device : Device
    """
    scores = problem.scores
    left, right = (_ALL if side == UNLIMITED else side for side in scores.window_size)
    cap = scores.softcap * math.log2(math.e)
    arguments: dict[str, Any] = {
        "window_left": left,
        "window_right": right,
        "softcap_log2": cap,
        "inverse_softcap": 1.0 / cap if cap else 0.0,
        "user": _user_values(scores, buffers),
        **_NO_MASK,
    }
    arguments |= _vector("sinks", scores.sinks, buffers)
    arguments |= _vector("alibi_slopes", scores.alibi_slopes, buffers)
    del arguments["sinks_stride_batch"]
    if scores.attn_mask is None:
        return arguments, []
    made, launch = _mask(scores.attn_mask, problem, buffers, device)
    return arguments | made, [launch]


def _user_values(scores: ScoreOptions, buffers: Buffers) -> list[dict[str, float]]:
    """Return the arrays and the numbers of the caller's expressions, in their order."""
    arrays = sum(len(mod.arrays) for mod in (scores.score_mod, scores.mask_mod) if mod is not None)
    values: list[dict[str, float]] = []
    for name, number in zip_longest(MOD_NAMES[:arrays], scores.mod_numbers):
        value = 0 if number is None else number.value
        is_int = number is not None and number.kind == "int"
        values.append(
            {
                "array": NULL if name is None else buffers[name],
                "real": 0.0 if is_int else value,
                "whole": value if is_int else 0,
            }
        )
    return values


def _vector(name: str, vector: Vector | None, buffers: Buffers) -> dict[str, float]:
    given = vector is not None
    dtype, strides = (vector.dtype, vector.strides) if vector else (Type.fp32, (0, 0))
    short = name.removesuffix("_slopes")
    return {
        name: buffers[name] if given else NULL,
        f"{short}_type": _VECTOR_TYPES[dtype],
        f"{short}_stride_batch": strides[0],
        f"{short}_stride_head": strides[1],
    }


def _mask(
    mask: ScoreMask, problem: Problem, buffers: Buffers, device: Device
) -> tuple[dict[str, float], Launch]:
    """Have the map of a mask made, and its bits if it has booleans."""
    kind = _MASK_KINDS[mask.dtype]
    keys = problem.k.tokens
    sizes = (*problem.q.shape[:2], problem.q.tokens)
    batch, heads, rows = (n if step else 1 for n, step in zip(sizes, mask.strides[:3], strict=True))
    tiles = ceil_div(rows, MAP_TILE)
    of_row, of_tile = bit_words(keys), 2 * map_words(keys)
    bits = NULL
    if kind is MaskKind.bits:
        bits = buffers.take(4 * batch * heads * rows * of_row)
    tile_map = buffers.take(4 * batch * heads * tiles * of_tile)
    values: dict[str, float] = {
        "mask": buffers["attn_mask"],
        "bits": bits,
        "map": tile_map,
        **dict(
            zip(
                ("stride_batch", "stride_head", "stride_row", "stride_key"),
                mask.strides,
                strict=True,
            )
        ),
        "heads": heads,
        "rows": rows,
        "keys": keys,
        "bit_words": of_row,
        "map_words": of_tile // 2,
        "tiles": tiles,
    }
    ctas = batch * heads * tiles * (of_tile // 2)
    launch = Launch(MaskMapSpec(kind), device, (ctas,), values)
    strides: tuple[int, ...] = mask.strides
    if kind is MaskKind.bits:
        packed = (heads * rows * of_row, rows * of_row, of_row)
        strides = (*(x if step else 0 for x, step in zip(packed, strides[:3], strict=True)), 0)
    of_map = (heads * tiles * of_tile, tiles * of_tile, of_tile)
    arguments: dict[str, float] = {
        "attn_mask": bits if kind is MaskKind.bits else buffers["attn_mask"],
        "mask_map": tile_map,
        "mask_words": of_tile // 2,
    }
    for axis, step in zip(("batch", "head", "row", "key"), strides, strict=True):
        arguments[f"mask_stride_{axis}"] = step
    for axis, step, given in zip(("batch", "head", "tile"), of_map, mask.strides, strict=False):
        arguments[f"map_stride_{axis}"] = step if given else 0
    return arguments, launch
