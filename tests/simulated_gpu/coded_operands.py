"""Operands of the attention kernels as the simulated GPU decodes them: codes, scales, means."""

from dataclasses import replace

import numpy as np

from cuattn.reference.layout import LOG2_BIAS, in_tokens, unpack_pairs, untranspose_v
from cuattn.reference.quantize import Quantized
from cuattn.reference.rounding import e4m3_values
from cuattn.reference.smoothing import Q_BLOCK
from cuattn.specs.attention import Scope, Type

from . import sorted_keys
from .memory import BLOCK, floats


def coded_q(p, spec, shape, source):
    head_dim = p["head_dim"]
    codes = decoded(source.codes("q"), spec.qk)[..., :head_dim]
    if spec.k_scope is not Scope.group:
        return Quantized(codes, floats(p["q_scale"], shape), "token", BLOCK)
    scale = floats(p["q_scale"], (*shape, spec.head_dim // spec.qk_group))
    return Quantized(codes, scale[..., : head_dim // spec.qk_group], "group", spec.qk_group)


def coded_k(p, spec, shape, source):
    batch, heads, tokens = shape
    codes = decoded(source.codes("k"), spec.qk)[..., : p["head_dim"]]
    if spec.k_scope is Scope.block:
        scale = floats(p["k_scale"], (batch, heads, -(-tokens // spec.block_kv)))
        return Quantized(codes, scale, "block", spec.block_kv)
    padded = -(-tokens // BLOCK) * BLOCK
    if spec.k_scope is Scope.sorted:
        order = sorted_keys.order_at(p["order"], *shape)
        scale = sorted_keys.scale_of_tokens("k", p["k_scale"], order, tokens)
        return Quantized(sorted_keys.in_tokens(codes, order, tokens), scale, "sorted", BLOCK)
    if spec.k_scope is Scope.thread:
        scale = floats(p["k_scale"], (batch, heads, padded // 16))
        return Quantized(codes, scale[..., : -(-tokens // 64) * 4], "thread_k", BLOCK)
    if spec.k_scope is Scope.token:
        scale = in_tokens(floats(p["k_scale"], (batch, heads, padded)))[..., :tokens]
        return Quantized(codes, scale, "token", BLOCK)
    scale = in_tokens(floats(p["k_scale"], (batch, heads, spec.head_dim // spec.qk_group, padded)))
    scale = scale.swapaxes(2, 3)[:, :, :tokens, : p["head_dim"] // spec.qk_group]
    return Quantized(codes, scale, "group", spec.qk_group)


def coded_v(p, spec, kv_shape, source):
    head_dim, tokens = p["head_dim_v"], p["seqlen_kv"]
    blocks = -(-tokens // BLOCK)
    shape = (*kv_shape[:2], blocks)
    in_order = spec.v_scope is Scope.sorted
    count = blocks * BLOCK if in_order else tokens
    v = decoded(untranspose_v(source.v_codes(blocks), count, spec.channels_v), spec.pv)
    v = v[..., :head_dim]
    mean = floats(p["v_mean"], (*kv_shape[:2], head_dim)) if p["v_mean"] else None
    if in_order:
        order = sorted_keys.order_at(p["order"], *kv_shape)
        scale = sorted_keys.scale_of_tokens("v", p["v_scale"], order, tokens)
        v = sorted_keys.in_tokens(v, order, tokens)
        return Quantized(v, scale, "sorted", BLOCK, mean)
    if spec.v_scope is Scope.token:
        scale = floats(p["v_scale"], (*shape, 3, BLOCK))
        np.testing.assert_array_equal(scale[:, :, :, 1], LOG2_BIAS + np.log2(scale[:, :, :, 0]))
        np.testing.assert_array_equal(scale[:, :, :, 2], 1 / scale[:, :, :, 0])
        scale = in_tokens(scale[:, :, :, 0].reshape(*shape[:2], -1))[..., :tokens]
    elif spec.v_scope is Scope.block:
        scale = floats(p["v_scale"], shape)
    else:
        scale = floats(p["v_scale"], (*shape[:2], spec.channels_v))[..., :head_dim]
    return Quantized(v, scale, spec.v_scope.value, BLOCK, mean, spec.v_rotated)


def deltas(p, spec, q_shape):
    """Return what is added to the exponents of blocks of rows, keys in their order."""
    batch, heads, rows = q_shape
    tokens = p["seqlen_kv"]
    shape = (batch, heads, -(-rows // Q_BLOCK), -(-tokens // BLOCK) * BLOCK)
    found = in_tokens(floats(p["delta"], shape))[..., :tokens].astype(np.float64)
    # Kernels expect it once for each key.
    by_logarithm = spec.pv is Type.int8 and spec.v_scope is Scope.token
    return found if by_logarithm else found - LOG2_BIAS


def decoded(codes, kind):
    if kind is Type.int4:
        return unpack_pairs(codes)
    return e4m3_values(codes) if kind is Type.e4m3 else codes


def one_scale(x):
    """Take the scale that all of a head has from where it is repeated."""
    assert (x.scale == x.scale[..., :1]).all()
    return replace(x, scale=x.scale[..., 0], scope="tensor")
