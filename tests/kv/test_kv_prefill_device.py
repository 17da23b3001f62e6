"""`KVCache.attend` of many rows on a simulated GPU: its launches, and what they read and write."""

import numpy as np
import pytest
from kv_cases import FORMATS, HEADS, options, tokens

from cuattn import KVCache, Rope
from cuattn.kv import prefill
from cuattn.kv import rows as rows_module
from cuattn.kv.query import QueryOptions
from cuattn.kv.rows import MANY_ROWS
from cuattn.kv.scores import NO_ARRAYS
from cuattn.kv_format import KVFormat
from cuattn.reference.rope import rope

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU
from simulated_gpu.device import gpu_of
from simulated_gpu.memory import view_of

BATCH, CAPACITY = 3, 300
MANY = MANY_ROWS // 2


@pytest.fixture(params=["90a", "80"])
def gpu(request, monkeypatch):
    return SimulatedGPU(monkeypatch, gpu_of(request.param))


def caches(rng, kv_format, counts=(300, 0, 131), **others):
    """Return a cache on the GPU and the same in host memory."""
    k, v = tokens(rng, BATCH, HEADS, CAPACITY, kv_format.head_dim)
    found = []
    for device in (None, "cpu"):
        given = options(kv_format) | others
        cache = KVCache(BATCH, HEADS, kv_format.head_dim, CAPACITY, device=device, **given)
        cache.append(k, v, counts=list(counts))
        found.append(cache)
    return found


def queries(rng, head_dim, dtype=np.float16, rows=MANY):
    return rng.standard_normal((BATCH, 2 * HEADS, rows, head_dim)).astype(dtype)


