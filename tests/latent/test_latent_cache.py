"""`LatentKVCache` in host memory and on a simulated GPU: contents, attention, refusals."""

import copy
import pickle

import numpy as np
import pytest
from latent_cases import BATCH, SCALE, cache_of, everything, queries, tokens

from cuattn import LatentKVCache
from cuattn.errors import ArgumentError, UnsupportedError
from cuattn.reference import exact
from cuattn.reference.latent import LatentTokens, decode_latent, quantize_latent


@pytest.mark.parametrize("rope_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("page_size", [0, 64, 128])
def test_contents_are_the_references(rng, page_size, rope_dtype):
    cache = cache_of(page_size=page_size, rope_dtype=rope_dtype)
    latent, rope = tokens(rng, 200)
    lengths = np.zeros(BATCH, np.int64)
    for begin, end, counts in ((0, 63, [63, 0, 20]), (63, 65, [2, 1, 0]), (65, 200, [135, 7, 1])):
        cache.append(latent[:, begin:end], rope[:, begin:end], counts=counts)
        lengths += counts
    np.testing.assert_array_equal(cache.lengths, lengths)
    found = cache.codes()
    wanted = quantize_latent(latent, rope, rope_dtype)
    np.testing.assert_array_equal(found.codes[0, :200], wanted.codes[0])
    np.testing.assert_array_equal(found.scale[0, :200], wanted.scale[0])
    np.testing.assert_array_equal(found.rope[0, :200], wanted.rope[0])
    np.testing.assert_array_equal(found.codes[2, :20], wanted.codes[2, :20])
    np.testing.assert_array_equal(found.rope[2, 20], wanted.rope[2, 65])
    assert not found.codes[2, 21:].any()


@pytest.mark.parametrize("heads", [1, 16, 128])
def test_attention_is_that_of_latent_vectors(rng, heads):
    cache = cache_of()
    latent, rope = tokens(rng, 260, np.float32)
    cache.append(latent, rope)
    q = queries(rng, heads, 2, np.float32)
    o, lse = cache.attend(q, scale=SCALE, return_lse=True)
    assert o.shape == (BATCH, heads, 2, 512)
    k = np.concatenate([latent, rope], axis=2)[:, None]
    wanted, wanted_lse = exact.attention(q, k, latent[:, None], scale=SCALE, is_causal=True)
    # 8 bits of Q, of K and V, and of P.
    assert np.abs(o - wanted).mean() < 0.04 * np.abs(wanted).mean()
    np.testing.assert_allclose(lse, wanted_lse, atol=0.1)


def test_codes_have_a_scale_of_each_token_and_rotary_channels_have_none(rng):
    latent, rope = tokens(rng, 40, np.float32)
    made = quantize_latent(latent, rope, "float16")
    k, v = made.dequantize()
    assert k.shape == (BATCH, 1, 40, 576)
    assert v.shape == (BATCH, 1, 40, 512)
    most = np.abs(latent).max(axis=2, keepdims=True)
    assert (np.abs(v[:, 0] - latent) <= most / 254 * 1.0001).all()
    np.testing.assert_array_equal(k[:, 0, :, 512:], rope.astype(np.float16))
    np.testing.assert_array_equal(made.scale, most[..., 0] / np.float32(127))


@pytest.mark.parametrize("is_causal", [False, True])
def test_parts_make_the_whole(rng, is_causal):
    made = quantize_latent(*tokens(rng, 700, np.float32, batch=2))
    q = queries(rng, 3, 4, np.float32, batch=2)
    given = {"scale": 0.1, "is_causal": is_causal}
    whole = decode_latent(q, made, [700, 2], **given)
    for workers in (3, 7):
        parts = decode_latent(q, made, [700, 2], workers=workers, **given)
        for x, y in zip(parts, whole, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12)
    o, lse = whole
    if is_causal:  # the first two of four queries stand before two tokens
        assert not o[1, :, :2].any()
        assert (lse[1, :, :2] == -np.inf).all()
    k, v = made.dequantize()
    wanted, wanted_lse = exact.attention(q[:1], k[:1], v[:1], scale=0.1, is_causal=is_causal)
    assert np.abs(o[:1] - wanted).mean() < 0.03 * np.abs(wanted).mean()
    np.testing.assert_allclose(lse[:1], wanted_lse, atol=0.05)


def test_tokens_beyond_a_length_mean_nothing(rng):
    made = quantize_latent(*tokens(rng, 150, np.float32, batch=1))
    q = queries(rng, 2, 1, np.float32, batch=1)
    o, _ = decode_latent(q, made, [100], scale=0.1)
    codes, scale, rope = made.codes.copy(), made.scale.copy(), made.rope.copy()
    scale[:, 100:], rope[:, 100:] = np.nan, np.inf
    again, _ = decode_latent(q, LatentTokens(codes, scale, rope), [100], scale=0.1)
    np.testing.assert_array_equal(o, again)


def test_a_token_with_nan_makes_rows_that_see_it_nan(rng):
    latent, rope = tokens(rng, 5)
    latent[1, 2, 3] = np.nan
    cache = cache_of()
    cache.append(latent, rope)
    o = cache.attend(queries(rng, 2, 4), scale=SCALE)
    assert np.isnan(o[1, :, 1:]).all()
    assert np.isfinite(o[1, :, 0]).all()
    assert np.isfinite(o[[0, 2]]).all()


def test_bytes_are_as_they_say():
    cache = cache_of(100)
    assert cache.bytes_per_token == 512 + 2 * 64 + 4
    assert cache.nbytes == LatentKVCache.bytes_needed(BATCH, 100)
    assert cache.nbytes == BATCH * (128 * 644 + 8)
    paged = {"page_size": 64, "num_pages": 5}
    assert cache_of(100, **paged).nbytes == LatentKVCache.bytes_needed(BATCH, 100, **paged)


def test_sequences_are_shortened_emptied_and_moved(rng):
    cache, plain = cache_of(page_size=64, num_pages=15), cache_of()
    cache.set_page_table(rng.permutation(15).reshape(3, 5))
    latent, rope = tokens(rng, 130)
    for some in (cache, plain):
        some.append(latent, rope)
        some.truncate([100, 0, 130])
        some.append(latent[:, :40], rope[:, :40])
    q = queries(rng, 4, 1)
    o = cache.attend(q, scale=SCALE)
    np.testing.assert_array_equal(o, plain.attend(q, scale=SCALE))
    twin = copy.deepcopy(cache)
    cache.reset()
    assert not cache.lengths.any()
    np.testing.assert_array_equal(twin.attend(q, scale=SCALE), o)
    np.testing.assert_array_equal(cache.page_table, twin.page_table)
    with pytest.raises(UnsupportedError, match="cannot be pickled: save it"):
        pickle.dumps(cache)


def test_layouts_and_outputs(rng):
    cache = cache_of()
    cache.append(*tokens(rng, 20))
    q = queries(rng, 4, 3)
    o, lse = cache.attend(q, scale=SCALE, return_lse=True)
    turned = np.ascontiguousarray(q.swapaxes(1, 2))
    out = np.zeros((BATCH, 3, 4, 512), np.float16)
    again, same = cache.attend(turned, scale=SCALE, layout="NHD", return_lse=True, out=out)
    assert again is out
    np.testing.assert_array_equal(out.swapaxes(1, 2), o)
    np.testing.assert_array_equal(lse, same)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 0}, "batch must be a whole number"),
        ({"capacity": 0}, "capacity must be a whole number"),
        (
            {"page_size": 16},
            r"page_size must be one of \(64, 128, 256\), or 0 for no pages, got 16",
        ),
        ({"page_size": 3}, r"page_size must be one of \(64, 128, 256\), or 0 for no pages, got 3"),
        ({"num_pages": 4}, "num_pages must be None"),
        ({"rope_dtype": "float32"}, "rope_dtype must be one of"),
        ({"device": "gpu"}, "device must be"),
    ],
)
def test_wrong_options_are_refused(given, message):
    with pytest.raises(ArgumentError, match=f"^{message}"):
        LatentKVCache(**{"batch": 2, "capacity": 100, "device": "cpu"} | given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": np.zeros((3, 4, 511), np.float16)}, r"latent.shape must be \[3, 4, 512\]"),
        ({"latent": np.zeros((3, 1, 4, 512), np.float16)}, "latent.shape"),
        ({"rope": np.zeros((3, 5, 64), np.float16)}, r"rope.shape must be \[3, 4, 64\]"),
        ({"rope": np.zeros((3, 4, 64), np.float32)}, "rope.dtype must be float16"),
        ({"latent": np.zeros((3, 4, 512), np.int32)}, "latent.dtype"),
        ({"counts": [1, 2]}, "counts"),
        ({"counts": [1, 2, 5]}, "counts"),
        ({"stream": 0}, "stream"),
        ({"latent": np.zeros((3, 400, 512)), "rope": np.zeros((3, 400, 64))}, "latent.dtype"),
    ],
)
def test_wrong_tokens_are_refused(rng, change, message):
    cache = cache_of()
    cache.append(*tokens(rng, 7))
    before = everything(cache)
    latent, rope = tokens(rng, 4)
    with pytest.raises(ArgumentError, match=message):
        cache.append(**{"latent": latent, "rope": rope} | change)
    for x, y in zip(everything(cache), before, strict=True):
        np.testing.assert_array_equal(x, y)


