"""`cuattn.attention` on arrays in host memory: the reference's emulation of the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ..arrays.host import score_values
from ..operands.block_mask import BlockMask
from ..operands.lengths import LengthArrays
from ..operands.options import Options
from ..operands.problem import Problem
from ..operands.quantized import QuantizedTensor
from ..operands.score_arrays import OPTION_NAMES, ScoreArrays
from ..operands.score_mod import MaskMod, ScoreMod
from ..plan.auto_problem import problem_on_host
from ..plan.kernels import half_type
from ..reference.emulate import emulate
from ..reference.mods import of_sequence
from ..reference.quantize import Operand, Operands, Quantized
from ..reference.rounding import HalfType
from ..reference.smoothing import block_means, lse_shift, products_with_means
from ..specs.attention import Type
from ..specs.coding import Name
from .arrays import (
    TOKENS,
    check_finite,
    delivered,
    output_on_host,
    signature_on_host,
    values_on_host,
)
from .mods import function_of
from .operands import operand_on_host, order_on_host
from .sequences import emulate_sequences

__all__ = ["attention_on_host"]


def attention_on_host(
    given: Mapping[Name, Any],
    scores: Mapping[str, Any],
    options: Options,
    out: Any,
    finite: bool,
    mods: tuple[ScoreMod | None, MaskMod | None] = (None, None),
) -> tuple[Any, Any]:
    """Emulate `cuattn.attention` on arrays in host memory.

    Parameters
    ----------
    given : mapping of {"q", "k", "v"} to array or QuantizedTensor
    scores : mapping of str to array or BlockMask
        Those among the options of the caller, by their names, or labels of `Mods`.
    options : Options
    out : array or None
    finite : bool
        Whether NaN and infinities are refused.
    mods : tuple of (ScoreMod or None, MaskMod or None)

    Returns
    -------
    o : array of the library of q, or `out`
    lse : array of float32 [batch, num_q_heads, seqlen_q]
    """
    q, k, v = (signature_on_host(x, name) for name, x in given.items())
    arrays = {name: signature_on_host(x, name) for name, x in scores.items()}
    problem = problem_on_host(q, k, v, options, ScoreArrays.of(arrays), LengthArrays.of(arrays))
    scores = {name: x.source if isinstance(x, BlockMask) else x for name, x in scores.items()}
    target = None if out is None else output_on_host(out, problem, {**given, **scores})
    layout = TOKENS if problem.is_packed else problem.layout
    values = {name: values_on_host(x, name, layout) for name, x in given.items()}
    if finite:
        check_finite(values, given)
    rules: dict[str, Any] = {
        name: score_values(x, name) for name, x in scores.items() if name in OPTION_NAMES
    }
    attend = partial(_emulated, problem=problem, mods=mods)
    if problem.lengths is None:
        return delivered(*attend(values, rules), problem, given["q"], out, target)
    o = np.zeros((*problem.q.shape[:3], problem.v.shape[3]))
    if out is not None:  # tokens of no sequence stay, whatever an array that is new has there
        with np.errstate(invalid="ignore"):
            o[...] = values_on_host(out, "out", layout)
    lse = emulate_sequences(values, rules, problem, o, attend)
    return delivered(o, lse, problem, given["q"], out, target)


def _emulated(
    values: Mapping[Name, Any],
    rules: Mapping[str, Any],
    number: int | None = None,
    *,
    problem: Problem,
    mods: tuple[ScoreMod | None, MaskMod | None],
) -> tuple[Any, Any]:
    """Quantize what is not, and attend: all sequences, or one of several."""
    score_mod, mask_mod = map(function_of, mods)
    if number is not None:
        score_mod, mask_mod = (of_sequence(mod, number) for mod in (score_mod, mask_mod))
    half: HalfType = "float16"
    if half_type(problem.scheme, problem.q.dtype) is Type.bf16:
        half = "bfloat16"
    order = order_on_host(values, problem.scheme)
    operands = {
        name: operand_on_host(name, x, problem.scheme, half, order) for name, x in values.items()
    }
    shift = None
    if problem.needs_lse_shift:
        shift = _lse_shift(operands, values["q"], problem.softmax_scale)
    delta = _delta(values, operands["k"]) if problem.scheme.smooth_q != "none" else None
    return emulate(
        Operands(operands["q"], operands["k"], operands["v"], half, delta),
        problem.scheme,
        scale=problem.softmax_scale,
        window_size=problem.scores.window_size,
        softcap=problem.scores.softcap,
        sinks=rules.get("sinks"),
        attn_mask=rules.get("attn_mask"),
        alibi_slopes=rules.get("alibi_slopes"),
        score_mod=score_mod,
        mask_mod=mask_mod,
        lse_shift=shift,
    )


def _delta(values: Mapping[Name, Any], k: Operand) -> Any:
    """Return what smoothing Q took from the products with K."""
    q, keys = values["q"], values["k"]
    means = q.vector if isinstance(q, QuantizedTensor) else block_means(q)
    vector = k.vector if isinstance(k, Quantized) else None
    exact = keys.dequantize() if isinstance(keys, QuantizedTensor) else keys
    return products_with_means(means, exact, vector)


def _lse_shift(operands: Mapping[Name, Operand], given_q: Any, scale: float) -> Any:
    q, k = operands["q"], operands["k"]
    if not (isinstance(q, Quantized) and isinstance(k, Quantized)):
        return None
    exact = given_q.dequantize() if isinstance(given_q, QuantizedTensor) else given_q
    return lse_shift(exact, k.vector, scale)