def tables(positions, rope_dim=48):
    angles = np.outer(np.arange(positions), 10.0 ** -np.linspace(0, 3, rope_dim // 2))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def assert_alike(both, *args, **options):
    results = [cache.attend(*args, return_lse=True, **options) for cache in both]
    for x, y in zip(*results, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=4e-3)  # ties of P
    return results[0]


SOME = {
    "plain": {},
    "window": {"window_size": (50, 3), "is_causal": False},
    "softcap and slopes": {"softcap": 5.0, "alibi_slopes": np.float32([[1, 2, 3, 4]] * 3) / 8},
    "sinks": {"sinks": np.float32([0, 1, 2, -np.inf]), "window_size": (30, 0)},
}


PLAIN = ["8", "4", "v4-group32-zero", "8-rotated", "nested", "nested-256"]
PADDED = {name: x for name, x in FORMATS.items() if x.padded != x.head_dim}
# Kernels of attention have channels between those of its units.
PADDED["8-176"] = KVFormat(176, rotate=True)


@pytest.mark.parametrize("page_size", [0, 16])
@pytest.mark.parametrize("name", PLAIN)
def test_is_that_of_a_cache_in_host_memory(gpu, rng, name, page_size):
    kv_format = FORMATS[name]
    both = caches(rng, kv_format, page_size=page_size)
    assert_alike(both, queries(rng, kv_format.head_dim))
    assert gpu.launched[-3:][0] == "cache_operands"
    assert "decode" not in gpu.launched


# Rows that are many where `few_are_many`.
FEW = 70


@pytest.fixture
def few_are_many(monkeypatch):
    """Let fewer rows take the same way, in parts of a head each."""
    monkeypatch.setattr(rows_module, "MANY_ROWS", 2 * FEW)
    monkeypatch.setattr(prefill, "WORKSPACE", 1)


def masks(rng):
    """Return masks of fewer tokens than there are, of all, and of more."""
    of_some = rng.random((BATCH, 1, FEW, 70)) < 0.8
    of_heads = rng.standard_normal((2 * HEADS, FEW, 131)).astype(np.float16)
    of_heads[rng.random(of_heads.shape) < 0.3] = -np.inf
    of_rows = (8 * rng.standard_normal((BATCH, 1, 1, 300))).astype(np.float32)
    of_tokens = np.where(rng.random((1, 300)) < 0.5, np.float32(0), np.finfo(np.float32).min)
    return {
        "some": of_some,
        "heads": of_heads,
        "rows": np.broadcast_to(of_rows, (BATCH, 1, FEW, 300)),
        "tokens": of_tokens,
        "booleans of tokens": rng.random(299) < 0.5,
        "none": np.zeros((1, 0), bool),
    }


@pytest.mark.usefixtures("few_are_many")
@pytest.mark.parametrize("name", ["some", "heads", "rows", "tokens", "booleans of tokens", "none"])
def test_masks_are_of_the_last_tokens(gpu, rng, name):
    both = caches(rng, FORMATS["8-rotated"])
    given = {"attn_mask": masks(rng)[name], "window_size": (200, -1)}
    assert_alike(both, queries(rng, 64, rows=FEW), **given)
    assert "decode" not in gpu.launched
    assert ("mask_map" in gpu.launched) == (name != "none")


@pytest.mark.usefixtures("few_are_many")
@pytest.mark.parametrize("name", PADDED)
def test_heads_may_be_padded(gpu, rng, name):
    both = caches(rng, PADDED[name], page_size=16)
    q = queries(rng, PADDED[name].head_dim, rows=FEW)
    o, _ = assert_alike(both, q, softcap=3.0)
    packed = np.concatenate(list(q.swapaxes(1, 2)))
    bounds = FEW * np.arange(BATCH + 1, dtype=np.int32)
    found, _ = assert_alike(both, packed, softcap=3.0, cu_seqlens_q=bounds)
    np.testing.assert_array_equal(np.stack(np.split(found, BATCH)).swapaxes(1, 2), o)
    assert "decode" not in gpu.launched
    assert gpu.launched.count("cache_queries") == gpu.launched.count("cache_operands")


@pytest.mark.usefixtures("few_are_many")
@pytest.mark.parametrize(("name", "interleaved"), [("8-rotated", True), ("8-padded", False)])
def test_queries_turn_by_their_positions(gpu, rng, name, interleaved):
    kv_format = FORMATS[name]
    both = caches(rng, kv_format, page_size=16)
    turn = Rope(*tables(CAPACITY), interleaved)
    q = queries(rng, kv_format.head_dim, rows=FEW)
    o, _ = assert_alike(both, q, rope=turn)
    at = np.maximum(np.array([300, 0, 131])[:, None] - FEW + np.arange(FEW), 0)
    turned = rope(q, turn.cos, turn.sin, at, interleaved=interleaved)
    before = both[1].attend(turned).astype(np.float16)
    np.testing.assert_allclose(o, before, rtol=1e-3, atol=4e-3)
    moved = rng.integers(0, CAPACITY, at.shape)
    there, _ = assert_alike(both, q, rope=turn, positions=moved)
    rows = [FEW, 0, 30]
    bounds = np.cumsum([0, *rows]).astype(np.int32)
    parts = [[x[b, FEW - n :] for b, n in enumerate(rows)] for x in (q.swapaxes(1, 2), moved)]
    packed, positions = map(np.concatenate, parts)
    for given, wanted in (({}, o), ({"positions": positions}, there)):
        found, _ = assert_alike(both, packed, rope=turn, cu_seqlens_q=bounds, **given)
        for b, n in enumerate(rows):
            here = slice(bounds[b], bounds[b + 1])
            np.testing.assert_array_equal(found[here].swapaxes(0, 1), wanted[b, :, FEW - n :])
    for cache in both:
        cache.evict(0, [1, 4])
        cache.evict(2, [2])
    found, _ = assert_alike(both, packed, rope=turn, cu_seqlens_q=bounds)
    beside = np.concatenate([at[b, FEW - n :] for b, n in enumerate(rows)])
    again = both[0].attend(packed, rope=turn, positions=beside, cu_seqlens_q=bounds)
    np.testing.assert_array_equal(found, again)
    assert "decode" not in gpu.launched


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("room", [2**28, 2 * HEADS * 2 * 384 * 64, 2 * 384 * 64])
def test_parts_make_no_difference(gpu, rng, monkeypatch, name, room):
    monkeypatch.setattr(prefill, "WORKSPACE", room)
    both = caches(rng, FORMATS["nested"], page_size=16)
    gpu.launched.clear()
    q, given = queries(rng, 64), SOME[name]
    o, lse = assert_alike(both, q, **given)
    parts = {2**28: 1, 2 * HEADS * 2 * 384 * 64: 2}.get(room, BATCH * HEADS)
    assert gpu.launched.count("cache_operands") == parts
    rows = [MANY, 17, 90]
    bounds = np.cumsum([0, *rows]).astype(np.int32)
    packed = np.concatenate([x[:, MANY - n :].swapaxes(0, 1) for x, n in zip(q, rows, strict=True)])
    found, of_rows = assert_alike(both, packed, cu_seqlens_q=bounds, **given)
    for b, n in enumerate(rows):
        here = slice(bounds[b], bounds[b + 1])
        np.testing.assert_array_equal(found[here].swapaxes(0, 1), o[b, :, MANY - n :])
        np.testing.assert_array_equal(of_rows[:, here], lse[b, :, MANY - n :])


def test_strides_and_outputs_are_the_callers(gpu, rng, monkeypatch):
    monkeypatch.setattr(prefill, "WORKSPACE", 1)
    both = caches(rng, FORMATS["8"])
    wide = rng.standard_normal((BATCH, MANY, 2 * HEADS, 80)).astype(np.float32)
    q = wide[..., :64]
    assert_alike(both, q, layout="NHD")
    expected = both[1].attend(q, layout="NHD")
    out = np.zeros_like(wide)
    both[0].attend(q, layout="NHD", out=out[..., :64])
    np.testing.assert_allclose(out[..., :64], expected, rtol=1e-3, atol=4e-3)
    assert not out[..., 64:].any()
    packed = np.ascontiguousarray(q[0])
    ends = np.zeros((MANY + 5, 2 * HEADS, 128), np.float32)
    bounds = np.array([0, MANY, MANY, MANY], np.int32)
    queries_of_one = np.concatenate([packed, packed[:5]])
    both[0].attend(queries_of_one, cu_seqlens_q=bounds, out=ends[..., ::2])
    np.testing.assert_allclose(ends[:MANY, :, ::2], expected[0], rtol=1e-3, atol=4e-3)
    assert not ends[MANY:].any()
    assert not ends[..., 1::2].any()


def test_graphs_are_made_for_the_capacity(gpu, rng):
    cache, _ = caches(rng, FORMATS["8"], counts=(50, 0, 20))
    q = view_of(queries(rng, 64)).signature

    def planned():
        given = QueryOptions(None, True, False, "HND"), NO_ARRAYS, None
        return prefill.prepared_prefill(cache._memory, q, None, *given).problem.seqlen_kv

    assert planned() == 128
    gpu.is_capturing = True
    assert planned() == 384
    gpu.is_capturing = False
    cache.truncate(np.array([30, 0, 20], np.int32))  # of the GPU, which alone knows now
    assert planned() == 384


def test_lengths_choose_no_kernel(gpu, rng):
    cache, _ = caches(rng, FORMATS["8"], counts=(50, 0, 20))
    q = queries(rng, 64)
    for counts in ([0, 0, 0], [200, 100, 0]):
        k, v = tokens(rng, BATCH, HEADS, 200, 64)
        cache.append(k, v, counts=counts)
        cache.attend(q, window_size=(100, 0))
    used = [spec for spec in gpu.specs if spec.entry.startswith("attention")]
    assert len(used) == 2
    assert used[0] == used[1]


def test_keys_without_offset_may_be_evicted(gpu, rng):
    k, v = tokens(rng, BATCH, HEADS, CAPACITY, 64)
    given = options(FORMATS["8-rotated"]) | {"page_size": 16}
    both = [KVCache(BATCH, HEADS, 64, CAPACITY, device=x, **given) for x in (None, "cpu")]
    for cache in both:
        for first, last in ((0, 5), (5, 200), (200, 300)):
            cache.append(k[:, :, first:last], v[:, :, first:last])
        cache.evict(0, [0, 3])
        cache.evict(2, [1, 9])
        assert cache._memory.bare.tolist() == [96, 128, 112]
    assert_alike(both, queries(rng, 64))


def test_few_rows_are_decoded(gpu, rng):
    both = caches(rng, FORMATS["8"])
    assert_alike(both, queries(rng, 64)[:, :, 1:])
    assert "cache_operands" not in gpu.launched
    assert gpu.launched[-1] == "decode"


def test_empty_caches_have_empty_answers(gpu, rng):
    both = caches(rng, FORMATS["8"], counts=(0, 0, 0))
    o, lse = assert_alike(both, queries(rng, 64))
    assert not o.any()
    assert (lse == -np.inf).all()
    empty = np.zeros((0, 4, 64), np.float16)
    assert both[0].attend(empty, cu_seqlens_q=np.zeros(4, np.int32)).shape == empty.shape
