"""Many rows against a KV cache on the GPU: codes bit for bit, attention beside the reference."""

from itertools import pairwise

import numpy as np
import pytest
from helpers.gpu_cases import on_host

import cuattn
from cuattn.arrays.caller import Caller
from cuattn.arrays.device import current_device
from cuattn.compile.chain import Chain
from cuattn.compile.launch import Buffers
from cuattn.kv import prefill
from cuattn.kv.prefill_queries import codes_of_queries
from cuattn.kv.query import QueryOptions
from cuattn.kv.rope import RopeSizes
from cuattn.kv.rows import MANY_ROWS, Packed, in_codes, prefill_problem
from cuattn.kv.scores import NO_ARRAYS
from cuattn.operands.layout import CodeLayout
from cuattn.reference.exact import attention as exact
from cuattn.reference.kv_cache import fine_units
from cuattn.reference.kv_operands import sorted_operands
from cuattn.reference.quantized import quantize
from cuattn.reference.rope import rope
from cuattn.reference.smoothing import lse_shift

pytestmark = pytest.mark.gpu

BATCH, HEADS = 3, 2
FORMATS = {
    "8": {},
    "8 as it is": {"rotate": False, "smooth_k": False},
    "nested": {"bits": 4},
    "4, groups and zero points": {"bits": 4, "nested": False, "group": 32, "v_zero": True},
    "k4": {"k_bits": 4, "nested": False},
}
LENGTHS = (1500, 0, 777)


def filled(cupy, rng, head_dim=128, pieces=(1500,), dtype=np.float16, **options):
    """Return a cache that came in pieces, and what has been appended."""
    capacity = sum(pieces)
    shape = (BATCH, HEADS, capacity, head_dim)
    k = (rng.standard_normal(shape) + 2 * rng.standard_normal(head_dim)).astype(dtype)
    v = rng.standard_normal(shape).astype(dtype)
    cache = cuattn.KVCache(BATCH, HEADS, head_dim, capacity, **options)
    at = 0
    for n in pieces:
        here = slice(at, at + n)
        counts = np.clip(np.array(LENGTHS) - at, 0, n).tolist()
        cache.append(cupy.asarray(k[:, :, here]), cupy.asarray(v[:, :, here]), counts=counts)
        at += n
    return cache, k, v


