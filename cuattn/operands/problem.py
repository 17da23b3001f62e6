"""One call, checked: the sizes, types and options that its arguments must agree on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..arrays.view import Array
from ..errors import ArgumentError
from ..presets import resolve
from ..scheme import Scheme
from ..specs.coding import Name
from .mods import Mods
from .operand import (
    Coded,
    Operand,
    compact_strides,
    in_order,
    operand_of,
    output_operand,
    takes_pairs,
)
from .score_arrays import NO_ARRAYS, ScoreArrays
from .scores import ALL_KEYS, ScoreOptions

__all__ = ["Options", "Problem", "check_flag"]

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


@dataclass(frozen=True)
class Problem:
    """One call of `cuattn.attention` whose arguments have been checked; see there."""

    q: Operand
    k: Operand
    v: Operand
    scheme: Scheme
    softmax_scale: float
    scores: ScoreOptions
    return_lse: bool
    layout: str
    device: tuple[int, int]

    @classmethod
    def of(
        cls,
        q: Array | Coded,
        k: Array | Coded,
        v: Array | Coded,
        options: Options,
        arrays: ScoreArrays = NO_ARRAYS,
    ) -> Problem:
        """Check everything but the output.

        Parameters
        ----------
        q, k, v : Array or Coded
        options : Options
        arrays : ScoreArrays
            Those among the options of the caller.

        Raises
        ------
        ArgumentError
            Naming the first argument that is wrong.
        """
        scheme = resolve(options.scheme)
        check_flag("is_causal", options.is_causal)
        check_flag("return_lse", options.return_lse)
        given: dict[Name, Array | Coded] = {"q": q, "k": k, "v": v}
        operands = {name: operand_of(name, x, scheme, options.layout) for name, x in given.items()}
        _check_agreement(given, operands)
        batch, heads, seqlen_q, head_dim = operands["q"].shape
        softmax_scale = _checked_scale(options.scale, head_dim)
        scores = ScoreOptions.of(
            (batch, heads, seqlen_q, operands["k"].tokens),
            q.device,
            arrays,
            is_causal=bool(options.is_causal),
            window_size=options.window_size,
            softcap=options.softcap,
            softmax_scale=softmax_scale,
            mods=options.mods,
        )
        return cls(
            **operands,
            scheme=scheme,
            softmax_scale=softmax_scale,
            scores=scores,
            return_lse=bool(options.return_lse),
            layout=options.layout,
            device=q.device,
        )

    @property
    def is_causal(self) -> bool:
        """Whether keys behind a row's own are hidden and, by position, no others."""
        return self.scores.is_causal

    @property
    def needs_lse_shift(self) -> bool:
        """Whether what K's smoothing takes from the logits of each row has to be known."""
        scores = self.scores
        wanted = (
            self.return_lse
            or scores.sinks is not None
            or scores.softcap != 0
            or scores.score_mod is not None
        )
        return wanted and self.scheme.smooth_k != "none"

    @property
    def group(self) -> int:
        """Query heads that share one head of K and V."""
        return self.q.shape[1] // max(self.k.shape[1], 1)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output in the caller's layout."""
        return in_order((*self.q.shape[:3], self.v.shape[3]), self.layout)

    def output(self, out: Array) -> Operand:
        """Check the caller's output and return it as an operand.

        Raises
        ------
        ArgumentError
            If type or device are not those of q, the shape is another one, or elements share memory
            or lie at odd addresses.
        """
        shape = self.output_shape
        if self.v.shape[3] != self.q.shape[3] and out.shape != shape:
            expected = f"{shape}, the shape of q with the head_dim of v"
            raise ArgumentError("out.shape", out.shape, expected)
        return output_operand(out, shape, self.q.dtype, self.device, self.layout, "q")

    def output_strides(self, out: Array | None) -> tuple[tuple[int, ...], bool]:
        """Return the strides of the output as a kernel writes it, and if that is the caller's.

        Without one, or where kernels cannot write to it, the output is contiguous.

        Raises
        ------
        ArgumentError
            As `output`.
        """
        if out is not None and not takes_pairs(self.output(out), out.misalignment):
            return compact_strides(self.output_shape), False
        return compact_strides(self.output_shape) if out is None else out.strides, True


def _check_agreement(given: Mapping[Name, Array | Coded], operands: Mapping[Name, Operand]) -> None:
    q, k, v = (operands[name].shape for name in ("q", "k", "v"))
    if (k[0], k[3]) != (q[0], q[3]):
        raise ArgumentError("k.shape", given["k"].shape, f"of batch {q[0]} and head_dim {q[3]}")
    if v[:3] != k[:3]:
        expected = f"{given['k'].shape}, the shape of k, but for the last axis"
        raise ArgumentError("v.shape", given["v"].shape, expected)
    if q[1] % max(k[1], 1) or (q[1] and not k[1]):
        raise ArgumentError("num_q_heads", q[1], f"a multiple of num_kv_heads, which is {k[1]}")
    arrays = [name for name in given if not operands[name].coded]
    for name in given:
        if given[name].device != given["q"].device:
            raise ArgumentError(f"{name}.device", given[name].device, _as_of("q", given, "device"))
        if name in arrays and given[name].dtype != given[arrays[0]].dtype:
            raise ArgumentError(
                f"{name}.dtype", given[name].dtype, _as_of(arrays[0], given, "dtype")
            )


def _as_of(name: Name, given: Mapping[Name, Any], attribute: str) -> str:
    return f"{getattr(given[name], attribute)}, the {attribute} of {name}"


def _checked_scale(scale: float | None, head_dim: int) -> float:
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
