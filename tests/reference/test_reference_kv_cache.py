"""Codes, scales, zero points and offsets of the KV cache."""

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.kv_format import KVFormat
from cuattn.reference.kv_cache import CachedOperand, quantize_keys, quantize_values
from cuattn.reference.kv_offsets import FIRST_TOKENS, bare_tokens, offsets
from cuattn.reference.quantize import AMAX_FLOOR, quantize, smoothing_vector

FORMATS = [
    KVFormat(64),
    KVFormat(64, k_bits=4),
    KVFormat(64, 4, 4),
    KVFormat(96, 4, 4, group=32),
    KVFormat(128, 4, 8, group=64),
    KVFormat(64, v_bits=4, v_zero=True),
    KVFormat(256, 4, 4, group=32, v_zero=True),
]
every_format = pytest.mark.parametrize("kv_format", FORMATS, ids=str)
ZERO = KVFormat(64, v_bits=4, group=32, v_zero=True)


def tokens(rng, head_dim, batch=2, heads=3, count=20):
    return rng.standard_normal((batch, heads, count, head_dim)).astype(np.float32)


@every_format
def test_symmetric_codes_are_those_of_the_quantizer(kv_format, rng):
    k = tokens(rng, kv_format.head_dim)
    vector = offsets(k)
    found = quantize_keys(k, kv_format, vector)
    assert found.codes.dtype == np.int8
    assert found.scale.shape == (*k.shape[:3], kv_format.k_groups)
    assert found.zero is None
    size = kv_format.head_dim // kv_format.k_groups
    for g in range(kv_format.k_groups):
        channels = slice(g * size, (g + 1) * size)
        part = quantize(
            k[..., channels],
            scope="token",
            vector=vector[..., channels],
            to="int8" if kv_format.k_bits == 8 else "int4",
        )
        np.testing.assert_array_equal(found.codes[..., channels], part.codes)
        np.testing.assert_array_equal(found.scale[..., g], part.scale)


@pytest.mark.parametrize("mean", [0.0, 3.0, -1000.0])
def test_zero_points_are_those_of_the_formula(mean, rng):
    v = tokens(rng, 64, batch=1, heads=1, count=9) + np.float32(mean)
    found = quantize_values(v, ZERO)
    one = np.float32
    for t in range(9):
        for g in range(2):
            x = v[0, 0, t, 32 * g : 32 * (g + 1)]
            low, high = min(x), max(x)
            r = max(one(high - low), one(AMAX_FLOOR))
            scale, steps = one(r / one(15)), one(one(15) / r)
            assert found.scale[0, 0, t, g] == scale
            assert found.zero[0, 0, t, g] == one(low + one(8 * scale))
            codes = [min(max(np.rint(one(one(e - low) * steps)), 0), 15) - 8 for e in x]
            np.testing.assert_array_equal(found.codes[0, 0, t, 32 * g : 32 * (g + 1)], codes)
            assert (min(codes), max(codes)) == (-8, 7)


@every_format
@pytest.mark.parametrize("size", [1e-15, 1.0, 1e15])
def test_error_is_half_a_step(kv_format, size, rng):
    x = tokens(rng, kv_format.head_dim) * np.float32(size) + np.float32(size)
    for found, bits in (
        (quantize_keys(x, kv_format, offsets(x)), kv_format.k_bits),
        (quantize_values(x, kv_format), kv_format.v_bits),
    ):
        step = np.repeat(found.scale, found.group, axis=3).astype(np.float64)
        # Half a step; three roundings of codes; those of zero points and of what is less the mean.
        bound = step * (0.5 + 2.0**bits * 3 * 2.0**-24) + 4 * np.abs(x).max() * 2.0**-24
        assert np.all(np.abs(found.dequantize() - x) <= bound)


def test_zero_points_give_equal_elements_back(rng):
    v = np.repeat(tokens(rng, 1), 64, axis=3)
    v[0, 0, 0] = 0
    found = quantize_values(v, ZERO)
    np.testing.assert_array_equal(found.codes, -8)
    np.testing.assert_allclose(found.dequantize(), v, rtol=2.0**-23)


def test_zero_points_halve_the_step_of_elements_of_one_sign(rng):
    v = np.abs(tokens(rng, 64))
    asymmetric = quantize_values(v, KVFormat(64, v_bits=4, v_zero=True))
    symmetric = quantize_values(v, KVFormat(64, v_bits=4))
    # (max - min) / 15 instead of max / 7
    assert np.all(asymmetric.scale <= symmetric.scale * 7 / 15)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kv_format", [FORMATS[0], KVFormat(64, 4, 4, group=32), ZERO], ids=str)
def test_poison_stays_in_its_group(kv_format, poison, rng):
    x = tokens(rng, 64)
    clean = quantize_values(x, kv_format)
    x[1, 2, 7, 40] = poison
    found = quantize_values(x, kv_format)
    group = 40 // found.group
    assert not np.isfinite(found.scale[1, 2, 7, group])
    assert found.codes[1, 2, 7, 40] == 0
    hit = np.zeros(x.shape, bool)
    hit[1, 2, 7, group * found.group : (group + 1) * found.group] = True
    np.testing.assert_array_equal(found.dequantize()[~hit], clean.dequantize()[~hit])
    assert not np.isfinite(found.dequantize()[1, 2, 7, 40])


def test_a_range_beyond_float32_has_no_finite_scale():
    v = np.zeros((1, 1, 1, 64), np.float32)
    v[..., :2] = -3e38, 3e38
    found = quantize_values(v, ZERO)
    assert np.isinf(found.scale[..., 0]).all()
    assert np.isfinite(found.scale[..., 1]).all()


