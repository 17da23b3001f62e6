"""Keys and queries that turn by their positions on a GPU: bit for bit as in host memory."""

import numpy as np
import pytest
from helpers.gpu_cases import on_host

from cuattn import KVCache, Rope, UnsupportedError
from cuattn.reference.rope import rope

pytestmark = pytest.mark.gpu

BATCH, HEADS, CAPACITY = 2, 2, 200

KINDS = {
    "8": {"bits": 8},
    "8-bare": {"bits": 8, "rotate": False, "page_size": 16},
    "4": {"k_bits": 4, "v_bits": 4, "group": 32, "rotate": False},
    "4-rotated": {"k_bits": 4, "v_bits": 8},
    "nested": {"nested": True, "k_bits": 4, "v_bits": 4, "first": 16, "recent": 32},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def tables(rope_dim, positions=CAPACITY, dtype=np.float32):
    angles = np.outer(np.arange(positions), 100.0 ** -(np.arange(0, rope_dim, 2) / rope_dim))
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def on_gpu(cupy, cos, sin, interleaved=False):
    return Rope(cupy.asarray(cos), cupy.asarray(sin), interleaved)


def drawn(rng, heads, count, head_dim, dtype=np.float16):
    return (rng.standard_normal((BATCH, heads, count, head_dim)) + 0.5).astype(dtype)


def cache_of(kind, head_dim, device=None, **others):
    return KVCache(BATCH, HEADS, head_dim, CAPACITY, device=device, **KINDS[kind] | others)


def in_host_memory(x):
    return x if isinstance(x, np.ndarray) else on_host(x)


def contents(cache):
    parts = ("codes", "scale", "zero", "vector")
    return [getattr(operand, part) for operand in cache.codes() for part in parts]


def assert_same(found, wanted):
    np.testing.assert_array_equal(found.lengths, wanted.lengths)
    for x, y in zip(contents(found), contents(wanted), strict=True):
        if y is not None:
            np.testing.assert_array_equal(in_host_memory(x), in_host_memory(y))


@every_kind
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("head_dim", "rope_dim", "dtype"),
    [(64, 64, "float16"), (128, 32, "float16"), (256, 24, "float32"), (80, 66, "float32")],
)
def test_codes_are_those_of_host_memory(cupy, rng, kind, interleaved, head_dim, rope_dim, dtype):
    cos, sin = tables(rope_dim)
    host = cache_of(kind, head_dim, "cpu", smooth_k=False)
    found = cache_of(kind, head_dim, smooth_k=False)
    for count, counts in ((1, None), (37, None), (20, [3, 20]), (1, [1, 0]), (1, None)):
        k, v = (drawn(rng, HEADS, count, head_dim, dtype) for _ in "kv")
        host.append(k, v, counts=counts, rope=Rope(cos, sin, interleaved))
        turns = on_gpu(cupy, cos, sin, interleaved)
        found.append(cupy.asarray(k), cupy.asarray(v), counts=counts, rope=turns)
    assert_same(found, host)
    q = drawn(rng, 4 * HEADS, 3, head_dim, dtype)
    o, lse = found.attend(cupy.asarray(q), rope=turns, return_lse=True)
    wanted, of_lse = host.attend(q, rope=Rope(cos, sin, interleaved), return_lse=True)
    np.testing.assert_allclose(on_host(lse), of_lse, rtol=0, atol=1e-3)
    np.testing.assert_allclose(on_host(o), wanted, rtol=0, atol=5e-3)