def test_no_more_tokens_than_there_is_room_for(rng):
    cache = cache_of(70)
    cache.append(*tokens(rng, 60))
    with pytest.raises(ArgumentError, match="at most 10 tokens for sequence 0"):
        cache.append(*tokens(rng, 11))
    paged = cache_of(200, page_size=64, num_pages=4)
    with pytest.raises(ArgumentError, match="latent"):
        paged.append(*tokens(rng, 100))
    assert not paged.lengths.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"q": np.zeros((3, 2, 1, 512), np.float16)},
            r"q.shape must be \[3, num_q_heads, n, 576\]",
        ),
        ({"q": np.zeros((2, 2, 1, 576), np.float16)}, "q.shape"),
        ({"q": np.zeros((3, 2, 1, 576))}, "q.dtype"),
        *(
            ({"scale": x}, "scale must be a number above 0: that of the model, such as .*, got")
            for x in (None, 0, 0.0, "0.1", True)
        ),
        ({"scale": -1.0}, "scale"),
        ({"is_causal": 1}, "is_causal"),
        ({"return_lse": None}, "return_lse"),
        ({"layout": "BSHD"}, "layout"),
        ({"out": np.zeros((3, 2, 1, 576), np.float16)}, "out.shape must be"),
    ],
)
def test_wrong_queries_are_refused(change, message):
    given = {"q": np.zeros((3, 2, 1, 576), np.float16), "scale": 0.1} | change
    with pytest.raises(ArgumentError, match=message):
        cache_of().attend(**given)


