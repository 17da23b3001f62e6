"""Codes and scales between the order of memory and that of tokens and channels, both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays.view import cupy_module
from ..common.sizes import ceil_div
from ..reference.layout import (
    LOG2_BIAS,
    in_slots,
    in_tokens,
    pack_pairs,
    transpose_v,
    unpack_pairs,
)
from ..reference.quantize import Quantized, block_of, scope_of
from ..reference.rounding import e4m3_bits, e4m3_values
from ..reference.scopes import THREADS, scope_of_tokens, spread
from ..reference.sorting import (
    COLUMN_OF_PLACE,
    PLACE_OF_COLUMN,
    SCOPE_OF_PLACE,
    natural_order,
    scopes_of_order,
)
from ..scheme import Scheme
from ..specs.attention import Scope, Type
from ..specs.coding import Name, stored_scope
from ..specs.quantize import TOKEN_PAD
from .layout import CodeLayout

__all__ = ["factors", "natural_codes", "natural_scale", "scale_of_scopes", "stored"]

Shape = tuple[int, ...]


def natural_codes(
    codes: Any, code_layout: CodeLayout, name: Name, shape: Shape, order: Any = None
) -> Any:
    """Return codes [B, H, N, D] as int8, or as float32 values of e4m3; of any library.

    Parameters
    ----------
    order : ndarray of uint8 [B, H, blocks, 128], optional
        Of sorted tokens, if it is not that of columns.
    """
    batch, heads, tokens, head_dim = shape
    if code_layout.code is Type.int4:
        codes = unpack_pairs(codes)
    if name == "v":
        blocks, channels, block = codes.shape[2:]
        codes = in_tokens(codes).swapaxes(3, 4).reshape(batch, heads, blocks * block, channels)
    if order is not None:
        columns = _of_library(order, COLUMN_OF_PLACE)[order.argsort(axis=-1)]
        codes = _rearranged(codes, columns)
    codes = codes[:, :, :tokens, :head_dim]
    return e4m3_values(codes) if code_layout.code is Type.e4m3 else codes


def natural_scale(scale: Any, scheme: Scheme, name: Name, shape: Shape, order: Any = None) -> Any:
    """Return scales as they are stored, but without padding; of any library.

    Those of tokens, sorted or not, are [B, H, N], of groups [B, H, N, G], of threads
    [B, H, scopes], of blocks [B, H, blocks] and of channels [B, H, D].

    Parameters
    ----------
    order : ndarray of uint8 [B, H, blocks, 128], optional
        As in `natural_codes`.
    """
    tokens, head_dim = shape[2:]
    stored = stored_scope(scheme, name)
    if stored is Scope.sorted:
        of_place = _of_library(scale, SCOPE_OF_PLACE)
        places = PLACE_OF_COLUMN if order is None else order.argsort(axis=-1)
        scopes = of_place[_of_library(scale, places)]
        of_block = scale if name == "k" else scale[:, :, :, 0]
        padded = of_block.shape[2] * TOKEN_PAD
        return _picked(of_block, scopes).reshape(*shape[:2], padded)[:, :, :tokens]
    if stored is Scope.block:
        return scale
    if stored is Scope.thread:
        return scale[..., : ceil_div(tokens, THREADS["thread_k"].tile) * THREADS["thread_k"].scopes]
    if stored is Scope.channel:
        return scale[..., :head_dim]
    if name == "v":
        batch, heads, blocks, _, block = scale.shape
        scale = scale[:, :, :, 0].reshape(batch, heads, blocks * block)
    if name != "q":
        scale = in_tokens(scale)
    if stored is Scope.group:
        by_token = scale if name == "q" else scale.swapaxes(2, 3)
        return by_token[:, :, :tokens, : head_dim // scheme.qk_group]
    return scale[:, :, :tokens]


def factors(scale: Any, scheme: Scheme, name: Name, tokens: int) -> Any:
    """Bring scales of `natural_scale` to a shape that broadcasts against codes [B, H, N, D]."""
    stored = stored_scope(scheme, name)
    if stored is Scope.channel:
        return scale[:, :, None, :]
    if stored is Scope.group:
        return scale.repeat(scheme.qk_group, axis=3)
    if stored is Scope.thread:
        # Of 64 keys every fourth pair.
        fours = scale.reshape(*scale.shape[:2], scale.shape[2] // 4, 1, 4, 1)
        pairs = fours.repeat(8, axis=3).repeat(2, axis=5)
        scale = pairs.reshape(*scale.shape[:2], 16 * scale.shape[2])[:, :, :tokens]
    if stored is Scope.block:
        block = TOKEN_PAD if name == "v" else scheme.p_block
        scale = scale.repeat(block, axis=2)[:, :, :tokens]
    return scale[..., None]


def scale_of_scopes(
    scale: NDArray[np.float32], scheme: Scheme, name: Name, tokens: int, empty: np.float32
) -> NDArray[np.float32]:
    """Return one scale for each scope, as `cuattn.reference` has it, of those of `natural_scale`.

    Parameters
    ----------
    empty : float32
        Scale of scopes that no token is in.
    """
    scope = scope_of(name, getattr(scheme, f"{name}_scope"))
    if scope == "tensor":  # all are equal, if there are any
        whole: NDArray[np.float32] = scale.max(axis=-1, initial=empty)
        return whole
    if stored_scope(scheme, name) is not Scope.token or scope == "token":
        return scale
    scopes, count = scope_of_tokens(tokens, scope, block_of(scheme, name))
    of_scope = np.full((*scale.shape[:2], count), empty)
    of_scope[..., scopes] = scale
    return of_scope


def stored(
    quantized: Quantized, name: Name, scheme: Scheme, code_layout: CodeLayout
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return codes and scales as an operand has them in memory."""
    return _codes(quantized, name, code_layout), _scale(quantized, name, scheme, code_layout)


