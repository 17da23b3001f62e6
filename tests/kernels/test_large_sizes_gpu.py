"""Arrays of more than 2^31 elements on a GPU, and more batches than a grid has along an axis.

They are zeros but for a few rows, near both ends and where an index of 32 bits begins again; what
these give is worked out in float64 for them alone.
"""

from contextlib import nullcontext

import numpy as np
import pytest
from helpers.gpu_cases import make, mma_family, on_gpu, on_host, relative_l1

import cuattn
from cuattn.reference import exact
from cuattn.scheme import Scheme

pytestmark = [pytest.mark.gpu, pytest.mark.alone]

FAMILIES = {"chosen": nullcontext, "mma": mma_family}

# Scales for each token, and nothing that depends on other tokens.
PLAIN = Scheme("plain", smooth_k="none")


def each_with(*pairs):
    """Parametrize by (scheme, family): both of either, as each test takes seconds."""
    return pytest.mark.parametrize(
        ("scheme", "family"),
        [(scheme, FAMILIES[family]) for scheme, family in pairs],
        ids=[f"{getattr(scheme, 'name', scheme)}-{family}" for scheme, family in pairs],
    )


@pytest.fixture
def room(cupy):
    """Ask for memory in GiB; what a test has taken goes back to the GPU."""

    def ask(gib):
        free, _ = cupy.cuda.runtime.memGetInfo()
        if free < gib << 30:
            pytest.skip(f"takes {gib} GiB")

    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    yield ask
    pool.free_all_blocks()


def patterns(rng, rows, head_dim):
    """Return rows of 1 and -1, which codes of 8 bits stand for without error."""
    return rng.choice(np.array([-1, 1], np.float16), (rows, head_dim))