def test_a_scale_has_to_be_given():
    with pytest.raises(TypeError, match="scale"):
        cache_of().attend(np.zeros((3, 2, 1, 576), np.float16))


@pytest.mark.parametrize("page_size", [0, 64, 128])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_gpu_is_told_the_same(gpu, rng, page_size, dtype):
    caches = [cache_of(200, device, page_size=page_size) for device in (None, "cpu")]
    for count, counts in ((70, None), (1, None), (40, [40, 0, 3])):
        latent, rope = tokens(rng, count, dtype)
        for cache in caches:
            cache.append(latent, rope, counts=counts)
    q = queries(rng, 5, 2, dtype)
    results = [cache.attend(q, scale=SCALE, return_lse=True) for cache in caches]
    for x, y in zip(*results, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)
    on_gpu, on_host = (cache.codes() for cache in caches)
    np.testing.assert_array_equal(on_gpu.codes, on_host.codes)
    np.testing.assert_array_equal(on_gpu.rope, on_host.rope)
    assert gpu.launched.count("append_latent") == 3


def test_parts_of_one_array_are_read_where_they_are(gpu, rng):
    whole = rng.standard_normal((BATCH, 30, 576)).astype(np.float16)
    cache, expected = cache_of(device=None), cache_of()
    cache.append(whole[..., :512], whole[..., 512:])
    expected.append(whole[..., :512].copy(), whole[..., 512:].copy())
    np.testing.assert_array_equal(cache.codes().codes, expected.codes().codes)
    # Heads and queries in any order of memory, and an output between other channels.
    q = queries(rng, 4, 3).swapaxes(1, 2).copy().swapaxes(1, 2)
    room = np.zeros((BATCH, 4, 3, 520), np.float16)
    cache.attend(q, scale=SCALE, out=room[..., :512])
    np.testing.assert_allclose(room[..., :512], expected.attend(q, scale=SCALE), atol=2e-3)
    assert not room[..., 512:].any()


def test_the_gpu_checks_counts_of_its_own(gpu, rng):
    cache = cache_of(50, None)
    latent, rope = tokens(rng, 40)
    cache.append(latent, rope, counts=np.array([40, 1, 0], np.int32))
    cache.append(latent, rope, counts=np.array([40, 1, 0], np.int32))
    with pytest.raises(ArgumentError, match="the GPU has refused"):
        _ = cache.lengths
    np.testing.assert_array_equal(cache.lengths, [40, 1, 0])


@pytest.mark.parametrize("page_size", [0, 64])
def test_sequences_become_others_and_lose_pages(gpu, rng, page_size):
    for device in ("cpu", None):
        cache = cache_of(page_size=page_size, device=device)
        latent, rope = tokens(rng, 200)
        cache.append(latent, rope, counts=[200, 70, 0])
        before = cache.codes()
        cache.fork(0, 2)
        cache.reorder([1, 0, 2])
        assert cache.lengths.tolist() == [70, 200, 200]
        cache.append(latent[:, :1], rope[:, :1], counts=[0, 1, 0])
        found = cache.copy().codes()
        np.testing.assert_array_equal(found.codes[0, :70], before.codes[1, :70])
        for b in (1, 2):
            np.testing.assert_array_equal(found.codes[b, :200], before.codes[0])
            np.testing.assert_array_equal(found.rope[b, :200], before.rope[0])
        wanted = quantize_latent(latent[1:2, :1], rope[1:2, :1], "bfloat16")
        np.testing.assert_array_equal(found.codes[1, 200:], wanted.codes[0])
        if not page_size:
            with pytest.raises(UnsupportedError, match="a cache with a page_size, which here is 0"):
                cache.evict(1, [0])
            continue
        cache.evict(1, [1])
        assert cache.positions.tolist() == [70, 201, 200]
        left = np.r_[0:64, 128:200]
        np.testing.assert_array_equal(cache.codes().codes[1, :136], before.codes[0, left])
