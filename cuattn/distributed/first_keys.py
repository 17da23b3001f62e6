"""The first keys of a piece, as they are quantized with all of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays.view import cupy_module
from ..operands.layout import CodeLayout
from ..operands.quantized import QuantizedTensor
from ..quantize import quantize_into
from ..scheme import Scheme
from ..specs.coding import Name, coding
from .arrays import rows
from .placement import token_axis

__all__ = ["first_keys"]


def first_keys(k: Any, v: Any, keys: int, scheme: Scheme, layout: str) -> tuple[Any, Any]:
    """Return the first keys of K and V: views of arrays, copies of codes.

    Parameters
    ----------
    k, v : array or QuantizedTensor
        Arrays that the scheme quantizes are quantized first, all of them.
    keys : int
        Of codes whole blocks.
    scheme : Scheme
    layout : {"HND", "NHD"}
        Of arrays.
    """
    both: dict[Name, Any] = {"k": k, "v": v}
    arrays = {
        name: x
        for name, x in both.items()
        if not isinstance(x, QuantizedTensor) and coding(scheme, name) is not None
    }
    if arrays:
        both |= quantize_into(arrays, {}, scheme, layout)
    order = None
    for name, x in both.items():
        if not isinstance(x, QuantizedTensor):
            both[name] = rows(x, token_axis(layout), 0, keys)
            continue
        shape = (*x.shape[:2], keys, x.shape[3])
        found = CodeLayout.of(x.scheme, name, shape, packed=True)
        if x.order is not None and order is None:  # one array, of both
            order = _leading(x.order, found.order)
        both[name] = replace(
            x,
            codes=_leading(x.codes, found.data),
            scale=_leading(x.scale, found.scale),
            shape=shape,
            order=order,
        )
    return both["k"], both["v"]


def _leading(x: Any, shape: tuple[int, ...]) -> Any:
    """Return the first of a contiguous array along the axis that is shorter in a shape."""
    axis = next((i for i, n in enumerate(shape) if n != x.shape[i]), None)
    if axis is None:
        return x
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x[(slice(None),) * axis + (slice(shape[axis]),)])
    cupy = cupy_module()
    found = cupy.empty(shape, x.dtype)
    if found.size:  # rows of bytes, which no kernel has to take one by one
        count = math.prod(shape[:axis])
        width, pitch = found.nbytes // count, x.nbytes // count
        cupy.cuda.runtime.memcpy2DAsync(
            *(found.data.ptr, width, x.data.ptr, pitch, width, count),
            *(cupy.cuda.runtime.memcpyDeviceToDevice, cupy.cuda.get_current_stream().ptr),
        )
    return found
