"""The attention kernels of both families, as the simulated GPU runs them."""

import ctypes
import math
from dataclasses import replace

import numpy as np

from cuattn.reference.emulate import emulate
from cuattn.reference.layout import LOG2_BIAS, in_tokens, untranspose_v
from cuattn.reference.quantize import Operands, Quantized
from cuattn.reference.rounding import e4m3_values
from cuattn.scheme import Scheme
from cuattn.spec import Scope, Type

from .device import NUM_SMS
from .memory import BLOCK, STORAGE, floats, memory, narrowed, widened
from .tensor_maps import mapped

PRODUCTS = {Type.int8: "int8", Type.e4m3: "fp8"}


def attention_mma(values, spec, grid):
    p = numbers(values)
    group, batch = p["heads_per_kv"], grid[2]
    assert grid == (p["row_blocks"] * group, p["num_q_heads"] // group, batch)
    attend(p, spec, batch, ByAddress(p, spec, batch))


def attention_wgmma(values, spec, grid):
    p = numbers(values["attention"])
    maps = {name: mapped(bytes(values[f"{name}_map"])) for name in "qkv"}
    batch = maps["q"].x.shape[0]
    assert values["items"] == p["row_blocks"] * p["num_q_heads"] * batch
    assert grid == (min(values["items"], NUM_SMS),)
    # CTAs that have more than one item count them in memory, from 0 on.
    counted = int(values["next_item"])
    assert (counted != 0) == (values["items"] > NUM_SMS)
    assert not counted or ctypes.c_uint32.from_address(counted).value == 0
    assert values["heads_at_a_time"] % p["heads_per_kv"] == 0
    assert values["heads_at_a_time"] == p["heads_per_kv"] or spec.is_causal
    attend(p, spec, batch, ByMap(p, spec, batch, maps))


class ByAddress:
    """The operands of the products as the family of mma.sync reads them."""

    def __init__(self, p, spec, batch):
        self.p, self.spec = p, spec
        self.q_shape, self.kv_shape = shapes(p, batch)

    def codes(self, name):
        shape = self.q_shape if name == "q" else self.kv_shape
        return rows(self.p, name, shape, self.spec.head_dim, self.spec.qk)

    def values(self, name, kind):
        shape = self.q_shape if name == "q" else self.kv_shape
        return rows(self.p, name, shape, self.p["head_dim"], kind)

    def v_codes(self, blocks):
        # The kernel takes the codes of a head to be packed, whatever the strides of its blocks.
        shape = (*self.kv_shape[:2], blocks)
        assert blocks == 1 or self.p["v_stride_row"] == self.spec.head_dim * BLOCK
        v = rows(self.p, "v", shape, self.spec.head_dim * BLOCK, self.spec.pv)
        return v.reshape(*shape, self.spec.head_dim, BLOCK)


class ByMap:
    """The same as the Hopper family reads them: through tensor maps, in boxes."""

    def __init__(self, p, spec, batch, maps):
        self.p, self.spec, self.maps = p, spec, maps
        self.q_shape, self.kv_shape = shapes(p, batch)

    def codes(self, name):
        return self._rows(name, self.spec.qk, self.spec.head_dim)

    def values(self, name, kind):
        return self._rows(name, kind, self.p["head_dim"])

    def v_codes(self, blocks):
        found, (batch, heads) = self.maps["v"], self.kv_shape[:2]
        parts = self.spec.head_dim // 32
        assert found.x.shape == (batch * heads * blocks * parts, 4, 4, 2, BLOCK)
        assert found.box == (BLOCK, 2, 4, 4, parts)
        assert found.swizzle == self.spec.block_kv == 128
        # Rows of a tile are channels in the order in which the kernel stores what it makes of them.
        v = found.x.view(STORAGE[self.spec.pv]).swapaxes(1, 2)
        return v.reshape(batch, heads, blocks, self.spec.head_dim, BLOCK)

    def _rows(self, name, kind, columns):
        found = self.maps[name]
        assert found.x.shape == (*(self.q_shape if name == "q" else self.kv_shape), columns)
        pitch = 64 if self.spec.head_dim * kind.nbytes <= 64 else 128
        tokens = 64 if name == "q" else self.spec.block_kv
        assert found.box == (pitch // kind.nbytes, tokens, 1, 1)
        assert found.swizzle == pitch
        # A map tells 16-bit types apart, but no codes.
        assert found.x.dtype == ("|u1" if kind.coded else STORAGE[kind])
        return found.x.view(STORAGE[kind])


def numbers(values):
    return {name: values[name].item() for name in values.dtype.names}


def shapes(p, batch):
    kv_heads = p["num_q_heads"] // p["heads_per_kv"]
    return (batch, p["num_q_heads"], p["seqlen_q"]), (batch, kv_heads, p["seqlen_kv"])


def attend(p, spec, batch, source):
    """Do what the attention kernels of either family do, with operands from a source."""
    head_dim = p["head_dim"]
    assert p["row_blocks"] == -(-p["seqlen_q"] // spec.rows)
    q_shape, kv_shape = shapes(p, batch)
    blocks = -(-p["seqlen_kv"] // BLOCK)
    half = Type.fp16 if spec.qk.coded else spec.qk
    if spec.qk.coded:
        q = decoded(source.codes("q"), spec.qk)
        q_scale = floats(p["q_scale"], q_shape)
        q = Quantized(q[..., :head_dim], q_scale, "token", spec.block_kv)
        k = decoded(source.codes("k"), spec.qk)
        scales = blocks * BLOCK
        if spec.k_scope is Scope.block:
            scales = -(-p["seqlen_kv"] // spec.block_kv)
        k_scale = floats(p["k_scale"], (*kv_shape[:2], scales))
        if spec.k_scope is Scope.token:
            k_scale = in_tokens(k_scale)[..., : p["seqlen_kv"]]
        k = Quantized(k[..., :head_dim], k_scale, spec.k_scope.value, spec.block_kv)
        if spec.qk is Type.e4m3:
            q, k = (one_scale(x) for x in (q, k))
    else:
        q, k = (widened(source.values(name, half), half).astype(np.float64) for name in "qk")
    if spec.pv.coded:
        shape = (*kv_shape[:2], blocks)
        v = untranspose_v(source.v_codes(blocks), p["seqlen_kv"], head_dim)
        v = decoded(v, spec.pv)
        mean = floats(p["v_mean"], (*kv_shape[:2], head_dim)) if p["v_mean"] else None
        if spec.v_scope is Scope.token:
            scale = floats(p["v_scale"], (*shape, 3, BLOCK))
            np.testing.assert_array_equal(scale[:, :, :, 1], LOG2_BIAS + np.log2(scale[:, :, :, 0]))
            np.testing.assert_array_equal(scale[:, :, :, 2], 1 / scale[:, :, :, 0])
            scale = in_tokens(scale[:, :, :, 0].reshape(*shape[:2], -1))[..., : p["seqlen_kv"]]
        else:
            scale = floats(p["v_scale"], (*shape[:2], spec.head_dim))[..., :head_dim]
        v = Quantized(v, scale, spec.v_scope.value, 128, mean)
    else:
        v = widened(source.values("v", half), half).astype(np.float64)
    scheme = Scheme(
        "simulated",
        qk=PRODUCTS.get(spec.qk, "fp16"),
        pv=PRODUCTS.get(spec.pv, "fp16"),
        q_scope="tensor" if spec.qk is Type.e4m3 else "token",
        k_scope="tensor" if spec.qk is Type.e4m3 else spec.k_scope.value,
        v_scope=spec.v_scope.value if spec.pv.coded else "token",
        p_range=spec.p_range.value,
        p_block=spec.block_kv,
        smooth_k="none",
    )
    shift = floats(p["lse_shift"], q_shape).astype(np.float64) if p["lse_shift"] else None
    o, lse = emulate(
        Operands(q, k, v, "bfloat16" if half is Type.bf16 else "float16"),
        scheme,
        scale=p["scale_log2"] / math.log2(math.e),
        is_causal=spec.is_causal,
        lse_shift=shift,
    )
    itemsize = spec.out.nbytes
    steps = [p[f"o_stride_{axis}"] * itemsize for axis in ("batch", "head", "row")]
    strided = zip(steps, q_shape, strict=True)
    assert not any(x % (2 * itemsize) for x in (p["o"], *(step for step, n in strided if n > 1)))
    memory(p["o"], o.shape, (*steps, itemsize), STORAGE[spec.out])[...] = narrowed(o, spec.out)
    if p["lse"]:
        floats(p["lse"], lse.shape)[...] = lse


def decoded(codes, kind):
    return e4m3_values(codes) if kind is Type.e4m3 else codes


def one_scale(x):
    """Take the scale that all of a head has from where it is repeated."""
    assert (x.scale == x.scale[..., :1]).all()
    return replace(x, scale=x.scale[..., 0], scope="tensor")


def rows(p, name, shape, columns, kind):
    """Return an operand of the products, of which copies move 16 bytes at a time."""
    steps = [p[f"{name}_stride_{axis}"] for axis in ("batch", "head", "row")]
    starts = [p[name], *(step for step, n in zip(steps, shape, strict=True) if n > 1)]
    assert not any(start % 16 for start in starts)
    assert 0 <= steps[2] < 2**32 // 64
    return memory(p[name], (*shape, columns), (*steps, kind.nbytes), STORAGE[kind])