def places(n, wrap, rows=32):
    """Return rows at the begin, around where an index begins again, and at the end of `n`."""
    return np.concatenate(
        [np.arange(rows), wrap - rows // 2 + np.arange(rows), n - rows + np.arange(rows)]
    )


def of_few_keys(q, k, v, hidden, scale):
    """Attend to some keys, and to others that are `hidden` zeros; in float64."""
    s = scale * q.astype(np.float64) @ k.astype(np.float64).T
    top = s.max(axis=1)
    p = np.exp(s - top[:, None])
    total = p.sum(axis=1) + hidden * np.exp(-top)
    return p @ v.astype(np.float64) / total[:, None], top + np.log(total)


@each_with(("int8", "chosen"), ("fp16", "mma"))
def test_queries_outputs_and_lse(cupy, room, rng, scheme, family):
    """2^32 elements of Q and O, 2^29 of lse; with codes 38 GiB."""
    room(48)
    n, keys, head_dim = 2**29 + 77, 200, 8
    at = places(n, 2**31 // head_dim)
    rows = rng.standard_normal((len(at), head_dim)).astype(np.float16)
    k, v = (rng.standard_normal((1, 1, keys, head_dim)).astype(np.float16) for _ in "kv")
    q = cupy.zeros((1, 1, n, head_dim), cupy.float16)
    q[0, 0, cupy.asarray(at)] = cupy.asarray(rows)
    given = [cupy.asarray(x) for x in (k, v)]
    with family():
        o, lse = cuattn.attention(q, *given, scheme=scheme, return_lse=True, is_causal=True)
    # Under the mask the last rows see keys, the last one all of them.
    last = 32
    truth, of_logits = exact.attention(rows[None, None, -last:], k, v, is_causal=True)
    some, some_lse = on_host(o[0, 0, -last:]), on_host(lse[0, 0, -last:])
    assert relative_l1(some, truth[0, 0]) < 0.05
    np.testing.assert_allclose(some_lse, of_logits[0, 0], atol=0.05)
    assert not bool(o[:, :, :-keys].any())
    assert bool((lse[:, :, :-keys] == -np.inf).all())
    del o, lse
    with family():
        o, lse = cuattn.attention(q, *given, scheme=scheme, return_lse=True)
    truth, of_logits = exact.attention(rows[None, None], k, v)
    assert relative_l1(on_host(o[0, 0, cupy.asarray(at)]), truth[0, 0]) < 0.05
    np.testing.assert_allclose(on_host(lse[0, 0, cupy.asarray(at)]), of_logits[0, 0], atol=0.05)
    np.testing.assert_allclose(on_host(lse[0, 0, 2**30 // 3 :: 2**26]), np.log(keys), atol=1e-3)


@each_with((PLAIN, "mma"), ("fp16", "chosen"))
def test_keys_and_values(cupy, room, rng, scheme, family):
    """2^32 elements of K and V each, and as many codes; with these 26 GiB."""
    room(36)
    n, head_dim, scale = 2**25 + 100, 128, 2.0
    at = places(n, 2**31 // head_dim)
    few_k = patterns(rng, len(at), head_dim)
    few_v = rng.standard_normal(few_k.shape).astype(np.float16)
    k, v = (cupy.zeros((1, 1, n, head_dim), cupy.float16) for _ in "kv")
    for x, few in ((k, few_k), (v, few_v)):
        x[0, 0, cupy.asarray(at)] = cupy.asarray(few)
    with family():
        o, lse = cuattn.attention(
            cupy.asarray(few_k[None, None]), k, v, scheme=scheme, scale=scale, return_lse=True
        )
    truth, of_logits = of_few_keys(few_k, few_k, few_v, n - len(at), scale)
    assert relative_l1(on_host(o)[0, 0], truth) < 0.02
    np.testing.assert_allclose(on_host(lse)[0, 0], of_logits, rtol=1e-3)


def test_numbers_of_value_scales(cupy, room, rng):
    """Three for each of so many tokens are more than 2^31: 64 GiB, read by one CTA in seconds."""
    room(80)
    n, head_dim, scale = 2**31 // 3 + 2000, 8, 5.0
    at = places(n, n // 2)
    few = patterns(rng, len(at), head_dim)
    kv = cupy.zeros((1, 1, n, head_dim), cupy.float16)
    kv[0, 0, cupy.asarray(at)] = cupy.asarray(few)
    q = few[-64:]
    with mma_family():
        o, lse = cuattn.attention(
            cupy.asarray(q[None, None]), kv, kv, scheme=PLAIN, scale=scale, return_lse=True
        )
    truth, of_logits = of_few_keys(q, few, few, n - len(at), scale)
    assert relative_l1(on_host(o)[0, 0], truth) < 0.02
    np.testing.assert_allclose(on_host(lse)[0, 0], of_logits, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_products_with_means(cupy, room, family):
    """What smoothing Q adds to the scores: 2^31 numbers, for each block of rows and key."""
    room(16)
    rows, keys, head_dim, scale = 2**18 + 100, 2**20 + 300, 64, 0.25
    random = cupy.random.RandomState(5)
    q, k, v = (
        random.standard_normal((1, 1, n, head_dim), cupy.float32).astype(cupy.float16)
        for n in (rows, keys, keys)
    )
    q += cupy.float16(1)
    with family():
        o, lse = cuattn.attention(
            q, k, v, scheme=Scheme("smooth", smooth_q="block"), scale=scale, return_lse=True
        )
    for some in (slice(32), slice(rows - 32, rows)):
        truth, of_logits = exact.attention(
            on_host(q[:, :, some]), on_host(k), on_host(v), scale=scale, block=2**14
        )
        assert relative_l1(on_host(o[:, :, some]), truth) < 0.15
        np.testing.assert_allclose(on_host(lse[:, :, some]), of_logits, atol=0.05)


def test_rows_of_an_empty_cache(cupy, room):
    """2^32 elements of Q and O that see no token."""
    room(20)
    n, head_dim = 2**26 + 5, 64
    cache = cuattn.KVCache(1, 1, head_dim, 16)
    q = cupy.zeros((1, 1, n, head_dim), cupy.float16)
    o, lse = cache.attend(q, out=cupy.full_like(q, 7), return_lse=True)
    assert not bool(o.any())
    assert bool((lse == -np.inf).all())


@each_with(("int8", "chosen"), ("int4", "mma"), ("fp16", "mma"))
def test_batches_beyond_a_grid(cupy, rng, scheme, family):
    """70 000 windows, as a vision transformer has, but smaller."""
    batch = 70_000
    q, k, v = (
        on_gpu(x, "float16")
        for x in make(rng, batch=batch, heads=(2, 1), seqlens=(17, 17), head_dim=32)
    )
    with family():
        o, lse = cuattn.attention(q, k, v, scheme=scheme, return_lse=True)
        for b in (0, 65_534, 65_535, batch - 1):
            at = slice(b, b + 1)
            alone = cuattn.attention(q[at], k[at], v[at], scheme=scheme, return_lse=True)
            for x, y in zip((o[at], lse[at]), alone, strict=True):
                np.testing.assert_array_equal(on_host(x), on_host(y))
    at = slice(65_530, 65_540)
    truth, _ = exact.attention(*(on_host(x[at]) for x in (q, k, v)))
    assert relative_l1(on_host(o[at]), truth) < (0.2 if scheme == "int4" else 0.03)
