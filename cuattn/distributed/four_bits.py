"""Codes of 4 bits, as they have travelled, made codes of 8 that products take."""

from __future__ import annotations

import math
from typing import Any

from ..arrays.device import current_device
from ..arrays.view import cupy_module
from ..common.remember import remember
from ..compile.chain import Chain
from ..compile.launch import Buffers, Launch
from ..reference.layout import unpack_pairs
from ..specs.unpack import PIECE, UnpackSpec
from .side_stream import is_on_gpu

__all__ = ["unpacked"]

# Lengths of parcels that a process remembers.
_REMEMBERED = 64


def unpacked(codes: Any) -> Any:
    """Return codes, two to a byte along the last axis, one to a byte: int8.

    Parameters
    ----------
    codes : ndarray of uint8
        Contiguous, of NumPy or on CuPy's current device; the last axis a multiple of 8.
    """
    if not is_on_gpu(codes):
        return unpack_pairs(codes)
    cupy = cupy_module()
    whole = cupy.empty((*codes.shape[:-1], 2 * codes.shape[-1]), "int8")
    if whole.size:
        launch = _prepare(math.prod(whole.shape), current_device().ordinal)
        launch((codes.data.ptr, whole.data.ptr), cupy.cuda.get_current_stream().ptr)
    return whole


@remember(_REMEMBERED)
def _prepare(codes: int, ordinal: int) -> Chain:
    """Plan the unpacking of so many codes on CuPy's current device, and load its kernel."""
    spec, buffers = UnpackSpec(), Buffers("packed", "codes")
    values = {
        "packed": buffers["packed"],
        "codes": buffers["codes"],
        "pieces": codes // PIECE,
    }
    return Chain([Launch(spec, current_device(), (spec.ctas(codes),), values)], buffers)
