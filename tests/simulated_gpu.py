"""A GPU in host memory: kernels that do with NumPy what their parameter structs ask for.

What is simulated is the contract between launch code and kernels: addresses, strides, sizes, grids
and the order of launches. The arithmetic is the reference's.
"""

import ctypes
import math
import struct
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from cuattn import launch, params, tensor_map
from cuattn.device import TARGETS, Device
from cuattn.dlpack import CUDA, View
from cuattn.reference.emulate import emulate
from cuattn.reference.layout import in_slots, in_tokens, transpose_v, untranspose_v
from cuattn.reference.quantize import Operands, Quantized, quantize
from cuattn.reference.rounding import e4m3_bits, e4m3_values, round_bfloat16
from cuattn.reference.smoothing import SAMPLE
from cuattn.scheme import Scheme
from cuattn.spec import Scope, Type

NUM_SMS = 132


def gpu_of(arch):
    facts = TARGETS[arch]
    smem = facts.max_smem_per_cta, facts.max_smem_per_sm
    return Device(0, "NVIDIA Simulated", arch.removesuffix("a"), arch, NUM_SMS, *smem)


GPU = gpu_of("90a")

STORAGE = {Type.int8: "|i1", Type.e4m3: "|u1"}
STORAGE |= {Type.fp16: "<f2", Type.bf16: "<u2", Type.fp32: "<f4"}
PRODUCTS = {Type.int8: "int8", Type.e4m3: "fp8"}
BLOCK = 128


def memset(address, value, nbytes, stream):
    ctypes.memset(address, value, nbytes)


class SimulatedGPU:
    """Takes the place of CuPy and the GPU in the modules of cuattn that a call goes through.

    Arrays on it are NumPy's. Memory that kernels get is full of garbage.
    """

    def __init__(self, monkeypatch, device=GPU):
        self.launched = []
        self.specs = []
        self.device = device
        monkeypatch.setattr(launch, "load", self._load)
        monkeypatch.setattr("cupy.cuda.function.CPointer", lambda address: address)
        monkeypatch.setattr("cupy.cuda.alloc", self._alloc)
        monkeypatch.setattr("cupy.cuda.get_current_stream", lambda: SimpleNamespace(ptr=0))
        monkeypatch.setattr("cupy.cuda.runtime.memsetAsync", memset)
        for name in ("pipeline", "quantize"):
            monkeypatch.setattr(sys.modules[f"cuattn.{name}"], "current_device", lambda: device)
        fake = SimpleNamespace(
            ndarray=garbage,
            empty_like=lambda x, order: garbage(x.shape, x.dtype),
            ascontiguousarray=lambda x: np.array(x, order="C"),
            isfinite=np.isfinite,
            cuda=SimpleNamespace(
                runtime=SimpleNamespace(getDevice=lambda: 0), Device=lambda ordinal: Nothing()
            ),
        )
        for name in ("attention", "quantize", "views", "quantized"):
            module = sys.modules[f"cuattn.{name}"]
            for attribute, substitute in (
                ("Caller", SimulatedCaller),
                ("cupy_module", lambda: fake),
                ("device_of", lambda x, name: (CUDA, 0)),
                ("as_cupy", lambda view: view.owner),
                ("view_cupy", view_of),
            ):
                if hasattr(module, attribute):
                    monkeypatch.setattr(module, attribute, substitute)
        tensor = sys.modules["cuattn.quantized"].QuantizedTensor
        monkeypatch.setattr(tensor, "device", (CUDA, 0))
        monkeypatch.setattr(tensor, "addresses", property(addresses_of))
        monkeypatch.setattr(tensor_map, "_driver", SimulatedDriver)
        tensor_map._encoded.cache_clear()
        sys.modules["cuattn.prepared"].prepare.cache_clear()
        sys.modules["cuattn.quantize"]._prepare.cache_clear()

    def _alloc(self, nbytes):
        memory = garbage((nbytes,), np.uint8)
        return SimpleNamespace(ptr=memory.ctypes.data, owner=memory)

    def _load(self, spec, device):
        dtype = params.record(spec.params, spec.params_file)

        def kernel(grid, block, arguments, smem):
            assert all(ctas > 0 for ctas in grid)
            assert block == (spec.num_threads,)
            assert smem == spec.smem_bytes <= device.max_smem_per_cta
            values = np.frombuffer(ctypes.string_at(arguments[0], dtype.itemsize), dtype)[0]
            self.launched.append(spec.entry)
            self.specs.append(spec)
            KERNELS[spec.function](values, spec, grid)

        return kernel


