"""Many rows against a KV cache on the GPU: codes bit for bit, attention beside the reference."""

from itertools import pairwise

import numpy as np
import pytest
from helpers.gpu_cases import on_host

import cuattn
from cuattn.arrays.caller import Caller
from cuattn.compile.chain import Chain
from cuattn.compile.launch import Buffers
from cuattn.kv import prefill
from cuattn.kv.query import QueryOptions
from cuattn.kv.rows import MANY_ROWS, prefill_problem
from cuattn.kv.scores import NO_ARRAYS
from cuattn.operands.layout import CodeLayout
from cuattn.reference.exact import attention as exact
from cuattn.reference.kv_cache import fine_units
from cuattn.reference.kv_operands import sorted_operands

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
    names = ("k", "k_scale", "v", "v_scale", "order")
    buffers = Buffers(*prefill.STORE, *names)
    shape = (BATCH, HEADS, tokens, geometry.kv_format.head_dim)
    layouts = {name: CodeLayout.of(problem.scheme, name, shape) for name in "kv"}
    arrays = {name: cupy.zeros(x.data, x.dtype) for name, x in layouts.items()}
    arrays |= {f"{name}_scale": cupy.zeros(x.scale, "float32") for name, x in layouts.items()}
    arrays["order"] = cupy.zeros(layouts["k"].order, "uint8")
    launch = prefill._operands(geometry, problem, buffers, tokens // 128)
    addresses = (*memory.attend_addresses, *[arrays[name].data.ptr for name in names])
    Chain([launch], buffers)(addresses, cupy.cuda.get_current_stream().ptr)
    return problem.scheme, arrays


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
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
        vector = np.zeros((1, HEADS, head_dim), np.float32) if scheme.smooth_k != "none" else None
        for operand, x in zip("kv", wanted, strict=True):
            tensor = cuattn.QuantizedTensor(
                np.ascontiguousarray(part[operand]),
                np.ascontiguousarray(part[f"{operand}_scale"]),
                vector if operand == "k" else None,
                operand,
                scheme,
                (1, HEADS, n, head_dim),
                "float16",
                np.ascontiguousarray(part["order"]),
            )
            found = tensor.to_reference()
            np.testing.assert_array_equal(found.order, x.order)
            np.testing.assert_array_equal(found.codes, x.codes)
            np.testing.assert_array_equal(found.scale, x.scale)


OPTIONS = {
    "plain": {},
    "all": {"is_causal": False},
    "window": {"window_size": (300, 20), "is_causal": False},
    "softcap": {"softcap": 8.0},
    "slopes": {"alibi_slopes": np.float32([1, 2, 3, 4]) / 64},
    "sinks": {"sinks": np.float32([0, 1, 2, -np.inf])},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", FORMATS)
def test_attends_as_the_same_cache_in_host_memory(cupy, rng, tmp_path, kind, name):
    # Means of keys add in another order there, so that a cache of the same tokens has other codes.
    cache, _, _ = filled(cupy, rng, 64, (9, 691, 800), page_size=32, **FORMATS[kind])
    cache.save(tmp_path / "cache.safetensors")
    again = cuattn.KVCache.load(tmp_path / "cache.safetensors", device="cpu")
    q = rng.standard_normal((BATCH, 2 * HEADS, MANY_ROWS, 64)).astype(np.float16)
    given = OPTIONS[name]
    on_gpu = {key: cupy.asarray(x) if hasattr(x, "shape") else x for key, x in given.items()}
    o, lse = map(on_host, cache.attend(cupy.asarray(q), return_lse=True, **on_gpu))
    wanted, of_rows = again.attend(q, return_lse=True, **given)
    np.testing.assert_allclose(o.astype(float), wanted.astype(float), rtol=2e-3, atol=5e-3)
    np.testing.assert_allclose(lse, of_rows, rtol=1e-4, atol=1e-3)
    rows = [MANY_ROWS, 40, 333]
    bounds = np.cumsum([0, *rows]).astype(np.int32)
    parts = [x[:, MANY_ROWS - n :].swapaxes(0, 1) for x, n in zip(q, rows, strict=True)]
    packed = cupy.asarray(np.concatenate(parts))
    found = on_host(cache.attend(packed, cu_seqlens_q=cupy.asarray(bounds), **on_gpu))
    for b, (first, last) in enumerate(pairwise(bounds)):
        wanted = o[b, :, MANY_ROWS - rows[b] :].astype(float)
        mine = found[first:last].swapaxes(0, 1).astype(float)
        np.testing.assert_allclose(mine, wanted, rtol=2e-3, atol=5e-3)


@pytest.mark.parametrize("room", [2**28, 1])
def test_parts_and_pages_change_no_bit(cupy, rng, monkeypatch, room):
    q = cupy.asarray(rng.standard_normal((BATCH, 2 * HEADS, MANY_ROWS, 128)).astype(np.float16))
    state, found = rng.bit_generator.state, []
    for page_size in (0, 16):
        rng.bit_generator.state = state
        cache, _, _ = filled(cupy, rng, page_size=page_size)
        for _ in range(5):
            found.append(on_host(cache.attend(q)).tobytes())
        monkeypatch.setattr(prefill, "WORKSPACE", room)
        cache._memory._remembered.clear()
        found.append(on_host(cache.attend(q)).tobytes())
    assert len(set(found)) == 1


def test_can_be_captured_and_replayed_with_more_tokens(cupy, rng):
    cache, _, _ = filled(cupy, rng)
    q = cupy.asarray(rng.standard_normal((BATCH, 2 * HEADS, MANY_ROWS, 128)).astype(np.float16))
    whole = on_host(cache.attend(q))
    cache.truncate([900, 0, 100])
    short = on_host(cache.attend(q))
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        out = cupy.zeros_like(q)
        stream.begin_capture()
        cache.attend(q, out=out)
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