def codes_of(cupy, cache, q, tokens):
    """Return what the kernel makes of a cache, as tensors of the reference."""
    memory = cache._memory
    geometry, smoothed = memory.geometry, memory.k_offset is not None
    options = QueryOptions(None, True, False, "HND")
    signature = memory.look(Caller(q, None), q, "q").signature
    problem = prefill_problem(geometry, signature, options, NO_ARRAYS, None, smoothed, tokens)
    problem = in_codes(problem, geometry.kv_format, queries=False)
    names = ("k", "k_scale", "v", "v_scale", "order")
    buffers = Buffers(*prefill.STORE, *names)
    shape = (BATCH, HEADS, tokens, geometry.kv_format.padded)
    layouts = {name: CodeLayout.of(problem.scheme, name, shape) for name in "kv"}
    arrays = {name: cupy.zeros(x.data, x.dtype) for name, x in layouts.items()}
    arrays |= {f"{name}_scale": cupy.zeros(x.scale, "float32") for name, x in layouts.items()}
    arrays["order"] = cupy.zeros(layouts["k"].order, "uint8")
    launch = prefill._operands(geometry, problem, buffers, tokens // 128)
    addresses = (*memory.attend_addresses, *[arrays[name].data.ptr for name in names])
    Chain([launch], buffers)(addresses, cupy.cuda.get_current_stream().ptr)
    return problem.scheme, arrays


@pytest.mark.parametrize("head_dim", [64, 80, 96, 112, 128, 176, 256])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("pieces", [(1500,), (5, 700, 795)], ids=["at once", "after few"])
def test_codes_are_those_of_the_reference(cupy, rng, name, head_dim, pieces):
    cache, _, _ = filled(cupy, rng, head_dim, pieces, page_size=16, **FORMATS[name])
    q = cupy.zeros((BATCH, 2 * HEADS, MANY_ROWS, head_dim), np.float16)
    scheme, arrays = codes_of(cupy, cache, q, 1536)
    k, v = cache.codes()
    for b in (0, 2):
        n = LENGTHS[b]
        fine = None
        if cache.format.nested:
            coarse = int(on_host(cache._memory.coarse)[b])
            fine = np.repeat(fine_units(n, coarse, cache._memory.geometry.first_units), 16)
        bits = {"k_bits": cache.format.k_bits, "v_bits": cache.format.v_bits}
        wanted = sorted_operands(k.of_sequence(b), v.of_sequence(b), n, **bits, is_fine=fine)
        blocks = -(-n // 128)
        part = {
            name: on_host(x)[b : b + 1, :, :blocks] for name, x in arrays.items() if name != "k"
        }
        part["k"] = on_host(arrays["k"])[b : b + 1, :, : 128 * blocks]
        channels = cache.format.padded
        vector = np.zeros((1, HEADS, channels), np.float32) if scheme.smooth_k != "none" else None
        for operand, x in zip("kv", wanted, strict=True):
            tensor = cuattn.QuantizedTensor(
                np.ascontiguousarray(part[operand]),
                np.ascontiguousarray(part[f"{operand}_scale"]),
                vector if operand == "k" else None,
                operand,
                scheme,
                (1, HEADS, n, channels),
                "float16",
                np.ascontiguousarray(part["order"]),
            )
            found = tensor.to_reference()
            np.testing.assert_array_equal(found.order, x.order)
            np.testing.assert_array_equal(found.codes, x.codes)
            np.testing.assert_array_equal(found.scale, x.scale)


class Named(Buffers):
    """Buffers whose parts of the workspace are given, too, in the order in which they are taken."""

    def __init__(self, names, parts):
        super().__init__(*names, *parts)
        self._parts = iter(parts)

    def take(self, nbytes):
        return self[next(self._parts)]


def tables(rope_dim, positions=1500):
    """Return tables whose angles grow slowly: cosines of all signs."""
    angles = np.outer(np.arange(positions), 100.0 ** -(np.arange(0, rope_dim, 2) / rope_dim))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


QUERIES = [(80, False, True), (112, True, True), (128, True, True), (256, True, False)]
QUERIES += [(96, True, False), (176, False, False)]


@pytest.mark.parametrize("is_packed", [False, True], ids=["each", "end to end"])
@pytest.mark.parametrize(
    ("dtype", "interleaved"), [("float16", False), ("float32", True)], ids=["halves", "neighbours"]
)
@pytest.mark.parametrize(("head_dim", "turns", "rotate"), QUERIES)
def test_codes_of_queries_are_those_of_the_reference(
    cupy, rng, head_dim, turns, rotate, dtype, interleaved, is_packed
):
    cache, _, _ = filled(cupy, rng, head_dim, rotate=rotate)
    memory, kv_format = cache._memory, cache.format
    rows, counts = 37, [37, 0, 20]
    q = rng.standard_normal((BATCH, 2 * HEADS, rows, head_dim)).astype(dtype)
    bounds = np.cumsum([0, *counts]).astype(np.int32)
    parts = [x[:, rows - n :] for x, n in zip(q, counts, strict=True)]
    given = cupy.asarray(np.concatenate(parts, axis=1).swapaxes(0, 1) if is_packed else q)
    cos, sin = tables(64)
    there = [cupy.asarray(x) for x in (cos, sin, bounds)]
    look = Caller(given, None)
    packed = None
    if is_packed:
        packed = Packed(memory.look(look, there[2], "cu_seqlens_q").signature)
    signature = memory.look(look, given, "q").signature
    options = QueryOptions(0.1, True, True, "HND")
    problem = prefill_problem(
        memory.geometry, signature, options, NO_ARRAYS, packed, memory.k_offset is not None, 1536
    )
    made = in_codes(problem, kv_format, queries=True)
    shape = (*made.q.shape[:3],)
    arrays = [cupy.full((*shape, kv_format.padded), 99, "int8")]
    arrays += [cupy.full(shape, cupy.nan, "float32") for _ in range(2)]
    names = (*prefill.STORE, *prefill.ROPE, "q", "cu_seqlens_q", "ends")
    buffers = Named(names, ("codes", "scale", "shift"))
    sizes = RopeSizes(32, 1500, interleaved) if turns else None
    device = current_device()
    launch = codes_of_queries(memory.geometry, device, problem, made, sizes, buffers)
    tables_at = [x.data.ptr for x in there[:2]] if turns else [0, 0]
    addresses = (*memory.attend_addresses, *tables_at, 0, given.data.ptr, there[2].data.ptr, 0)
    Chain([launch], buffers)(
        (*addresses, *[x.data.ptr for x in arrays]), cupy.cuda.get_current_stream().ptr
    )
    codes, scale, shift = map(on_host, arrays)
    vector = on_host(memory.k_offset)
    for b, n in enumerate(counts if is_packed else [rows] * BATCH):
        x = q[b : b + 1, :, rows - n :].astype(np.float32)
        if turns:
            places = np.maximum(LENGTHS[b] - n + np.arange(n), 0)
            x = rope(x, cos, sin, places[None], interleaved=interleaved)
        padded = np.pad(x, [(0, 0)] * 3 + [(0, kv_format.padded - head_dim)])
        wanted = quantize(padded, scope="token", rotated=rotate)
        of = (0, slice(None), slice(bounds[b], bounds[b + 1])) if is_packed else (b,)
        np.testing.assert_array_equal(codes[of], wanted.codes[0])
        np.testing.assert_array_equal(scale[of], wanted.scale[0])
        lacking = lse_shift(x, vector[b : b + 1], 0.1)[0]
        np.testing.assert_allclose(shift[of], lacking, rtol=1e-4, atol=1e-4)


OPTIONS = {
    "plain": {},
    "all": {"is_causal": False},
    "window": {"window_size": (300, 20), "is_causal": False},
    "softcap": {"softcap": 8.0},
    "slopes": {"alibi_slopes": np.float32([1, 2, 3, 4]) / 64},
    "sinks": {"sinks": np.float32([0, 1, 2, -np.inf])},
}


def to_gpu(cupy, options):
    """Return options with their arrays on the GPU."""
    return {key: cupy.asarray(x) if hasattr(x, "shape") else x for key, x in options.items()}


@pytest.fixture
def both_filled(cupy, rng, tmp_path):
    """Return a function that makes a cache on the GPU and the same in host memory.

    Means of keys add in another order there, so that a cache of the same tokens has other codes.
    """

    def made(head_dim, **options):
        cache, _, _ = filled(cupy, rng, head_dim, (9, 691, 800), page_size=32, **options)
        cache.save(tmp_path / "cache.safetensors")
        return cache, cuattn.KVCache.load(tmp_path / "cache.safetensors", device="cpu")

    return made


def assert_alike(found, wanted):
    """Hold a call that returned its lse, too, to that of a cache in host memory.

    Where a row sees two or three keys the next code of P, a 255th, is more than other rounding.
    """
    (o, lse), (of_host, lse_of_host) = map(on_host, found), wanted
    off = np.abs(o.astype(float) - of_host) - 2e-3 * np.abs(of_host.astype(float))
    assert np.mean(off > 5e-3) < 1e-5
    assert off.max() < 8 / 255
    np.testing.assert_allclose(lse, lse_of_host, rtol=1e-4, atol=1e-3)


def masks(rng):
    """Return masks of the last tokens: of some, of about as many as there are, and of more."""
    heads = rng.standard_normal((2 * HEADS, MANY_ROWS, 777)).astype(np.float16)
    heads[rng.random(heads.shape) < 0.3] = -np.inf
    long = rng.standard_normal((BATCH, 1, MANY_ROWS, 1001)).astype(np.float32)
    long[rng.random(long.shape) < 0.3] = np.finfo(np.float32).min
    return {
        "bool": rng.random((BATCH, 1, MANY_ROWS, 900)) < 0.7,
        "bool of tokens": rng.random(1499) < 0.7,
        "float16": heads,
        "float32": long,
        "float32, even": np.ascontiguousarray(long[..., 1:]),
        "of few": np.tril(np.ones((100, 100), bool))[-1:],
    }


@pytest.mark.parametrize(
    "name", ["bool", "bool of tokens", "float16", "float32", "float32, even", "of few"]
)
@pytest.mark.parametrize(("head_dim", "is_causal"), [(64, False), (128, True)])
def test_masks_are_of_the_last_tokens(cupy, rng, both_filled, head_dim, name, is_causal):
    cache, again = both_filled(head_dim)
    q = rng.standard_normal((BATCH, 2 * HEADS, MANY_ROWS, head_dim)).astype(np.float16)
    mask = masks(rng)[name]
    given = {"is_causal": is_causal, "return_lse": True}
    found = cache.attend(cupy.asarray(q), attn_mask=cupy.asarray(mask), **given)
    assert_alike(found, again.attend(q, attn_mask=mask, **given))


@pytest.mark.parametrize(
    ("head_dim", "turns", "name"),
    [
        (16, False, "plain"),
        (80, True, "window"),
        (112, False, "softcap"),
        (128, True, "slopes"),
        (176, True, "plain"),
    ],
)
def test_heads_may_be_padded_and_queries_turn(cupy, rng, both_filled, head_dim, turns, name):
    cache, again = both_filled(head_dim)
    q = rng.standard_normal((BATCH, 2 * HEADS, MANY_ROWS, head_dim)).astype(np.float16)
    given, on_gpu = dict(OPTIONS[name]), to_gpu(cupy, OPTIONS[name])
    if turns:
        cos, sin = tables(head_dim // 2)
        given["rope"] = cuattn.Rope(cos, sin)
        on_gpu["rope"] = cuattn.Rope(cupy.asarray(cos), cupy.asarray(sin))
    found = cache.attend(cupy.asarray(q), return_lse=True, **on_gpu)
    assert_alike(found, again.attend(q, return_lse=True, **given))
    rows = [MANY_ROWS, 40, 333]
    bounds = np.cumsum([0, *rows]).astype(np.int32)
    parts = [x[:, MANY_ROWS - n :].swapaxes(0, 1) for x, n in zip(q, rows, strict=True)]
    packed = cupy.asarray(np.concatenate(parts))
    ends = on_host(cache.attend(packed, cu_seqlens_q=cupy.asarray(bounds), **on_gpu))
    o = on_host(found[0])
    for b, (first, last) in enumerate(pairwise(bounds)):
        np.testing.assert_allclose(
            ends[first:last].swapaxes(0, 1).astype(float),
            o[b, :, MANY_ROWS - rows[b] :].astype(float),
            rtol=2e-3,
            atol=5e-3,
        )


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", FORMATS)
def test_attends_as_the_same_cache_in_host_memory(cupy, rng, both_filled, kind, name):
    cache, again = both_filled(64, **FORMATS[kind])
    q = rng.standard_normal((BATCH, 2 * HEADS, MANY_ROWS, 64)).astype(np.float16)
    given = OPTIONS[name]
    on_gpu = to_gpu(cupy, given)
    result = cache.attend(cupy.asarray(q), return_lse=True, **on_gpu)
    assert_alike(result, again.attend(q, return_lse=True, **given))
    o = on_host(result[0])
    rows = [MANY_ROWS, 40, 333]
    bounds = np.cumsum([0, *rows]).astype(np.int32)
    parts = [x[:, MANY_ROWS - n :].swapaxes(0, 1) for x, n in zip(q, rows, strict=True)]
    packed = cupy.asarray(np.concatenate(parts))
    found = on_host(cache.attend(packed, cu_seqlens_q=cupy.asarray(bounds), **on_gpu))
    for b, (first, last) in enumerate(pairwise(bounds)):
        wanted = o[b, :, MANY_ROWS - rows[b] :].astype(float)
        mine = found[first:last].swapaxes(0, 1).astype(float)
        np.testing.assert_allclose(mine, wanted, rtol=2e-3, atol=5e-3)


@pytest.mark.parametrize(
    ("head_dim", "room"), [(128, 2**28), (128, 1), (112, 1)], ids=["whole", "parts", "padded"]
)
def test_parts_and_pages_change_no_bit(cupy, rng, monkeypatch, head_dim, room):
    shape = (BATCH, 2 * HEADS, MANY_ROWS, head_dim)
    q = cupy.asarray(rng.standard_normal(shape).astype(np.float16))
    given = {"rope": cuattn.Rope(*map(cupy.asarray, tables(64)))} if head_dim == 112 else {}
    given["attn_mask"] = cupy.asarray(rng.random((BATCH, 2 * HEADS, MANY_ROWS, 500)) < 0.8)
    state, found = rng.bit_generator.state, []
    for page_size in (0, 16):
        rng.bit_generator.state = state
        cache, _, _ = filled(cupy, rng, head_dim, page_size=page_size)
        for _ in range(5):
            found.append(on_host(cache.attend(q, **given)).tobytes())
        monkeypatch.setattr(prefill, "WORKSPACE", room)
        cache._memory._remembered.clear()
        found.append(on_host(cache.attend(q, **given)).tobytes())
    assert len(set(found)) == 1


@pytest.mark.parametrize("name", ["plain", "mask", "bias", "rope"])
def test_can_be_captured_and_replayed_with_more_tokens(cupy, rng, name):
    cache, _, _ = filled(cupy, rng)
    options = {
        "plain": {},
        "mask": {"attn_mask": cupy.asarray(rng.random((MANY_ROWS, 300)) < 0.8)},
        "bias": {"attn_mask": cupy.asarray(rng.standard_normal((1, 701), np.float32))},
        "rope": {"rope": cuattn.Rope(*map(cupy.asarray, tables(64)))},
    }[name]
    q = cupy.asarray(rng.standard_normal((BATCH, 2 * HEADS, MANY_ROWS, 128)).astype(np.float16))
    whole = on_host(cache.attend(q, **options))
    cache.truncate([900, 0, 100])
    short = on_host(cache.attend(q, **options))
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        out = cupy.zeros_like(q)
        stream.begin_capture()
        cache.attend(q, out=out, **options)
        graph = stream.end_capture()
        graph.launch(stream)
    stream.synchronize()
    np.testing.assert_array_equal(on_host(out), short)
    cache._memory.lengths[...] = cupy.asarray(LENGTHS, np.int32)  # the tokens are still there
    cupy.cuda.Device().synchronize()
    graph.launch(stream)
    stream.synchronize()
    np.testing.assert_array_equal(on_host(out), whole)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_errors_are_those_of_attention(cupy, rng, dtype):
    cache, k, v = filled(cupy, rng, dtype=dtype)
    q = rng.standard_normal((BATCH, 2 * HEADS, MANY_ROWS, 128)).astype(dtype)
    o = on_host(cache.attend(cupy.asarray(q))).astype(float)
    wanted = exact(q[:1], k[:1], v[:1], is_causal=True)[0]
    ours = cuattn.attention(*(cupy.asarray(x[:1]) for x in (q, k, v)), is_causal=True)
    size = np.abs(wanted).sum()
    errors = [np.abs(x - wanted).sum() / size for x in (o[:1], on_host(ours).astype(float))]
    assert errors[0] < 1.5 * errors[1]