def sample_of(count):
    return [i * count // 512 for i in range(512)] if count > 512 else list(range(count))


def test_offsets_are_means_from_the_fifth_token_on(rng):
    k = tokens(rng, 64, batch=5, count=1500) + 2
    counts = np.array([1500, 0, 1, 517, 4])
    for b, count in enumerate(counts):
        k[b, :, count:] = np.nan
    found = offsets(k, counts)
    assert found.dtype == np.float32
    for b, count in enumerate(counts):
        some = k[b][:, 4:][:, sample_of(count - 4)] if count > 4 else np.zeros((3, 1, 64))
        expected = some.astype(np.float64).mean(axis=1)
        np.testing.assert_allclose(found[b], np.broadcast_to(expected, (3, 64)), rtol=1e-6)
    of_sample = smoothing_vector(k[:1, :, 4:][:, :, sample_of(1496)], "mean")
    np.testing.assert_array_equal(offsets(k[:1]), of_sample)


@pytest.mark.parametrize("begin", [3, 16, 17, 40])
def test_offsets_are_fixed_when_there_are_enough_tokens(begin, rng):
    """At once, or with the append that goes beyond the first 128."""
    k = tokens(rng, 64, batch=1, count=600)
    vector, bare, length = np.zeros((1, 3, 64), np.float32), np.zeros(1, np.int64), 0
    for count in (begin, 9, 100, 28 - begin % 28, 300, 20):
        more = k[:, :, length : length + count]
        bare = bare_tokens([count], [length], bare)
        vector = offsets(more, None, [length], vector, bare)
        of = k[:, :, 4 : begin if begin > 16 else length + count].astype(np.float64)
        if begin > 16 or length <= FIRST_TOKENS:
            expected = of.mean(axis=2) if of.shape[2] else 0
        np.testing.assert_allclose(vector, np.broadcast_to(expected, vector.shape), atol=1e-6)
        assert bare.tolist() == [0 if begin > 16 else FIRST_TOKENS]
        length += count


def test_the_first_tokens_may_have_no_offset(rng):
    k = tokens(rng, 64, count=100)
    vector = offsets(k)
    found = quantize_keys(k, FORMATS[0], vector, [0, 100], [128, 128])
    with_it, without = (quantize_keys(k, FORMATS[0], x) for x in (vector, None))
    np.testing.assert_array_equal(found.codes[0], without.codes[0])
    np.testing.assert_array_equal(found.codes[1, :, :28], without.codes[1, :, :28])
    np.testing.assert_array_equal(found.codes[1, :, 28:], with_it.codes[1, :, 28:])
    whole = quantize_keys(k, FORMATS[0], vector, None, [0, 60]).dequantize()
    assert np.abs(whole - k).max() < 0.05


def test_offsets_of_poisoned_channels_are_zero(rng):
    k = tokens(rng, 64)
    k[0, 1, 7, 5] = np.inf
    found = offsets(k)
    assert found[0, 1, 5] == 0
    assert np.isfinite(found).all()


def test_tokens_are_quantized_one_by_one(rng):
    """What lets a cache grow: earlier tokens do not depend on later ones."""
    k, v = tokens(rng, 64), tokens(rng, 64)
    vector = offsets(k)
    whole = quantize_keys(k, ZERO, vector), quantize_values(v, ZERO)
    for t in range(k.shape[2]):
        one = slice(t, t + 1)
        keys = quantize_keys(k[:, :, one], ZERO, vector)
        values = quantize_values(v[:, :, one], ZERO)
        for x, y in zip(whole, (keys, values), strict=True):
            np.testing.assert_array_equal(x.codes[:, :, one], y.codes)
            np.testing.assert_array_equal(x.scale[:, :, one], y.scale)


@pytest.mark.parametrize("count", [0, 1])
def test_no_tokens_are_tokens(count):
    x = np.ones((1, 2, count, 64), np.float16)
    for found in (quantize_keys(x, ZERO, offsets(x)), quantize_values(x, ZERO)):
        assert found.dequantize().shape == x.shape
        np.testing.assert_allclose(found.dequantize(), 1, rtol=1e-6)


X = np.ones((2, 3, 4, 64), np.float32)
CODES, SCALE = X.astype(np.int8), X[..., :2]


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [
        ("k.shape", lambda: quantize_keys(X[0], ZERO)),
        ("k.shape", lambda: quantize_keys(X, KVFormat(128))),
        ("v.shape", lambda: quantize_values(X[..., :32], ZERO)),
        ("v.dtype", lambda: quantize_values(CODES, ZERO)),
        ("vector.shape", lambda: quantize_keys(X, ZERO, X[0, :, 0])),
        ("k.shape", lambda: offsets(X[0])),
        ("counts", lambda: offsets(X, [1])),
        ("counts", lambda: offsets(X, [1, 5])),
        ("counts", lambda: offsets(X, [-1, 4])),
        ("counts", lambda: offsets(X, [1.0, 2.0])),
        ("codes", lambda: CachedOperand(X, SCALE)),
        ("codes", lambda: CachedOperand(CODES[0], SCALE)),
        ("scale", lambda: CachedOperand(CODES, SCALE[:1])),
        ("scale", lambda: CachedOperand(CODES, X[..., :3])),
        ("scale", lambda: CachedOperand(CODES, X[..., :0])),
        ("zero", lambda: CachedOperand(CODES, SCALE, zero=X[..., :1])),
        ("vector", lambda: CachedOperand(CODES, SCALE, vector=X[:, :, 0, :32])),
    ],
)
def test_what_does_not_fit_is_refused(argument, wrong):
    with pytest.raises(ArgumentError) as error:
        wrong()
    assert error.value.argument == argument
