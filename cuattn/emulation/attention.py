"""Arrays in host memory: the reference's emulation behind the same interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.host import look_on_host, new_on_host, to_host, write_on_host
from ..arrays.overlap import check_writable, overlap
from ..arrays.pytorch import note_write
from ..arrays.view import Array, View
from ..errors import ArgumentError
from ..operands.layout import Form
from ..operands.operand import dtype_name, operand_of
from ..operands.problem import Options, Problem
from ..operands.quantized import QuantizedTensor
from ..operands.token_order import stored
from ..plan.kernels import half_type
from ..reference.arrays import as_float32
from ..reference.emulate import emulate
from ..reference.quantize import (
    Operand,
    Operands,
    Quantized,
    block_of,
    quantize,
    scope_of,
    smoothing_vector,
)
from ..reference.rounding import HalfType, round_half
from ..reference.smoothing import block_means, less_means, lse_shift, products_with_means
from ..scheme import Scheme
from ..specs.attention import Type
from ..specs.coding import Name, coding

__all__ = ["attention_on_host", "delivered", "output_on_host", "quantize_on_host"]


def attention_on_host(
    given: Mapping[Name, Any], options: Options, out: Any, check_finite: bool
) -> tuple[Any, Any]:
    """Emulate `cuattn.attention` on arrays in host memory.

    Parameters
    ----------
    given : mapping of {"q", "k", "v"} to array or QuantizedTensor
    options : Options
    out : array or None
    check_finite : bool

    Returns
    -------
    o : array of the library of q, or `out`
    lse : array of float32 [batch, num_q_heads, seqlen_q]
    """
    q, k, v = (_signature(x, name) for name, x in given.items())
    problem = Problem.of(q, k, v, options)
    target = None if out is None else output_on_host(out, problem, given)
    values = {name: _values(x, name, problem.layout) for name, x in given.items()}
    if check_finite:
        _check_finite(values, given)

    half: HalfType = "float16"
    if half_type(problem.scheme, problem.q.dtype) is Type.bf16:
        half = "bfloat16"
    operands = {name: _operand(name, x, problem.scheme, half) for name, x in values.items()}
    shift = None
    if problem.return_lse:
        shift = _lse_shift(operands, values["q"], problem.softmax_scale)
    delta = _delta(values, operands["k"]) if problem.scheme.smooth_q != "none" else None
    o, lse = emulate(
        Operands(operands["q"], operands["k"], operands["v"], half, delta),
        problem.scheme,
        scale=problem.softmax_scale,
        is_causal=problem.is_causal,
        lse_shift=shift,
    )

    return delivered(o, lse, problem, given["q"], out, target)


def quantize_on_host(x: Any, operand: Name, scheme: Scheme, layout: str) -> QuantizedTensor:
    """`cuattn.quantize` of an array in host memory."""
    seen = _signature(x, "x")
    shape = operand_of(operand, seen, scheme, layout).shape
    quantized, vector = _quantized(operand, _values(x, "x", layout), scheme)
    form = Form.of(scheme, operand, shape, packed=True)
    codes, scale = stored(quantized, operand, scheme, form)
    return QuantizedTensor(codes, scale, vector, operand, scheme, shape, seen.dtype)


def _quantized(
    name: Name, x: NDArray[Any], scheme: Scheme
) -> tuple[Quantized, NDArray[np.float32] | None]:
    """Return codes and scales, and the vector that smoothing has subtracted from them."""
    smoothing = {"q": "none", "k": scheme.smooth_k, "v": scheme.smooth_v}
    product: Any = scheme.pv if name == "v" else scheme.qk
    vector = smoothing_vector(x, smoothing[name])
    means = None
    if name == "q" and scheme.smooth_q == "block":
        means = block_means(x)
        x = less_means(x, means)
    quantized = quantize(
        x,
        scope=scope_of(name, getattr(scheme, f"{name}_scope")),
        block=block_of(scheme, name),
        vector=vector,
        rotated=scheme.rotate,
        to=product,
    )
    return quantized, vector if means is None else means


def _operand(name: Name, x: Any, scheme: Scheme, half: HalfType) -> Operand:
    if isinstance(x, QuantizedTensor):
        return x.to_reference()
    if coding(scheme, name) is not None:
        return _quantized(name, x, scheme)[0]
    return round_half(as_float32(x), half)


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


def _signature(x: Any, name: str) -> Any:
    if isinstance(x, QuantizedTensor):
        return x.signature
    seen = look_on_host(x, name)
    return Array(seen.shape, seen.strides, seen.dtype, seen.device)


def _values(x: Any, name: str, layout: str) -> Any:
    """Return an array [batch, head, token, head_dim] of NumPy, or a QuantizedTensor as it is."""
    if isinstance(x, QuantizedTensor):
        return x
    values = to_host(x, name).values
    return values.swapaxes(1, 2) if layout == "NHD" else values


def _check_finite(values: Mapping[Name, Any], given: Mapping[Name, Any]) -> None:
    for name, x in values.items():
        if not np.isfinite(x.scale if isinstance(x, QuantizedTensor) else x).all():
            raise ArgumentError(name, given[name], "without NaN and infinity")


def output_on_host(out: Any, problem: Problem, given: Mapping[Any, Any]) -> View:
    """Look at a caller's output, and check it against the problem and the inputs by their names.

    Raises
    ------
    ArgumentError
        If it does not fit, cannot be written, or overlaps an input.
    """
    target = look_on_host(out, "out")
    problem.output(_signature(out, "out"))
    check_writable(out, target)
    itemsize = problem.q.dtype.nbytes
    for name, x in given.items():
        if not isinstance(x, QuantizedTensor) and overlap(target, look_on_host(x, name), itemsize):
            raise ArgumentError("out", out, f"in memory apart from that of {name}")
    note_write(out)
    return target


def delivered(
    o: NDArray[np.float64],
    lse: NDArray[np.float64],
    problem: Problem,
    like: Any,
    out: Any,
    target: View | None,
) -> tuple[Any, Any]:
    """Return results in the caller's layout, type and library, which is that of `like`.

    The first is `out`, seen as `target`, if there is one; the second None if nobody asked for it.
    """
    if problem.layout == "NHD":
        o = o.swapaxes(1, 2)
    with np.errstate(over="ignore", invalid="ignore"):
        if target is not None:
            write_on_host(target, o)
        else:
            out = new_on_host(o, dtype_name(problem.q.dtype), like)
    return out, new_on_host(lse, "float32", like) if problem.return_lse else None
