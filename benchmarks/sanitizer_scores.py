"""Options of scores on small calls, for compute-sanitizer to watch in both families of kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuattn import ScoreMod
from cuattn.arrays.device import Target
from cuattn.bench.cases import Case
from cuattn.compile.jit import Spec
from cuattn.plan.kernels import attention_spec
from cuattn.presets import resolve
from cuattn.specs.attention import Type
from cuattn.specs.mask_map import MaskMapSpec
from cuattn.specs.rules import MaskKind, Rules

from .feature_cases import BY_DISTANCE, EXPRESSED

__all__ = ["SCORED", "Scored", "kernels"]


@dataclass(frozen=True)
class Scored:
    """A scheme with options of scores.

    Attributes
    ----------
    scheme : str
    rules : Rules
        Of the kernel that serves it.
    options : callable
        Makes the keyword arguments of `cuattn.attention` for a shape, arrays on the GPU.
    """

    scheme: str
    rules: Rules
    options: Callable[[Case], dict[str, Any]]


def _window(shape: Case) -> dict[str, Any]:
    # Whole tiles are beyond it, and its sides are no multiples of any.
    del shape
    return {"window_size": (70, 3)}


def _softcap(shape: Case) -> dict[str, Any]:
    del shape
    return {"softcap": 3.0}


def _of_heads(name: str) -> Callable[[Case], dict[str, Any]]:
    def make(shape: Case) -> dict[str, Any]:
        return {name: _at_the_end(np.linspace(0.5, 0.1, shape.num_q_heads, dtype=np.float32))}

    return make


def _by_distance(shape: Case) -> dict[str, Any]:
    # A slope that is a kernel's unit, and none: there the expression is asked.
    slopes = np.where(np.arange(shape.num_q_heads) % 2 == 0, 0.5, 0.0).astype(np.float32)
    return {"score_mod": ScoreMod(BY_DISTANCE, arrays={"slope": _at_the_end(slopes)})}


def _seen(shape: Case) -> Any:
    """Return the visibility of an odd pattern, with a tile of rows that see nothing."""
    rows, keys = np.arange(shape.seqlen_q)[:, None], np.arange(shape.seqlen_kv)
    return ((rows * 7 + keys) % 5 > 0) & (rows // 64 != 1)


def _bits(shape: Case) -> dict[str, Any]:
    return {"attn_mask": _at_the_end(_seen(shape))}


def _bias(shape: Case) -> dict[str, Any]:
    bias = np.where(_seen(shape), 0.25, -np.inf).astype(np.float32)
    return {"attn_mask": _at_the_end(bias)}


def _at_the_end(values: Any) -> Any:
    """Return values behind a gap in each row, so that an overrun of the last one shows."""
    import cupy

    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(1, 0)])
    return cupy.asarray(padded)[..., 1:]


SCORED = (
    Scored("int8", Rules(windowed=True), _window),
    Scored("int8-block", Rules(softcap=True), _softcap),
    Scored("int8", Rules(sinks=True), _of_heads("sinks")),
    Scored("fp16", Rules(alibi=True), _of_heads("alibi_slopes")),
    Scored("int8-block", EXPRESSED, _by_distance),
    Scored("int8-block", Rules(attn_mask=MaskKind.bits), _bits),
    Scored("fp16", Rules(attn_mask=MaskKind.fp32), _bias),
)


def kernels(shape: Case, target: Target) -> Iterator[Spec]:
    """Yield the kernels of these on float16 inputs of a shape, besides those without options."""
    for scored in SCORED:
        if scored.rules.mapped:
            yield MaskMapSpec(scored.rules.attn_mask)
        yield attention_spec(
            resolve(scored.scheme),
            shape.head_dim,
            Type.fp16,
            # A window is the causal mask, too.
            shape.is_causal and not scored.rules.windowed,
            target,
            rules=scored.rules,
        )
