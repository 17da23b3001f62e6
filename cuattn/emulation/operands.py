"""Operands of the emulation: codes and scales of arrays in host memory, or rounded values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..operands.layout import CodeLayout
from ..operands.operand import operand_of
from ..operands.pairs import check_pair
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
    sorted_tokens,
)
from ..reference.rounding import HalfType, round_half
from ..reference.smoothing import block_means, less_means
from ..scheme import Scheme
from ..specs.coding import Name, coding
from .arrays import signature_on_host, values_on_host

__all__ = ["operand_on_host", "order_on_host", "quantize_on_host"]


def quantize_on_host(
    given: Mapping[Name, Any], called: Mapping[Name, str], scheme: Scheme, layout: str
) -> dict[Name, QuantizedTensor]:
    """`cuattn.quantize` of an array in host memory, or `quantize_kv` of two.

    Parameters
    ----------
    given : mapping of {"q", "k", "v"} to array
    called : mapping of {"q", "k", "v"} to str
        Names of the arguments, for errors.
    """
    seen = {name: signature_on_host(x, called[name]) for name, x in given.items()}
    shapes = {name: operand_of(name, x, scheme, layout).shape for name, x in seen.items()}
    if len(seen) == 2:
        check_pair(seen["k"], seen["v"])
    values = {name: values_on_host(x, called[name], layout) for name, x in given.items()}
    order = order_on_host(values, scheme)
    made: dict[Name, QuantizedTensor] = {}
    for name, x in values.items():
        quantized, vector = _quantized(name, x, scheme, order)
        code_layout = CodeLayout.of(scheme, name, shapes[name], packed=True)
        codes, scale = stored(quantized, name, scheme, code_layout)
        own = order if code_layout.order else None
        made[name] = QuantizedTensor(
            codes, scale, vector, name, scheme, shapes[name], seen[name].dtype, own
        )
    return made


def order_on_host(values: Mapping[Name, Any], scheme: Scheme) -> NDArray[np.uint8] | None:
    """Return the order of sorted keys, that of K or V where they have one; None is that of columns.

    Parameters
    ----------
    values : mapping of {"q", "k", "v"} to ndarray or QuantizedTensor
    """
    if scheme.k_scope != "sorted" or not {"k", "v"} <= values.keys():
        return None
    for x in (values["k"], values["v"]):
        if isinstance(x, QuantizedTensor):
            order: NDArray[np.uint8] | None = x.order
            return order
    return sorted_tokens(values["k"], values["v"], scheme)


def operand_on_host(
    name: Name, x: Any, scheme: Scheme, half: HalfType, order: NDArray[np.uint8] | None
) -> Operand:
    """Return what a kernel multiplies: codes and scales, or values in the products' type."""
    if isinstance(x, QuantizedTensor):
        return x.to_reference()
    if coding(scheme, name) is not None:
        return _quantized(name, x, scheme, order)[0]
    return round_half(as_float32(x), half)


def _quantized(
    name: Name, x: NDArray[Any], scheme: Scheme, order: NDArray[np.uint8] | None
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
        order=None if name == "q" else order,
    )
    return quantized, vector if means is None else means
