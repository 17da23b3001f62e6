"""What a scheme makes of Q, K and V; the quantizer, the smoothing and V's layout by their names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError
from ..presets import resolve
from ..scheme import Scheme, Scope
from .arrays import FloatArray, Shape, as_float32, floating
from .layout import pad_head_dim, transpose_v, untranspose_v
from .quantized import AMAX_FLOOR, CodeType, Quantized, quantize, token_amax
from .rounding import HalfType, round_half
from .scopes import Scope as QuantizerScope
from .smoothing import (
    Q_BLOCK,
    SAMPLE,
    block_means,
    less_means,
    products_with_means,
    smoothing_vector,
)
from .sorting import sorted_order

__all__ = [
    "AMAX_FLOOR",
    "SAMPLE",
    "Operand",
    "Operands",
    "Quantized",
    "block_of",
    "operands",
    "pad_head_dim",
    "quantize",
    "scope_of",
    "smoothing_vector",
    "sorted_tokens",
    "transpose_v",
    "untranspose_v",
]

Operand: TypeAlias = Quantized | FloatArray


@dataclass(frozen=True, eq=False)
class Operands:
    """Q, K and V as a scheme's products take them.

    Attributes
    ----------
    q, k, v : Quantized, or ndarray of float64 [batch, head, token, head_dim]
        Quantized for an 8-bit product, else values rounded to `compute`.
    compute : {"float16", "bfloat16"}
        Type to which P is rounded in a product that is not of 8 bits.
    delta : ndarray of float64 [batch, num_q_heads, blocks of 128 rows, seqlen_kv], or None
        What smoothing Q took from the products of Q and K: SageAttention2's ΔS (arXiv 2411.10958,
        equation 5).
    """

    q: Operand
    k: Operand
    v: Operand
    compute: HalfType = "float16"
    delta: FloatArray | None = None

    @property
    def shape(self) -> Shape:
        """The sizes of the call."""
        q, k, v = (x.codes if isinstance(x, Quantized) else x for x in (self.q, self.k, self.v))
        return Shape.of(q.shape, k.shape, v.shape)


def scope_of(name: str, scope: Scope) -> QuantizerScope:
    """Return the quantizer's name of a scheme's scope of an operand."""
    if scope == "thread":
        return "thread_q" if name == "q" else "thread_k"
    return scope


def block_of(scheme: Scheme, name: str) -> int:
    """Return the tokens of a block of an operand under a scheme, or the channels of a group."""
    scope = {"q": scheme.q_scope, "k": scheme.k_scope, "v": scheme.v_scope}[name]
    if scope == "group":
        return scheme.qk_group
    return Q_BLOCK if scope == "block" and name == "q" else scheme.p_block


def sorted_tokens(k: ArrayLike, v: ArrayLike, scheme: Scheme) -> NDArray[np.uint8]:
    """Return the order of the keys of each block under a scheme with the scope "sorted".

    Parameters
    ----------
    k, v : array_like of float [batch, num_kv_heads, seqlen_kv, head_dim]
    scheme : Scheme

    Returns
    -------
    ndarray of uint8 [batch, num_kv_heads, block, 128]
        See `sorting.sorted_order`.
    """
    k_amax = token_amax(k, smoothing_vector(k, scheme.smooth_k), scheme.rotates("k"))
    v_amax = token_amax(v, smoothing_vector(v, scheme.smooth_v))
    return sorted_order(k_amax, v_amax)


def operands(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    scheme: str | Scheme,
    *,
    compute: HalfType | None = None,
    exact: Collection[str] = (),
) -> Operands:
    """Quantize or round Q, K and V as a scheme says.

    Parameters
    ----------
    q : array_like of float [batch, num_q_heads, seqlen_q, head_dim]
    k, v : array_like of float [batch, num_kv_heads, seqlen_kv, head_dim]
    scheme : str or Scheme
    compute : {"float16", "bfloat16"}, optional
        Half-precision type of a scheme whose Q Kᵀ is not quantized; by default bfloat16 if `q` is,
        else float16. If Q Kᵀ is INT8, P V in half precision is always in float16, which has the
        finer steps and whose range neither P nor an activation needs more of.
    exact : collection of {"q", "k", "v"}
        Operands to leave unrounded: in units of their scales if they have any.

    Raises
    ------
    ArgumentError
        For arrays that do not fit each other, or an unknown scheme or type.
    """
    scheme = resolve(scheme)
    q, k, v = floating("q", q), floating("k", k), floating("v", v)
    Shape.of(q.shape, k.shape, v.shape)
    if compute is None:
        compute = "bfloat16" if q.dtype.name == "bfloat16" else "float16"
    if compute not in ("float16", "bfloat16"):
        raise ArgumentError("compute", compute, "'float16' or 'bfloat16'")
    half: HalfType = compute if scheme.qk == "fp16" else "float16"

    def rounded(name: str, x: NDArray[np.floating]) -> FloatArray:
        return x.astype(np.float64) if name in exact else round_half(as_float32(x), half)

    order = sorted_tokens(k, v, scheme) if scheme.k_scope == "sorted" else None

    def coded(
        name: Literal["q", "k", "v"],
        x: NDArray[np.floating],
        scope: Scope,
        smooth: str,
        to: CodeType,
    ) -> Quantized:
        return quantize(
            x,
            scope=scope_of(name, scope),
            block=block_of(scheme, name),
            vector=smoothing_vector(x, smooth),
            rotated=scheme.rotates(name),
            factor_first=name == "v",
            rounded=name not in exact,
            to=to,
            order=order if scope == "sorted" else None,
        )

    delta = None

    if scheme.qk == "fp16":
        qs: Operand = rounded("q", q)
        ks: Operand = rounded("k", k)
    else:
        ks = coded("k", k, scheme.k_scope, scheme.smooth_k, scheme.qk)
        if scheme.smooth_q == "block":
            mean = block_means(q)
            delta = products_with_means(mean, k, ks.vector)
            q = less_means(q, mean)
        qs = coded("q", q, scheme.q_scope, "none", scheme.qk)
    if scheme.pv == "fp16":
        vs: Operand = rounded("v", v)
    else:
        vs = coded("v", v, scheme.v_scope, scheme.smooth_v, scheme.pv)
    return Operands(qs, ks, vs, half, delta)
