"""The attention kernels of both families, as the simulated GPU runs them."""

import ctypes
import math

import numpy as np

from cuattn.reference.emulate import emulate
from cuattn.reference.quantize import Operands, Quantized
from cuattn.scheme import Scheme
from cuattn.specs.attention import Scope, Type

from .coded_operands import coded_k, coded_q, coded_v, deltas, one_scale
from .device import NUM_SMS
from .memory import BLOCK, STORAGE, delivered, floats, memory, widened
from .score_rules import options_of
from .tensor_maps import mapped

PRODUCTS = {Type.int8: "int8", Type.int4: "int8", Type.e4m3: "fp8"}


def attention_mma(values, spec, grid):
    p = numbers(values)
    group, first = p["heads_per_kv"], p["first_batch"]
    ctas = p["row_blocks"] * group * spec.v_parts
    assert grid[:2] == (ctas, p["num_q_heads"] // group)
    batch = first + grid[2]
    attend(p, spec, batch, ByAddress(p, spec, batch), first)


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
        shape = self.q_shape if name == "q" else stored_keys(self.spec, self.kv_shape)
        return rows(self.p, name, shape, self.spec.head_dim, self.spec.qk)

    def values(self, name, kind):
        shape = self.q_shape if name == "q" else self.kv_shape
        return rows(self.p, name, shape, self.p[head_dim_of(name)], kind)

    def v_codes(self, blocks):
        # The kernel takes the codes of a head to be packed, whatever the strides of its blocks.
        shape = (*self.kv_shape[:2], blocks)
        channels = self.spec.channels_v
        assert blocks == 1 or self.p["v_stride_row"] == channels * BLOCK
        v = rows(self.p, "v", shape, channels * BLOCK, self.spec.pv)
        return v.reshape(*shape, channels, BLOCK)


class ByMap:
    """The same as the Hopper family reads them: through tensor maps, in boxes."""

    def __init__(self, p, spec, batch, maps):
        self.p, self.spec, self.maps = p, spec, maps
        self.q_shape, self.kv_shape = shapes(p, batch)

    def codes(self, name):
        return self._rows(name, self.spec.qk, self.spec.head_dim)

    def values(self, name, kind):
        return self._rows(name, kind, self.p[head_dim_of(name)])

    def v_codes(self, blocks):
        found, (batch, heads) = self.maps["v"], self.kv_shape[:2]
        parts = self.spec.head_dim_v // 32
        assert found.x.shape == (batch * heads * blocks * parts, 4, 4, 2, BLOCK)
        assert found.box == (BLOCK, 2, 4, 4, parts)
        assert found.swizzle == self.spec.block_kv == 128
        # Rows of a tile are channels in the order in which the kernel stores what it makes of them.
        v = found.x.view(STORAGE[self.spec.pv]).swapaxes(1, 2)
        return v.reshape(batch, heads, blocks, self.spec.head_dim_v, BLOCK)

    def _rows(self, name, kind, columns):
        found = self.maps[name]
        keys = stored_keys(self.spec, self.kv_shape)
        assert found.x.shape == (*(self.q_shape if name == "q" else keys), columns)
        padded = getattr(self.spec, head_dim_of(name))
        pitch = 64 if padded * kind.nbytes <= 64 else 128
        tokens = 64 if name == "q" else self.spec.block_kv
        assert found.box == (pitch // kind.nbytes, tokens, 1, 1)
        assert found.swizzle == pitch
        # A map tells 16-bit types apart, but no codes.
        assert found.x.dtype == ("|u1" if kind.coded else STORAGE[kind])
        return found.x.view(STORAGE[kind])


def head_dim_of(name):
    return "head_dim_v" if name == "v" else "head_dim"


def numbers(values):
    return {name: values[name].tolist() for name in values.dtype.names}


def shapes(p, batch):
    kv_heads = p["num_q_heads"] // p["heads_per_kv"]
    return (batch, p["num_q_heads"], p["seqlen_q"]), (batch, kv_heads, p["seqlen_kv"])


def stored_keys(spec, kv_shape):
    """Return the shape of rows of keys: sorted tokens lie anywhere in whole blocks."""
    batch, heads, tokens = kv_shape
    return batch, heads, -(-tokens // BLOCK) * BLOCK if spec.k_scope is Scope.sorted else tokens


def attend(p, spec, batch, source, first=0):
    """Do what the attention kernels of either family do, with operands from a source.

    Only batches from the first on are written.
    """
    assert p["row_blocks"] == -(-p["seqlen_q"] // spec.rows)
    q_shape, kv_shape = shapes(p, batch)
    half = Type.fp16 if spec.qk.coded else spec.qk
    if spec.qk.coded:
        q, k = coded_q(p, spec, q_shape, source), coded_k(p, spec, kv_shape, source)
        if spec.qk is Type.e4m3:
            q, k = (one_scale(x) for x in (q, k))
    else:
        q, k = (widened(source.values(name, half), half).astype(np.float64) for name in "qk")
    if spec.pv.coded:
        v = coded_v(p, spec, kv_shape, source)
    else:
        v = widened(source.values("v", half), half).astype(np.float64)
    scopes = {
        f"{name}_scope": x.scope.split("_")[0] if isinstance(x, Quantized) else "token"
        for name, x in zip("qkv", (q, k, v), strict=True)
    }
    p_range = spec.p_range.value
    if p_range == "twin":
        assert p["inverse_twin"] == 1 / p["twin"]
    scheme = Scheme(
        "simulated",
        qk=PRODUCTS.get(spec.qk, "fp16"),
        pv=PRODUCTS.get(spec.pv, "fp16"),
        **scopes,
        p_range=p_range,
        p_block=spec.block_kv,
        qk_group=getattr(spec, "qk_group", 0) or 64,
        p_terms=spec.p_terms,
        p_split=round(math.log2(p["twin"])),
        smooth_k="none",
    )
    shift = floats(p["lse_shift"], q_shape).astype(np.float64) if p["lse_shift"] else None
    to_log2 = p["scale_log2"]
    o, lse = emulate(
        Operands(
            q,
            k,
            v,
            "bfloat16" if half is Type.bf16 else "float16",
            deltas(p, spec, q_shape) / to_log2 if spec.q_smooth else None,
        ),
        scheme,
        scale=to_log2 / math.log2(math.e),
        **options_of(p, spec, batch),
        lse_shift=shift,
    )
    itemsize = spec.out.nbytes
    steps = [p[f"o_stride_{axis}"] * itemsize for axis in ("batch", "head", "row")]
    strided = zip(steps, q_shape, strict=True)
    assert not any(x % (2 * itemsize) for x in (p["o"], *(step for step, n in strided if n > 1)))
    to = memory(p["o"], o.shape, (*steps, itemsize), STORAGE[spec.out])
    to[first:] = delivered(o[first:], spec.out)
    if p["lse"]:
        floats(p["lse"], lse.shape)[first:] = lse[first:]


def rows(p, name, shape, columns, kind):
    """Return an operand of the products, of which copies move 16 bytes at a time."""
    steps = [p[f"{name}_stride_{axis}"] for axis in ("batch", "head", "row")]
    starts = [p[name], *(step for step, n in zip(steps, shape, strict=True) if n > 1)]
    assert not any(start % 16 for start in starts)
    assert 0 <= steps[2] < 2**32 // 64
    columns, itemsize = (columns // 2, 1) if kind is Type.int4 else (columns, kind.nbytes)
    return memory(p[name], (*shape, columns), (*steps, itemsize), STORAGE[kind])
