"""The kernels that quantize, as the simulated GPU runs them."""

import ctypes

import numpy as np

from cuattn.reference.layout import LOG2_BIAS, in_slots, pack_pairs, transpose_v
from cuattn.reference.quantize import quantize, scope_of
from cuattn.reference.quantized import token_amax
from cuattn.reference.rounding import e4m3_bits
from cuattn.reference.scopes import spread
from cuattn.reference.smoothing import Q_BLOCK, sample, smoothing_vector
from cuattn.reference.sorting import sorted_order
from cuattn.specs.attention import Scope, Type

from . import sorted_keys
from .device import NUM_SMS
from .memory import BLOCK, STORAGE, compact, floats, memory, narrowed, widened


def source(operand, spec, head_dim):
    """Return an operand of StatsParams or QuantizeParams [batch, head, token, head_dim]."""
    batch = operand["heads"] // operand["num_heads"]
    shape = (batch, operand["num_heads"], operand["seqlen"], head_dim)
    itemsize = spec.input.nbytes
    steps = [int(operand[f"stride_{axis}"]) * itemsize for axis in ("batch", "head", "token")]
    if spec.aligned:
        starts = [operand["x"], *(step for step, n in zip(steps, shape, strict=False) if n > 1)]
        assert not any(int(start) % 16 for start in starts)
    x = memory(operand["x"], shape, (*steps, itemsize), STORAGE[spec.input])
    return widened(x, spec.input)


def stats(values, spec, grid):
    ctas = 0
    for name in ("q", "k", "v"):
        operand = values[name]
        assert spec.qk_range or name != "q" or not operand["heads"]
        if operand["heads"]:
            assert operand["chunks"] == spec.chunks(name, int(operand["seqlen"]))
            assert operand["chunk"] == spec.tokens(name, int(operand["seqlen"]))
            ctas += operand["heads"] * operand["chunks"]
            if operand["chunks"] == 1:
                moments(name, operand, spec, int(values["head_dim"]))
            else:
                shape = (operand["heads"], operand["chunks"], spec.kinds(name), spec.head_dim)
                # What the next kernel reads back: that this one has written all of it.
                floats(operand["partial"], shape)[...] = 1.0
    assert grid == (ctas,)
    stats.latest = spec


def stats_finish(values, spec, grid):
    ctas = 0
    for name in ("q", "k", "v"):
        operand = values[name]
        if operand["heads"] and operand["chunks"] > 1:
            ctas += operand["heads"]
            shape = (operand["heads"], operand["chunks"], stats.latest.kinds(name), spec.head_dim)
            assert (floats(operand["partial"], shape) == 1.0).all()
            moments(name, operand, stats.latest, int(values["head_dim"]))
    assert grid == (ctas,)


def moments(name, operand, spec, head_dim):
    x = source(operand, spec, head_dim).astype(np.float64)
    shape = (operand["heads"], head_dim)
    sampled = {"q": False, "k": spec.k_sample, "v": spec.v_sample}[name]
    how = "robust" if operand["robust"] else "mean"
    mean = smoothing_vector(sample(x) if sampled else x, how)
    floats(operand["mean"], shape)[...] = mean.reshape(shape)
    if spec.ranges(name):
        floats(operand["low"], shape)[...] = x.min(axis=2).reshape(shape)
        floats(operand["high"], shape)[...] = x.max(axis=2).reshape(shape)