# Type, rank, swizzle, address, shape, strides and box of a simulated tensor map.
MAP = struct.Struct("<3Bx4xQ5Q4Q5H")


class SimulatedDriver:
    """Takes the place of libcuda: its tensor maps are readable, by `mapped`."""

    calls = 0

    @classmethod
    def cuTensorMapEncodeTiled(  # noqa: N802
        cls, out, dtype, rank, address, shape, strides, box, steps, *modes
    ):
        cls.calls += 1
        interleave, swizzle, promotion, fill = modes
        assert out % 128 == 0
        assert (interleave, promotion, fill) == (0, 2, 0)
        assert list(steps)[:rank] == [1] * rank
        if address % 16 or not all(0 < s < 2**40 and s % 16 == 0 for s in strides[: rank - 1]):
            return 1
        values = (*shape, *strides[:4], *box)
        content = MAP.pack(dtype, rank, swizzle, address, *values)
        ctypes.memmove(out, content.ljust(128, b"\0"), 128)
        return 0

    @staticmethod
    def cuGetErrorName(error, name):  # noqa: N802
        ctypes.cast(name, ctypes.POINTER(ctypes.c_char_p))[0] = b"CUDA_ERROR_SIMULATED"


def mapped(content):
    """Return the array that a simulated tensor map is of, outermost axis first, and the rest."""
    dtype, rank, swizzle, address, *values = MAP.unpack_from(content)
    kind = {0: "|u1", 6: "<f2", 9: "<u2"}[dtype]
    shape, strides, box = values[:rank], values[5 : 4 + rank], values[9 : 9 + rank]
    strides = (*strides[::-1], np.dtype(kind).itemsize)
    x = memory(address, shape[::-1], strides, kind)
    return SimpleNamespace(x=x, box=tuple(box), swizzle=(0, 32, 64, 128)[swizzle])


class Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


class SimulatedCaller(Nothing):
    def __init__(self, first, stream):
        assert stream is None

    def look(self, x, name):
        return view_of(x)

    def empty(self, shape, dtype):
        array = garbage(shape, np.uint16 if dtype == "bfloat16" else dtype)
        return array, view_of(array)

    def deliver(self, array):
        return array


def garbage(shape, dtype):
    """Memory as it may come from a pool: all bits set, which is NaN in every type."""
    array = np.empty(shape, dtype)
    array.view(np.uint8).fill(0xFF) if array.size else None
    # Counted from 256, where an allocator would begin; 16 suffices for what is checked.
    assert array.ctypes.data % 16 == 0
    return array


