"""What K and V must have in common when they are quantized, or attended, together."""

from __future__ import annotations

import numpy as np

from ..arrays.view import CPU, CUDA, Array
from ..errors import ArgumentError
from .quantized import QuantizedTensor

__all__ = ["check_orders", "check_pair"]


def check_pair(k: Array, v: Array) -> None:
    """Check that arrays of K and V are of one shape but for the last axis, one type and device.

    Raises
    ------
    ArgumentError
    """
    if v.shape[:3] != k.shape[:3]:
        expected = f"{k.shape}, the shape of k, but for the last axis"
        raise ArgumentError("v.shape", v.shape, expected)
    for what in ("dtype", "device"):
        if getattr(v, what) != getattr(k, what):
            expected = f"{getattr(k, what)}, the {what} of k"
            raise ArgumentError(f"v.{what}", getattr(v, what), expected)


def check_orders(k: object, v: object) -> None:
    """Check that sorted tokens of K and V that are quantized already have one order.

    Raises
    ------
    ArgumentError
    """
    if not (isinstance(k, QuantizedTensor) and isinstance(v, QuantizedTensor)):
        return
    if k.order is v.order:
        return
    if k.order is not None and v.order is not None and k.device == v.device:
        same = np.array_equal(k.order, v.order) if k.device[0] == CPU else False
        if same or (k.device[0] == CUDA and k.order_address == v.order_address):
            return
    raise ArgumentError("v", v, "quantized together with k, by one call of cuattn.quantize_kv")