def quantize_operands(values, spec, grid):
    if values["next_item"]:
        ctypes.c_uint32.from_address(int(values["next_item"])).value = 0
    order = order_of_keys(values, spec) if spec.k_scope is Scope.sorted else None
    ctas = 0
    for name in ("q", "k", "v"):
        operand = values[name]
        if not operand["heads"]:
            continue
        assert operand["tiles"] == spec.tiles(name, int(operand["seqlen"]))
        # A CTA that has sorted keys has a block of both.
        if not (name == "v" and order is not None and values["k"]["heads"]):
            ctas += operand["heads"] * operand["tiles"]
        head_dim, channels = int(values["head_dim"]), spec.head_dim
        if name == "v":
            head_dim, channels = int(values["head_dim_v"]), spec.head_dim_v
        x = source(operand, spec, head_dim)
        kind = getattr(spec, name)
        if not kind.coded:
            padded = compact(operand["out"], (*x.shape[:3], channels), STORAGE[kind])
            padded[...] = 0
            padded[..., :head_dim] = narrowed(x.astype(np.float64), kind)
            continue
        store_codes(name, operand, spec, x, None if name == "q" else order)
        if name == "q" and values["lse_shift"] and spec.k_smooth:
            group = int(values["heads_per_kv"])
            shape = (x.shape[0], x.shape[1] // group, head_dim)
            vectors = np.repeat(floats(values["k_vector"], shape), group, axis=1)
            shift = values["softmax_scale"] * np.einsum("bhnd,bhd->bhn", x, vectors, dtype=float)
            floats(values["lse_shift"], x.shape[:3])[...] = shift
    assert grid == (spec.ctas(ctas, NUM_SMS),)


def order_of_keys(values, spec):
    """Return the tokens of all places; of K and V together they are found here, and stored."""
    k, v = values["k"], values["v"]
    if not (k["heads"] or v["heads"]):
        return None
    either = k if k["heads"] else v
    shape = (either["heads"] // either["num_heads"], either["num_heads"], int(either["seqlen"]))
    if k["heads"] and v["heads"]:
        assert (k["heads"], k["tiles"], k["seqlen"]) == (v["heads"], v["tiles"], v["seqlen"])
        found = []
        for operand, smooth, rotated, of in (
            (k, spec.k_smooth, spec.rotate, "head_dim"),
            (v, spec.v_smooth, False, "head_dim_v"),
        ):
            head_dim = int(values[of])
            vector = floats(operand["vector"], (*shape[:2], head_dim)) if smooth else None
            found.append(token_amax(source(operand, spec, head_dim), vector, rotated))
        order = sorted_order(*found)
        compact(values["order"], order.shape, "|u1")[...] = order
    return sorted_keys.order_at(values["order"], *shape)


def store_codes(name, operand, spec, x, order=None):
    batch, heads, tokens, head_dim = x.shape
    scope = getattr(spec, f"{name}_scope").value
    if scope in ("channel", "tensor"):
        shape = (batch * heads, head_dim)
        for which, extreme in (("low", x.min(axis=2)), ("high", x.max(axis=2))):
            np.testing.assert_array_equal(
                floats(operand[which], shape), extreme.reshape(shape).astype(np.float32)
            )
    vector = None
    if name == "q" and spec.q_smooth:
        means = floats(operand["vector"], (batch, heads, -(-tokens // Q_BLOCK), head_dim))
        x = x.astype(np.float32) - np.repeat(means, Q_BLOCK, axis=2)[:, :, :tokens]
    elif name != "q" and getattr(spec, f"{name}_smooth"):
        vector = floats(operand["vector"], (batch, heads, head_dim)).copy()
    kind = getattr(spec, name)
    bits = spec.v_bits if name == "v" else spec.qk_bits
    blocks = {"q": Q_BLOCK, "k": spec.k_block, "v": BLOCK}
    result = quantize(
        x,
        scope=scope_of(name, scope),
        block=spec.qk_group if scope == "group" else blocks[name],
        vector=vector,
        rotated=spec.rotate and name != "v",
        to="fp8" if kind is Type.e4m3 else f"int{bits}",
        order=order,
    )
    codes = e4m3_bits(result.codes) if kind is Type.e4m3 else result.codes
    if order is not None:
        codes = sorted_keys.in_columns(codes, order)
    if name == "v":
        stored = transpose_v(codes)
    else:
        stored = np.zeros((*codes.shape[:3], spec.head_dim), codes.dtype)
        stored[..., :head_dim] = codes
    if kind is Type.int4:
        stored = pack_pairs(stored)
    compact(operand["out"], stored.shape, STORAGE[kind])[...] = stored
    if order is None:
        scale = stored_scale(name, spec, result)
    else:
        scale = sorted_keys.stored_scale(name, result.scale, order)
    floats(operand["scale"], scale.shape)[...] = scale


def stored_scale(name, spec, result):
    """Return scales as they lie in memory, with what is allowed for padding."""
    batch, heads, tokens, _ = result.codes.shape
    lead = (batch, heads)
    scope = getattr(spec, f"{name}_scope")
    if name == "v" and scope in (Scope.channel, Scope.tensor):
        scale = np.full((*lead, spec.head_dim_v), 2.0**-64 / 127, np.float32)
        by_channel = scope is Scope.channel
        scale[..., : result.codes.shape[3]] = (
            result.scale if by_channel else result.scale[..., None]
        )
        return scale
    if name == "v" and scope is Scope.block:
        return result.scale
    if name == "k" and spec.k_stored is Scope.block:
        if scope is Scope.block:
            return result.scale
        return np.repeat(result.scale[..., None], -(-tokens // spec.k_block), axis=2)
    if name == "k" and spec.k_stored is Scope.thread:
        scale = np.ones((*lead, -(-tokens // BLOCK) * 8), np.float32)
        scale[..., : result.scale.shape[2]] = result.scale
        return scale
    groups = spec.head_dim // spec.qk_group if scope is Scope.group and name != "v" else 1
    by_token = np.ones((*lead, -(-tokens // BLOCK) * BLOCK, groups), np.float32)
    if scope is Scope.group:
        by_token[:, :, :tokens, : result.scale.shape[3]] = result.scale
    else:
        one = spread(result.scale, result.scope, result.block, tokens)[..., :1]
        by_token[:, :, :tokens] = one
    if name == "q":
        return by_token[:, :, :tokens]
    in_order = in_slots(np.ascontiguousarray(by_token.swapaxes(2, 3)))
    if name == "k":
        return in_order
    one = in_order.reshape(*lead, -1, BLOCK)
    return np.stack([one, LOG2_BIAS + np.log2(one), 1 / one], axis=3)