def _of_library(like: Any, x: Any) -> Any:
    """Return a constant of NumPy as an array of the library of another one."""
    if isinstance(like, np.ndarray) or not isinstance(x, np.ndarray):
        return x
    return cupy_module().asarray(x)


def _picked(x: Any, at: Any) -> Any:
    """Return elements of the last axis of `x` [B, H, blocks, n], of each block those `at` it."""
    batch, heads, blocks, count = x.shape
    first = (np.arange(batch * heads * blocks) * count).reshape(batch, heads, blocks, 1)
    return x.reshape(-1)[at + _of_library(x, first)]


def _rearranged(rows: Any, tokens: Any) -> Any:
    """Return rows [B, H, Np, D] with those at `tokens` [B, H, blocks, 128] of each block."""
    batch, heads, padded, width = rows.shape
    first = np.arange(0, batch * heads * padded, TOKEN_PAD).reshape(*tokens.shape[:3], 1)
    at = (tokens + _of_library(rows, first)).reshape(-1)
    return rows.reshape(-1, width)[at].reshape(rows.shape)


def _codes(quantized: Quantized, name: Name, code_layout: CodeLayout) -> NDArray[Any]:
    natural: Any = quantized.codes
    if code_layout.order:
        batch, heads, blocks, block = code_layout.order
        padded = np.zeros((batch, heads, blocks * block, natural.shape[3]), natural.dtype)
        padded[:, :, : natural.shape[2]] = natural
        natural = padded
        if quantized.order is not None:
            natural = _rearranged(padded, quantized.order[..., PLACE_OF_COLUMN])
    if code_layout.code is Type.e4m3:
        natural = e4m3_bits(natural)
    if name == "v":
        codes: NDArray[Any] = transpose_v(natural)
    else:
        channels = code_layout.data[3] * (2 if code_layout.code is Type.int4 else 1)
        codes = np.zeros((*code_layout.data[:3], channels), natural.dtype)
        codes[..., : natural.shape[3]] = natural
    return pack_pairs(codes) if code_layout.code is Type.int4 else codes


def _scale(
    quantized: Quantized, name: Name, scheme: Scheme, code_layout: CodeLayout
) -> NDArray[np.float32]:
    scale = np.full(code_layout.scale, code_layout.empty_scale)
    if code_layout.order:
        return _sorted_scale(quantized, name, code_layout)
    scope, tokens = stored_scope(scheme, name), quantized.codes.shape[2]
    of_scopes = quantized.scale
    if scope is Scope.group:
        by_token = of_scopes if name == "q" else of_scopes.swapaxes(2, 3)
        scale[:, :, : by_token.shape[2], : by_token.shape[3]] = by_token
    elif scope is Scope.token:
        one = spread(of_scopes, quantized.scope, quantized.block, tokens)[..., 0]
        by_token = np.broadcast_to(one, quantized.codes.shape[:3])
        if name == "v":
            return _with_logarithms(by_token, code_layout)
        scale[..., :tokens] = by_token
    elif quantized.scope == "tensor":
        scale[...] = of_scopes[..., None]
    else:
        scale[..., : of_scopes.shape[2]] = of_scopes
    by_slots = name == "k" and scope in (Scope.token, Scope.group)
    return in_slots(scale) if by_slots else scale


def _sorted_scale(quantized: Quantized, name: Name, code_layout: CodeLayout) -> NDArray[np.float32]:
    batch, heads, tokens = quantized.scale.shape
    order = quantized.order
    if order is None:
        order = natural_order(batch, heads, tokens)
    scopes = scopes_of_order(order, tokens)
    count = code_layout.scale[2] * code_layout.scale[-1]
    scale = np.full((batch, heads, count), code_layout.empty_scale)
    np.put_along_axis(scale, scopes, quantized.scale, axis=-1)
    if name == "k":
        return scale.reshape(code_layout.scale)
    blocks = scale.reshape(batch, heads, code_layout.scale[2], code_layout.scale[-1])
    with np.errstate(invalid="ignore"):
        return np.stack([blocks, np.log2(blocks), np.float32(1) / blocks], axis=3)


def _with_logarithms(scale: NDArray[np.float32], code_layout: CodeLayout) -> NDArray[np.float32]:
    """Bring scales of V's tokens [batch, head, token] to [batch, head, block, 3, 128]."""
    shape = code_layout.scale
    padded = np.full((*scale.shape[:2], shape[2] * shape[4]), code_layout.empty_scale)
    padded[..., : scale.shape[2]] = scale
    blocks = in_slots(padded).reshape(*shape[:3], shape[4])
    with np.errstate(invalid="ignore"):
        return np.stack(
            [blocks, np.log2(blocks) + np.float32(LOG2_BIAS), np.float32(1) / blocks], axis=3
        )
