"""What the score options of a call are to an attention kernel: its rules, and their arguments."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any, Protocol

from ..arrays.device import Device
from ..compile.launch import NULL, Buffers, Launch
from ..operands.masks import ScoreMask
from ..operands.mods import Number
from ..operands.problem import Problem
from ..operands.score_arrays import MOD_NAMES
from ..operands.scores import UNLIMITED, Vector
from ..specs.attention import Scope, Type
from ..specs.coding import code_type, stored_scope
from ..specs.mods import ModSource
from ..specs.rules import MaskKind, Rules
from .linear_mod import slope_source
from .mask_map import MASK_KINDS, MaskLayout, map_launch

__all__ = ["needs_lse_shift", "rules_of", "score_arguments", "user_values"]

# Further away than any key: kernels compare before they add.
_ALL = 2**31 - 1

# Of K's scales: whether a block's scores have one unit, or a lane's have.
_SHARED_UNITS = (Scope.block, Scope.sorted)

# How kernels are told the type of a vector: AttentionParams::sinks_type.
_VECTOR_TYPES = {Type.fp32: 0, Type.fp16: 1, Type.bf16: 2}

_NO_MASK: dict[str, float] = {
    **dict.fromkeys(("attn_mask", "mask_map"), NULL),
    "mask_words": 0,
    "mask_columns": 0,
    **{f"mask_stride_{axis}": 0 for axis in ("batch", "head", "row", "key")},
    **{f"map_stride_{axis}": 0 for axis in ("batch", "head", "tile")},
}


def rules_of(problem: Problem) -> Rules:
    """Return what of a call's score options chooses the kernel."""
    scores = problem.scores
    mask = scores.attn_mask
    kind = MaskKind.none if mask is None else MASK_KINDS[mask.dtype]
    of_last = mask is not None and mask.columns is not None
    return Rules(
        windowed=scores.window_size not in ((UNLIMITED, UNLIMITED), (UNLIMITED, 0)),
        softcap=scores.softcap != 0.0,
        alibi=scores.alibi_slopes is not None,
        sinks=scores.sinks is not None,
        attn_mask=kind,
        varlen=problem.lengths is not None,
        score_mod=scores.score_mod,
        mask_mod=scores.mask_mod,
        score_slope=_score_slope(problem),
        # Bits are made by keys.
        mask_last=of_last and kind is not MaskKind.bits,
    )


def _score_slope(problem: Problem) -> ModSource | None:
    """Return the slope of an expression that kernels need not ask key by key.

    That is where keys of a block share the units of their scores, and nothing else changes these;
    with masks that hide anything an expression may not be fit for other heads than it is asked for.
    """
    scores, scheme = problem.scores, problem.scheme
    if scores.score_mod is None or scores.mask_mod is not None or scores.attn_mask is not None:
        return None
    if scores.softcap or scores.alibi_slopes is not None or scheme.smooth_q != "none":
        return None
    if code_type(scheme, "k") is not None and stored_scope(scheme, "k") not in _SHARED_UNITS:
        return None
    return slope_source(scores.score_mod, only_past=scores.window_size[1] == 0)


def needs_lse_shift(problem: Problem) -> bool:
    """Whether kernels are told what K's smoothing takes from the logits of each row.

    To what is linear it makes no difference, but in the log-sum-exp.
    """
    is_linear = rules_of(problem).score_slope is not None
    asked = not is_linear or problem.return_lse or problem.scores.sinks is not None
    return asked and problem.needs_lse_shift


def score_arguments(
    problem: Problem, buffers: Buffers, device: Device
) -> tuple[dict[str, Any], list[Launch]]:
    """Return the arguments of an attention kernel that options of scores make, and launches.

    Parameters
    ----------
    problem : Problem
    buffers : Buffers
        Of the addresses of `SCORE_NAMES`, `MOD_NAMES` and "mask_map", which is that of a
        `BlockMask`; gets what is made of another mask.
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
        "user": user_values(scores, buffers),
        "user_batch": scores.first_sequence,
        "user_head": scores.first_head,
        **_NO_MASK,
    }
    arguments |= _vector("sinks", scores.sinks, buffers)
    arguments |= _vector("alibi_slopes", scores.alibi_slopes, buffers)
    del arguments["sinks_stride_batch"]
    if scores.attn_mask is None:
        return arguments, []
    made, launches = _mask(scores.attn_mask, problem, buffers, device)
    return arguments | made, launches


class _Expressions(Protocol):
    """What options of scores have of the caller's expressions."""

    @property
    def score_mod(self) -> ModSource | None: ...
    @property
    def mask_mod(self) -> ModSource | None: ...
    @property
    def mod_numbers(self) -> tuple[Number, ...]: ...


def user_values(scores: _Expressions, buffers: Buffers) -> list[dict[str, float]]:
    """Return the arrays and the numbers of the caller's expressions, in their order.

    Those are `user` of AttentionParams, and of DecodeParams.
    """
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
) -> tuple[dict[str, float], list[Launch]]:
    """Have the map of a mask made, and its bits if it has booleans, unless they are there."""
    layout = MaskLayout.of(mask, (*problem.q.shape[:2], problem.q.tokens, problem.k.tokens))
    is_bits = layout.kind is MaskKind.bits
    read = buffers["attn_mask"]
    launches: list[Launch] = []
    if mask.is_mapped:
        tile_map = buffers["mask_map"]
    else:
        bits = buffers.take(4 * math.prod(layout.bits)) if is_bits else NULL
        tile_map = buffers.take(4 * math.prod(layout.tile_map))
        lengths = NULL if mask.columns is None else buffers["seqused_k"]
        launches.append(map_launch(layout, device, read, bits, tile_map, lengths))
        read = bits if is_bits else read
    sizes = layout.batch, layout.heads, layout.rows
    strides = mask.strides
    if is_bits:
        strides = *_kept(layout.bits, sizes), 0
    arguments: dict[str, float] = {
        "attn_mask": read,
        "mask_map": tile_map,
        "mask_words": layout.tile_map[-1],
        "mask_columns": mask.columns or 0,
    }
    for axis, step in zip(("batch", "head", "row", "key"), strides, strict=True):
        arguments[f"mask_stride_{axis}"] = step
    of_map = _kept(layout.tile_map, sizes)
    for axis, step in zip(("batch", "head", "tile"), of_map, strict=True):
        arguments[f"map_stride_{axis}"] = step
    return arguments, launches


def _kept(shape: tuple[int, ...], sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the strides of the first three axes of a contiguous array, 0 where one is for all."""
    of_batch, of_head, of_row = (
        math.prod(shape[axis:]) if n > 1 else 0 for axis, n in enumerate(sizes, 1)
    )
    return of_batch, of_head, of_row