def view_of(x):
    """Look at a NumPy array as if it were on the GPU; uint16 stands for bfloat16."""
    strides = tuple(step // x.itemsize for step in x.strides)
    dtype = "bfloat16" if x.dtype == np.uint16 else x.dtype.name
    return View(x.ctypes.data, x.shape, strides, dtype, (CUDA, 0), not x.flags.writeable, x)


def addresses_of(tensor):
    return tuple(
        0 if x is None else x.ctypes.data for x in (tensor.codes, tensor.scale, tensor.vector)
    )


def memory(address, shape, strides, kind):
    """Return a writable array over raw memory; strides count bytes."""
    assert address or not math.prod(shape), "a null pointer would be followed"
    interface = {
        "version": 3,
        "shape": tuple(map(int, shape)),
        "strides": tuple(map(int, strides)),
        "typestr": kind,
        "data": (int(address), False),
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def compact(address, shape, kind):
    strides = np.cumprod([1, *shape[:0:-1]])[::-1] * np.dtype(kind).itemsize
    return memory(address, shape, strides, kind)


def floats(address, shape):
    return compact(address, shape, "<f4")


def widened(x, kind):
    if kind is Type.bf16:
        return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return x


def narrowed(x, kind):
    """Round float64 to a type as it is stored."""
    if kind is Type.bf16:
        return (round_bfloat16(x).astype(np.float32).view(np.uint32) >> np.uint32(16)).astype("<u2")
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(STORAGE[kind])


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
            assert operand["chunk"] == spec.chunk
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
    n = x.shape[2]
    sampled = {"q": False, "k": spec.k_sample, "v": spec.v_sample}[name]
    sample = [i * n // SAMPLE for i in range(SAMPLE)] if sampled and n > SAMPLE else slice(None)
    mean = x[:, :, sample].mean(axis=2).astype(np.float32)
    floats(operand["mean"], shape)[...] = np.nan_to_num(mean, nan=0, posinf=0, neginf=0).reshape(
        shape
    )
    if spec.ranges(name):
        floats(operand["low"], shape)[...] = x.min(axis=2).reshape(shape)
        floats(operand["high"], shape)[...] = x.max(axis=2).reshape(shape)


def quantize_operands(values, spec, grid):
    head_dim = int(values["head_dim"])
    ctas = 0
    for name in ("q", "k", "v"):
        operand = values[name]
        if not operand["heads"]:
            continue
        assert operand["tiles"] == spec.tiles(name, int(operand["seqlen"]))
        ctas += operand["heads"] * operand["tiles"]
        x = source(operand, spec, head_dim)
        kind = getattr(spec, name)
        if not kind.coded:
            padded = compact(operand["out"], (*x.shape[:3], spec.head_dim), STORAGE[kind])
            padded[...] = 0
            padded[..., :head_dim] = narrowed(x.astype(np.float64), kind)
            continue
        vector = None
        if (name == "k" and spec.k_smooth) or (name == "v" and spec.v_smooth):
            vector = floats(operand["vector"], (*x.shape[:2], head_dim)).copy()
        store_codes(name, operand, values, spec, x, vector)
        if name == "q" and values["lse_shift"] and spec.k_smooth:
            group = int(values["heads_per_kv"])
            shape = (x.shape[0], x.shape[1] // group, head_dim)
            vectors = np.repeat(floats(operand["vector"], shape), group, axis=1)
            shift = values["softmax_scale"] * np.einsum("bhnd,bhd->bhn", x, vectors, dtype=float)
            floats(values["lse_shift"], x.shape[:3])[...] = shift
    assert grid == (ctas,)


def store_codes(name, operand, values, spec, x, vector):
    scope = {"q": Scope.token, "k": spec.k_scope, "v": spec.v_scope}[name].value
    if spec.v_per_tensor if name == "v" else spec.qk_per_tensor:
        scope = "tensor"
    kind = getattr(spec, name)
    to = "fp8" if kind is Type.e4m3 else "int8"
    result = quantize(x, scope=scope, block=spec.k_block, vector=vector, to=to)
    codes = e4m3_bits(result.codes) if kind is Type.e4m3 else result.codes
    batch, heads, tokens, head_dim = x.shape
    if name == "v":
        stored = transpose_v(codes)
        compact(operand["out"], stored.shape, STORAGE[kind])[...] = stored
    else:
        padded = compact(operand["out"], (*x.shape[:3], spec.head_dim), STORAGE[kind])
        padded[...] = 0
        padded[..., :head_dim] = codes
    if scope in ("channel", "tensor"):
        shape = (batch * heads, head_dim)
        for which, extreme in (("low", x.min(axis=2)), ("high", x.max(axis=2))):
            np.testing.assert_array_equal(
                floats(operand[which], shape), extreme.reshape(shape).astype(np.float32)
            )
    if name != "v" and scope == "tensor":
        scales = tokens if name == "q" else -(-tokens // spec.k_block)
        floats(operand["scale"], (batch, heads, scales))[...] = result.scale[..., None]
    elif name == "v" and scope != "token":
        scale = floats(operand["scale"], (batch, heads, spec.head_dim))
        scale[...] = 2.0**-100 / 127
        scale[..., :head_dim] = result.scale if scope == "channel" else result.scale[..., None]
    elif name != "q" and scope == "token":
        blocks = -(-x.shape[2] // BLOCK)
        padded = np.ones((batch, heads, blocks * BLOCK), np.float32)
        padded[..., : x.shape[2]] = result.scale
        if name == "v":
            one = in_slots(padded).reshape(batch, heads, blocks, BLOCK)
            padded = np.stack([one, np.log2(one), 1 / one], axis=3)
        else:
            padded = in_slots(padded)
        floats(operand["scale"], padded.shape)[...] = padded
    else:
        floats(operand["scale"], result.scale.shape)[...] = result.scale


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
        assert found.x.shape == (batch * heads, blocks, self.spec.head_dim, BLOCK)
        assert found.box == (BLOCK, self.spec.head_dim, 1, 1)
        assert found.swizzle == self.spec.block_kv == 128
        v = found.x.view(STORAGE[self.spec.pv])
        return v.reshape(batch, heads, *v.shape[1:])

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
            np.testing.assert_array_equal(scale[:, :, :, 1], np.log2(scale[:, :, :, 0]))
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


KERNELS = {
    "stats": stats,
    "stats_finish": stats_finish,
    "quantize_operands": quantize_operands,
    "attention_mma": attention_mma,
    "attention_wgmma": attention_wgmma,
}
