"""Codes and scales of the reference, stored as quantizing kernels do: the inverse of `natural`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reference.layout import LOG2_BIAS, in_slots, pack_pairs, transpose_v
from ..reference.quantize import Quantized
from ..reference.quantized import spread
from ..reference.rounding import e4m3_bits
from ..scheme import Scheme
from ..specs.attention import Scope, Type
from ..specs.coding import Name, stored_scope
from .layout import Form

__all__ = ["stored"]


def stored(
    quantized: Quantized, name: Name, scheme: Scheme, form: Form
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return codes and scales in the form of an operand."""
    return _codes(quantized, name, form), _scale(quantized, name, scheme, form)


def _codes(quantized: Quantized, name: Name, form: Form) -> NDArray[Any]:
    natural: Any = quantized.codes
    if form.code is Type.e4m3:
        natural = e4m3_bits(natural)
    if name == "v":
        codes: NDArray[Any] = transpose_v(natural)
    else:
        channels = form.data[3] * (2 if form.code is Type.int4 else 1)
        codes = np.zeros((*form.data[:3], channels), natural.dtype)
        codes[..., : natural.shape[3]] = natural
    return pack_pairs(codes) if form.code is Type.int4 else codes


def _scale(quantized: Quantized, name: Name, scheme: Scheme, form: Form) -> NDArray[np.float32]:
    scale = np.full(form.scale, form.empty_scale)
    scope, tokens = stored_scope(scheme, name), quantized.codes.shape[2]
    of_scopes = quantized.scale
    if scope is Scope.group:
        by_token = of_scopes if name == "q" else of_scopes.swapaxes(2, 3)
        scale[:, :, : by_token.shape[2], : by_token.shape[3]] = by_token
    elif scope is Scope.token:
        one = spread(of_scopes, quantized.scope, quantized.block, tokens)[..., 0]
        by_token = np.broadcast_to(one, quantized.codes.shape[:3])
        if name == "v":
            return _with_logarithms(by_token, form)
        scale[..., :tokens] = by_token
    elif quantized.scope == "tensor":
        scale[...] = of_scopes[..., None]
    else:
        scale[..., : of_scopes.shape[2]] = of_scopes
    by_slots = name == "k" and scope in (Scope.token, Scope.group)
    return in_slots(scale) if by_slots else scale


def _with_logarithms(scale: NDArray[np.float32], form: Form) -> NDArray[np.float32]:
    """Bring scales of V's tokens [batch, head, token] to [batch, head, block, 3, 128]."""
    shape = form.scale
    padded = np.full((*scale.shape[:2], shape[2] * shape[4]), form.empty_scale)
    padded[..., : scale.shape[2]] = scale
    blocks = in_slots(padded).reshape(*shape[:3], shape[4])
    with np.errstate(invalid="ignore"):
        return np.stack(
            [blocks, np.log2(blocks) + np.float32(LOG2_BIAS), np.float32(1) / blocks], axis=3
        )
