"""`KVCache` on a simulated GPU: what its launches read and write, and what the host keeps of it."""

import numpy as np
import pytest
from kv_cases import FORMATS, options, tokens

from cuattn import KVCache, Rope
from cuattn.errors import ArgumentError, UnsupportedError
from cuattn.kv.contents import read_units

pytest.importorskip("cupy")

BATCH, HEADS, CAPACITY = 3, 2, 80


def cache_of(kv_format=FORMATS["8"], device=None, **others):
    given = options(kv_format) | {"page_size": 16} | others
    return KVCache(BATCH, HEADS, kv_format.head_dim, CAPACITY, device=device, **given)


def assert_same(cache, expected):
    """The same lengths and bytes, wherever they are, and the same offsets."""
    np.testing.assert_array_equal(cache.lengths, expected.lengths)
    np.testing.assert_array_equal(cache.device_lengths, expected.lengths)
    for b, length in enumerate(expected.lengths.tolist()):
        units = -(-length // 16)
        read = (read_units(x._memory, b, 0, units) for x in (cache, expected))
        np.testing.assert_array_equal(*read)
    if expected._memory.k_offset is not None:
        np.testing.assert_array_equal(cache._memory.k_offset, expected._memory.k_offset)


@pytest.fixture(params=FORMATS)
def kv_format(request):
    return FORMATS[request.param]


@pytest.mark.parametrize("others", [{}, {"page_size": 0}, {"smooth_k": False}])
def test_is_the_cache_in_host_memory(gpu, rng, kv_format, others):
    k, v = tokens(rng, BATCH, HEADS, 60, kv_format.head_dim)
    on_gpu, on_host = cache_of(kv_format, **others), cache_of(kv_format, "cpu", **others)
    pieces = ((0, 20, None), (20, 21, None), (21, 60, [39, 0, 7]))
    for begin, end, counts in pieces:
        for cache in (on_gpu, on_host):
            cache.append(k[:, :, begin:end], v[:, :, begin:end], counts=counts)
        assert_same(on_gpu, on_host)
    q = rng.standard_normal((BATCH, 3 * HEADS, 2, kv_format.head_dim)).astype(np.float16)
    results = (cache.attend(q, return_lse=True) for cache in (on_gpu, on_host))
    for x, y in zip(*results, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)
    for x, y in zip(on_gpu.gather(), on_host.gather(), strict=True):
        np.testing.assert_array_equal(x, y)
    assert on_gpu.nbytes == on_host.nbytes
    begun = gpu.launched.count("offsets")
    # Sequences without tokens, or with few, might begin with any of them.
    assert begun == (0 if others.get("smooth_k") is False else 3)


def test_arrays_that_kernels_cannot_use_are_copied(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, 20, 64)
    on_gpu, on_host = cache_of(), cache_of(device="cpu")
    on_host.append(k, v)
    spread = np.zeros((*k.shape, 2), k.dtype)
    spread[..., 1] = k
    on_gpu.append(spread[..., 1], v.swapaxes(1, 2).copy().swapaxes(1, 2))
    assert_same(on_gpu, on_host)
    q = spread[:, :, :1, :, 1]
    out = np.zeros((BATCH, HEADS, 1, 64, 2), np.float16)[..., 0]
    assert on_gpu.attend(q, out=out) is out
    np.testing.assert_array_equal(out, on_gpu.attend(q.copy()))
    assert out.any()


def test_a_layout_with_tokens_first(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, 20, 64)
    on_gpu, on_host = cache_of(), cache_of(device="cpu")
    on_host.append(k, v)
    turned = (np.ascontiguousarray(x.swapaxes(1, 2)) for x in (k, v))
    on_gpu.append(*turned, layout="NHD")
    assert_same(on_gpu, on_host)
    q = np.ascontiguousarray(k[:, :, :3].swapaxes(1, 2))
    o = on_gpu.attend(q, layout="NHD")
    np.testing.assert_array_equal(o.swapaxes(1, 2), on_gpu.attend(k[:, :, :3]))


def test_counts_on_the_gpu_are_checked_there(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, 20, 64)
    on_gpu, on_host = cache_of(), cache_of(device="cpu")
    on_gpu.reserve(32)
    for counts in ([20, 0, 3], [12, 20, 1]):
        on_gpu.append(k, v, counts=np.array(counts, np.int64))
        on_host.append(k, v, counts=counts)
    assert_same(on_gpu, on_host)
    on_gpu.append(k, v, counts=np.array([1, 1, 1], np.int32))
    on_gpu.append(k, v, counts=[0, 1, 0])
    with pytest.raises(ArgumentError, match="an append that the GPU has refused"):
        _ = on_gpu.lengths
    on_host.append(k, v, counts=[0, 1, 0])
    assert_same(on_gpu, on_host)
    # Now that the lengths are known pages are given again.
    for cache in (on_gpu, on_host):
        cache.append(k, v)
    assert_same(on_gpu, on_host)


def test_a_captured_append_leaves_the_host_without_lengths(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, 4, 64)
    cache, expected = cache_of(), cache_of(device="cpu")
    cache.reserve(16)
    cache.append(k, v)
    gpu.is_capturing = True
    cache.append(k, v)
    assert gpu.launched.count("offsets") == 2  # none has more than its first tokens
    for call in (
        lambda: cache.append(k, v, counts=[1, 2, 3]),
        lambda: cache.truncate([0, 0, 0]),
        lambda: cache.lengths,
        lambda: cache.gather(),
        lambda: cache.reset(),
        lambda: cache.reserve(32),
        lambda: cache.set_page_table(cache.page_table),
    ):
        with pytest.raises(UnsupportedError, match="cannot be captured into a graph"):
            call()
    gpu.is_capturing = False
    # A graph may be replayed at any time.
    for _ in range(3):
        expected.append(k, v)
        cache.device_lengths[...] = expected.lengths
        assert cache.lengths.tolist() == expected.lengths.tolist()


def test_a_graph_may_append_to_sequences_that_are_empty(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, 4, 64)
    cache, expected = cache_of(), cache_of(device="cpu")
    cache.reserve(16)
    gpu.is_capturing = True
    cache.append(k, v)
    gpu.is_capturing = False
    expected.append(k, v)
    assert_same(cache, expected)


def test_lengths_of_the_gpu_truncate(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, 20, 64)
    cache, expected = cache_of(), cache_of(device="cpu")
    for one in (cache, expected):
        one.append(k, v)
    cache.truncate(np.array([30, -1, 7]))
    expected.truncate([20, 0, 7])
    assert_same(cache, expected)
    for one in (cache, expected):
        one.append(-k, v)
    assert_same(cache, expected)
    with pytest.raises(ArgumentError, match=r"int32 or int64 \[3\]"):
        cache.truncate(np.array([1, 2]))


def test_sequences_that_the_gpu_has_emptied_begin_again(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, 20, 64)
    cache, expected = cache_of(), cache_of(device="cpu")
    for one in (cache, expected):
        one.reserve(60)
        one.append(k, v)
    cache.truncate(np.array([30, 0, 7]))
    expected.truncate([20, 0, 7])
    for one in (cache, expected):
        one.append(-k, v)
    assert_same(cache, expected)


def test_a_failed_append_launches_nothing(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, 50, 64)
    cache = cache_of(num_pages=12)
    cache.append(k, v)
    launched, table = len(gpu.launched), cache.page_table
    for given, message in (
        ({"k": k, "v": v}, "at most 30 tokens for sequence 0"),
        ({"k": k[:, :, :20], "v": v[:, :, :20]}, "the 0 free pages suffice, not 3"),
        ({"k": k, "v": v[:, :, :20]}, "v.shape"),
        ({"k": k, "v": v, "counts": [1, 2]}, "counts"),
        ({"k": k, "v": v, "counts": np.array([1.0, 2.0, 3.0])}, "counts"),
        ({"k": k, "v": v, "layout": ["HND"]}, "layout"),
    ):
        with pytest.raises(ArgumentError, match=message):
            cache.append(**given)
    assert len(gpu.launched) == launched
    np.testing.assert_array_equal(cache.page_table, table)
    assert cache.lengths.tolist() == [50] * 3


def test_wrong_queries_launch_nothing(gpu, rng):
    cache = cache_of()
    q = np.zeros((BATCH, HEADS, 1, 64), np.float16)
    cache.attend(q)
    launched = len(gpu.launched)
    for change, message in (
        ({"q": q[:2]}, "q.shape"),
        ({"scale": -1.0}, "scale"),
        ({"scale": [1.0]}, "scale"),
        ({"is_causal": 1}, "is_causal"),
        ({"out": q}, "in memory apart from that of q"),
        ({"out": q[:, :1]}, "out.shape"),
    ):
        with pytest.raises(ArgumentError, match=message):
            cache.attend(**({"q": q} | change))
    assert len(gpu.launched) == launched


def test_many_queries_get_more_counters(gpu, rng):
    batch = 35  # of 64 tiles of 16 rows each, the most that are decoded
    k, v = tokens(rng, batch, HEADS, 1, 64)
    cache = KVCache(batch, HEADS, 64, 16, k_bits=4, v_bits=4, group=32)
    cache.append(k, v)
    before = cache._memory.counters(1)
    q = rng.standard_normal((batch, HEADS, 1023, 64), np.float32).astype(np.float16)
    gpu.is_capturing = True
    with pytest.raises(UnsupportedError, match="cannot be captured"):
        cache.attend(q)
    gpu.is_capturing = False
    assert cache.attend(q).shape == q.shape
    assert cache._memory.counters(1) != before


def test_saved_on_one_and_loaded_on_the_other(gpu, rng, tmp_path):
    pytest.importorskip("safetensors")
    cache = cache_of(FORMATS["4-group64-zero"])
    cache.append(*tokens(rng, BATCH, HEADS, 50, 64), counts=[50, 0, 20])
    cache.save(tmp_path / "cache.safetensors")
    on_host = KVCache.load(tmp_path / "cache.safetensors", "cpu")
    on_host.save(tmp_path / "again.safetensors")
    assert_same(KVCache.load(tmp_path / "again.safetensors"), cache)


def test_saving_waits_for_all_work_of_the_gpu(gpu, rng, tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    cache, waited = cache_of(), []
    cache.append(*tokens(rng, BATCH, HEADS, 50, 64))
    monkeypatch.setattr(cache._memory, "wait", lambda: waited.append(True))
    cache.save(tmp_path / "cache.safetensors")
    assert waited


def test_numbers_of_another_type_are_other_calls(gpu):
    # Equal keys would be taken for each other, and what is wrong for what was right before.
    cache, q = cache_of(), np.zeros((BATCH, HEADS, 1, 64), np.float16)
    cache.attend(q, scale=1.0, is_causal=False, return_lse=False)
    for wrong in ({"scale": True}, {"is_causal": 0}, {"return_lse": 0}):
        given = {"scale": 1.0, "is_causal": False, "return_lse": False} | wrong
        with pytest.raises(ArgumentError, match=next(iter(wrong))):
            cache.attend(q, **given)


def test_few_kinds_of_calls_are_remembered(gpu):
    cache = cache_of()
    for n in range(300):
        cache.attend(np.zeros((BATCH, HEADS, n, 64), np.float16))
    (remembered,) = cache._memory._remembered.values()
    assert remembered.cache_info().currsize == 256


def test_reset_and_truncate_write_to_the_gpu(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, 20, 64)
    cache = cache_of()
    cache.append(k, v)
    cache.truncate([3, 20, 0])
    assert cache.device_lengths.tolist() == [3, 20, 0]
    assert cache._memory.limits.tolist() == [16, 32, 0]
    cache.reset()
    assert cache.device_lengths.tolist() == [0, 0, 0]
    assert cache._memory.limits.tolist() == [0, 0, 0]
    assert not cache._memory.k_offset.any()


def test_reset_forgets_what_was_refused(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, 20, 64)
    cache = cache_of(page_size=0)
    for _ in range(5):
        cache.append(k, v, counts=np.array([20, 20, 20]))
    cache.reset()
    cache.append(k, v, counts=np.array([1, 2, 3]))
    assert cache.lengths.tolist() == [1, 2, 3]


def test_counts_lie_at_multiples_of_their_size(gpu, rng):
    cache = cache_of()
    k, v = tokens(rng, BATCH, HEADS, 4, 64)
    counts = np.zeros(4 * BATCH + 1, np.uint8)[1:].view(np.int32)
    with pytest.raises(ArgumentError, match=r"^counts must be at a multiple of the size"):
        cache.append(k, v, counts=counts)
    assert cache.lengths.tolist() == [0] * BATCH


def test_a_cache_in_host_memory_takes_elements_from_anywhere(rng):
    k, v = tokens(rng, BATCH, HEADS, 4, 64)
    odd = np.zeros(k.nbytes + 1, np.uint8)[1:].view(k.dtype).reshape(k.shape)
    odd[...] = k
    caches = cache_of(device="cpu"), cache_of(device="cpu")
    for cache, keys in zip(caches, (k, odd), strict=True):
        cache.append(keys, v)
    assert_same(*caches)


def turns(rope_dim=64, positions=CAPACITY, interleaved=False, dtype=np.float32):
    angles = np.outer(np.arange(positions), 100.0 ** -(np.arange(0, rope_dim, 2) / rope_dim))
    return Rope(np.cos(angles).astype(dtype), np.sin(angles).astype(dtype), interleaved)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("others", [{}, {"page_size": 16, "window": 20}])
def test_keys_and_queries_turn_as_in_host_memory(gpu, rng, kv_format, interleaved, others):
    rope = turns(24, interleaved=interleaved)
    on_gpu, on_host = cache_of(kv_format, **others), cache_of(kv_format, "cpu", **others)
    for count, counts in ((20, None), (1, None), (20, [20, 0, 7]), (30, [20, 3, 0])):
        k, v = tokens(rng, BATCH, HEADS, count, kv_format.head_dim)
        for cache in (on_gpu, on_host):
            cache.append(k, v, counts=counts, rope=rope)
        assert_same(on_gpu, on_host)
    q = rng.standard_normal((BATCH, 3 * HEADS, 2, kv_format.head_dim)).astype(np.float16)
    found, wanted = (cache.attend(q, rope=rope) for cache in (on_gpu, on_host))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_positions_and_tables_that_kernels_cannot_use_are_copied(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, 20, 64)
    at = rng.integers(0, CAPACITY, (BATCH, 20))
    half = turns(dtype=np.float16)
    spread = Rope(*(np.repeat(x, 2, axis=1)[:, ::2] for x in (half.cos, half.sin)))
    for rope in (half, spread):
        on_gpu, on_host = cache_of(), cache_of(device="cpu")
        on_gpu.append(k, v, rope=rope, positions=at.astype(np.int32).T.copy().T)
        on_host.append(k, v, rope=half, positions=at)
        assert_same(on_gpu, on_host)
        o = on_gpu.attend(k, rope=rope, positions=at)
        wanted = on_host.attend(k, rope=half, positions=at)
        np.testing.assert_allclose(o, wanted, rtol=1e-3, atol=1e-3)


def test_tables_have_all_positions_that_there_may_be(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, 4, 64)
    cache = cache_of()
    cache.reserve(16)
    with pytest.raises(ArgumentError, match=r"rope.cos.shape .*of 4 positions"):
        cache.append(k, v, rope=turns(64, 3))
    cache.append(k, v, rope=turns(64, 4))
    gpu.is_capturing = True
    for call in (
        lambda: cache.append(k, v, rope=turns(64, 79)),
        lambda: cache.attend(k, rope=turns(64, 79)),
    ):
        with pytest.raises(ArgumentError, match=r"rope.cos.shape .*of 80 positions"):
            call()
    cache.append(k, v, rope=turns())
    cache.attend(k, rope=turns())


def test_evicted_tokens_are_not_counted_in_a_graph(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, 30, 64)
    cache = cache_of(window=20)
    for _ in range(3):
        cache.append(k, v, rope=turns(64, 90))
    gpu.is_capturing = True
    with pytest.raises(UnsupportedError, match="give positions"):
        cache.attend(k[:, :, :1], rope=turns())
