"""Operands of the emulation: codes and scales of arrays in host memory, or rounded values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..operands.layout import CodeLayout
from ..operands.operand import operand_of
from ..operands.quantized import QuantizedTensor
from ..operands.token_order import stored
from ..reference.arrays import as_float32
from ..reference.quantize import (
    Operand,
    Quantized,
    block_of,
    quantize,
    scope_of,
    smoothing_vector,
)
from ..reference.rounding import HalfType, round_half
from ..reference.smoothing import block_means, less_means
from ..scheme import Scheme
from ..specs.coding import Name, coding
from .arrays import signature_on_host, values_on_host

__all__ = ["operand_on_host", "quantize_on_host"]


def quantize_on_host(x: Any, operand: Name, scheme: Scheme, layout: str) -> QuantizedTensor:
    """`cuattn.quantize` of an array in host memory."""
    seen = signature_on_host(x, "x")
    shape = operand_of(operand, seen, scheme, layout).shape
    quantized, vector = _quantized(operand, values_on_host(x, "x", layout), scheme)
    code_layout = CodeLayout.of(scheme, operand, shape, packed=True)
    codes, scale = stored(quantized, operand, scheme, code_layout)
    return QuantizedTensor(codes, scale, vector, operand, scheme, shape, seen.dtype)


def operand_on_host(name: Name, x: Any, scheme: Scheme, half: HalfType) -> Operand:
    """Return what a kernel multiplies: codes and scales, or values in the products' type."""
    if isinstance(x, QuantizedTensor):
        return x.to_reference()
    if coding(scheme, name) is not None:
        return _quantized(name, x, scheme)[0]
    return round_half(as_float32(x), half)


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
        rotated=scheme.rotates(name),
        factor_first=name == "v",
        to=product,
    )
    return quantized, vector if means is None else means