@every_kind
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_is_the_same_as_turning_before(cupy, rng, kind, rows):
    # In float32, where the kernels that turn and those that do not add up means in the same order.
    cos, sin = tables(48)
    turns = on_gpu(cupy, cos, sin)
    found, wanted = cache_of(kind, 64), cache_of(kind, 64)
    for count in (3, 40, 1):
        k, v = (drawn(rng, HEADS, count, 64, np.float32) for _ in "kv")
        at = found.lengths[:, None] + np.arange(count)
        found.append(cupy.asarray(k), cupy.asarray(v), rope=turns)
        wanted.append(cupy.asarray(rope(k, cos, sin, at)), cupy.asarray(v))
    assert_same(found, wanted)
    q = drawn(rng, 4 * HEADS, rows, 64, np.float32)
    at = found.lengths[:, None] - rows + np.arange(rows)
    o = found.attend(cupy.asarray(q), rope=turns)
    before = wanted.attend(cupy.asarray(rope(q, cos, sin, at)))
    np.testing.assert_array_equal(on_host(o), on_host(before))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_positions_and_tables_of_any_kind(cupy, rng, dtype):
    cos, sin = tables(64, 500, np.float16)
    k, v = (drawn(rng, HEADS, 30, 64) for _ in "kv")
    at = rng.integers(0, 500, (BATCH, 30)).astype(dtype)
    host = cache_of("8", 64, "cpu", smooth_k=False)
    host.append(k, v, rope=Rope(cos, sin), positions=at)
    spread = cupy.zeros((BATCH, HEADS, 30, 67), np.float16)[..., 2:-1]
    spread[...] = cupy.asarray(k)
    for positions in (at, cupy.asarray(at), cupy.asarray(at.T.copy()).T):
        found = cache_of("8", 64, smooth_k=False)
        found.append(spread, cupy.asarray(v), rope=on_gpu(cupy, cos, sin), positions=positions)
        assert_same(found, host)
    q = drawn(rng, 4 * HEADS, 2, 64)
    o = found.attend(
        cupy.asarray(q), rope=on_gpu(cupy, cos, sin), positions=cupy.asarray(at[:, :2])
    )
    wanted = host.attend(q, rope=Rope(cos, sin), positions=at[:, :2])
    np.testing.assert_allclose(on_host(o), wanted, rtol=0, atol=5e-3)


def test_a_position_that_tables_lack_is_nan(cupy, rng):
    k = cupy.asarray(drawn(rng, HEADS, 3, 64))
    cache = cache_of("8", 64)
    at = cupy.asarray(np.array([[0, 1, 2], [9, -1, 10]], np.int32))
    cache.append(k, k, rope=on_gpu(cupy, *tables(64, 10)), positions=at)
    lost = np.isnan(on_host(cache.gather("float32")[0])).any(axis=(1, 3))
    assert lost.tolist() == [[False] * 3, [False, True, True]]


def test_tokens_keep_positions_behind_evicted_ones(cupy, rng):
    cos, sin = tables(64)
    options = {"page_size": 16, "window": 20, "smooth_k": False}
    host, found = cache_of("8", 64, "cpu", **options), cache_of("8", 64, **options)
    for _ in range(12):
        k, v = (drawn(rng, HEADS, 7, 64) for _ in "kv")
        host.append(k, v, rope=Rope(cos, sin))
        found.append(cupy.asarray(k), cupy.asarray(v), rope=on_gpu(cupy, cos, sin))
    assert_same(found, host)
    o = found.attend(cupy.asarray(k[:, :, -1:]), rope=on_gpu(cupy, cos, sin))
    wanted = host.attend(k[:, :, -1:], rope=Rope(cos, sin))
    np.testing.assert_allclose(on_host(o), wanted, rtol=0, atol=5e-3)


@every_kind
def test_a_graph_goes_on_turning(cupy, rng, kind):
    turns = on_gpu(cupy, *tables(64))
    k, v, q = (cupy.asarray(drawn(rng, heads, 1, 64)) for heads in (HEADS, HEADS, 4 * HEADS))
    out = cupy.empty_like(q)
    captured, eager = cache_of(kind, 64), cache_of(kind, 64)
    for cache in (captured, eager):
        cache.append(k, v, rope=turns)
        cache.attend(q, rope=turns, out=out)
    captured.reserve(CAPACITY)
    stream = cupy.cuda.Stream(non_blocking=True)
    pool = cupy.cuda.MemoryPool()
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        captured.append(k, v, rope=turns)
        captured.attend(q, rope=turns, out=out)
        graph = stream.end_capture()
    for _ in range(20):
        graph.launch(stream)
        stream.synchronize()
        eager.append(k, v, rope=turns)
        np.testing.assert_array_equal(on_host(out), on_host(eager.attend(q, rope=turns)))
    assert_same(captured, eager)


def test_a_graph_that_would_count_evicted_tokens_is_refused(cupy, rng):
    turns = on_gpu(cupy, *tables(64))
    k = cupy.asarray(drawn(rng, HEADS, 40, 64))
    cache = cache_of("8", 64, page_size=16, window=20)
    cache.append(k, k, rope=turns)
    cache.append(k, k, rope=turns)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        with pytest.raises(UnsupportedError, match="give positions"):
            cache.append(k[:, :, :1], k[:, :, :1], rope=turns)
        stream.end_capture()
    assert cache.lengths.max() < 80
