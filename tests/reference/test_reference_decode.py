"""Attention to the KV cache, against the emulation of scheme int8-token and exact attention."""

from dataclasses import replace

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.kv_format import UNIT_TOKENS, KVFormat
from cuattn.reference import emulate, exact
from cuattn.reference.decode import decode
from cuattn.reference.kv_cache import (
    fine_units,
    kept,
    quantize_keys,
    quantize_nested,
    quantize_values,
)
from cuattn.reference.kv_offsets import offsets
from cuattn.reference.quantize import Operands, Quantized, quantize
from cuattn.reference.rotation import rotate
from cuattn.reference.smoothing import lse_shift

FORMATS = [
    KVFormat(64),
    KVFormat(96, 4, 4),
    KVFormat(128, 4, 4, group=32),
    KVFormat(64, 8, 4, group=32, v_zero=True),
    KVFormat(256, 4, 4, group=64, v_zero=True),
]
every_format = pytest.mark.parametrize("kv_format", FORMATS, ids=str)
ZERO = FORMATS[3]
NESTED = KVFormat(64, 4, 4, group=32, rotate=True, nested=True)


def qkv(rng, head_dim=64, count=300, seqlen_q=4, batch=2, heads=2, group=3):
    def normal(heads, tokens):
        return rng.standard_normal((batch, heads, tokens, head_dim)).astype(np.float32)

    return normal(heads * group, seqlen_q), normal(heads, count) + 1, normal(heads, count) + 0.5


def cache(k, v, kv_format, smooth=True):
    vector = offsets(k) if smooth else None
    return quantize_keys(k, kv_format, vector), quantize_values(v, kv_format)


def emulated(q, k, v, is_causal=True, **options):
    """Attend to the codes of a format with one scale a token, as scheme int8-token has it."""
    keys = Quantized(k.codes, k.scale[..., 0], "token", vector=k.vector)
    values = Quantized(v.codes, v.scale[..., 0], "token")
    return emulate.emulate(
        Operands(quantize(q, scope="token"), keys, values),
        "int8-token",
        is_causal=is_causal,
        **options,
        lse_shift=lse_shift(q, k.vector, q.shape[3] ** -0.5),
    )


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def error(q, k, v, kv_format, smooth=True):
    """Relative L2 error of o, and the largest one of lse."""
    o, lse = decode(q, *cache(k, v, kv_format, smooth))
    expected_o, expected_lse = exact.attention(q, k, v, is_causal=True)
    return relative(o, expected_o), np.abs(lse - expected_lse).max()


@pytest.mark.parametrize("kv_format", FORMATS[:2], ids=str)
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("seqlen_q", "count"), [(1, 300), (7, 128), (130, 257), (9, 5)])
def test_it_is_the_emulation_of_int8_token(kv_format, smooth, is_causal, seqlen_q, count, rng):
    q, k, v = qkv(rng, kv_format.head_dim, count, seqlen_q)
    k, v = cache(k, v, kv_format, smooth)
    found = decode(q, k, v, is_causal=is_causal)
    for x, y in zip(found, emulated(q, k, v, is_causal=is_causal), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "options",
    [
        {"window_size": (130, 0), "is_causal": True},
        {"softcap": 2.0, "sinks": np.arange(6.0)},
        {"attn_mask": np.arange(300) % 5 > 0, "alibi_slopes": np.full(6, 0.1), "is_causal": True},
        {"attn_mask": np.where(np.arange(300) < 140, -np.inf, 0.5), "window_size": (-1, 2)},
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_options_are_those_of_the_emulation(options, workers, rng):
    q, k, v = qkv(rng)
    k, v = cache(k, v, FORMATS[0])
    options = {"is_causal": False, **options}
    found = decode(q, k, v, workers=workers, **options)
    for x, y in zip(found, emulated(q, k, v, **options), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


def test_windows_and_sinks_are_those_of_each_sequence(rng):
    q, k, v = qkv(rng, batch=3)
    lengths, sinks = np.array([300, 0, 150]), np.arange(6.0)
    options = {"window_size": (40, 0), "sinks": sinks, "is_causal": True}
    o, lse = decode(q, *cache(k, v, FORMATS[0]), lengths, **options)
    expected_o, expected_lse = exact.attention(q, k, v, seqused_k=lengths, **options)
    assert relative(o, expected_o) < 0.02
    np.testing.assert_allclose(lse, expected_lse, atol=0.05)
    assert not o[1].any()
    np.testing.assert_array_equal(lse[1], np.repeat(sinks[:, None], 4, axis=1))


@every_format
@pytest.mark.parametrize("workers", [1, 5])
def test_each_sequence_has_its_length(kv_format, workers, rng):
    q, k, v = qkv(rng, kv_format.head_dim, batch=5)
    lengths = np.array([300, 0, 128, 2, 129])
    for b, length in enumerate(lengths):
        k[b, :, length:] = v[b, :, length:] = np.nan
    vector = offsets(k, lengths)
    k, v = quantize_keys(k, kv_format, vector), quantize_values(v, kv_format)
    o, lse = decode(q, k, v, lengths, workers=workers)
    for b, length in enumerate(lengths):
        at = slice(b, b + 1), slice(None), slice(length)
        zero = None if v.zero is None else v.zero[at]
        alone = decode(
            q[at[0]],
            replace(k, codes=k.codes[at], scale=k.scale[at], vector=vector[at[0]]),
            replace(v, codes=v.codes[at], scale=v.scale[at], zero=zero),
        )
        np.testing.assert_allclose(o[b], alone[0][0], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(lse[b], alone[1][0], rtol=1e-12)
    # Of 4 queries after 2 tokens the first two see nothing.
    for b, hidden in ((1, 4), (3, 2)):
        assert not o[b, :, :hidden].any()
        assert np.all(lse[b, :, :hidden] == -np.inf)
        assert np.isfinite(lse[b, :, hidden:]).all()


@every_format
def test_heads_of_a_group_read_the_same_keys(kv_format, rng):
    q, k, v = qkv(rng, kv_format.head_dim)
    grouped = decode(q, *cache(k, v, kv_format))
    repeated = decode(q, *cache(np.repeat(k, 3, axis=1), np.repeat(v, 3, axis=1), kv_format))
    for x, y in zip(grouped, repeated, strict=True):
        np.testing.assert_array_equal(x, y)


def test_groups_of_v_are_attended_to_one_by_one(rng):
    q, k, v = qkv(rng, 128)
    keys, values = cache(k, v, KVFormat(128, 8, 4, group=32))
    o, lse = decode(q, keys, values)
    for g in range(4):
        at = slice(32 * g, 32 * (g + 1))
        scaled = replace(
            values, codes=np.zeros_like(values.codes), scale=values.scale[..., g, None]
        )
        scaled.codes[..., at] = values.codes[..., at]
        expected_o, expected_lse = emulated(q, keys, scaled)
        np.testing.assert_allclose(o[..., at], expected_o[..., at], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(lse, expected_lse, rtol=1e-12)


def test_groups_of_k_are_summed_with_their_scales(rng):
    """With V and P that need no rounding, attention to what the codes of Q and K stand for."""
    q, k, _ = qkv(rng, 128)
    v = np.zeros(k.shape, np.float32)
    k, v = cache(k, v, KVFormat(128, 4, 8, group=32), smooth=False)
    _, lse = decode(q, k, v)
    _, expected = exact.attention(
        quantize(q, scope="token").dequantize(), k.dequantize(), v.dequantize(), is_causal=True
    )
    np.testing.assert_allclose(lse, expected, rtol=1e-12)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("kv_format", [NESTED, KVFormat(64, rotate=True)], ids=str)
def test_logits_are_those_of_rotated_codes_and_of_the_offset(kv_format, softcap, rng):
    """Products of codes with zero points; that of the offset but for keys that have none."""
    q, k, v = qkv(rng, kv_format.head_dim, 200, seqlen_q=1)
    vector, bare = offsets(k), np.array([0, 128])
    if kv_format.nested:
        fine = np.broadcast_to(fine_units(200, 4, 1).repeat(UNIT_TOKENS)[:200], (2, 200))
        keys, values = (kept(x, fine) for x in quantize_nested(k, v, kv_format, vector, bare=bare))
        keys = replace(keys, vector=vector, bare=bare, rotated=True)
    else:
        keys = quantize_keys(k, kv_format, vector, bare=bare)
        values = quantize_values(v, kv_format)
    _, lse = decode(q, keys, values, softcap=softcap)
    rows = quantize(rotate(q), scope="token").dequantize()
    of_codes = np.repeat(replace(keys, vector=None, rotated=False).dequantize(), 3, axis=1)
    logits = rows @ of_codes.swapaxes(2, 3)
    of_offset = q.astype(np.float64) @ np.repeat(vector, 3, axis=1)[..., None]
    logits += of_offset * keys.has_offset()[:, None, None]
    logits /= np.sqrt(kv_format.head_dim)
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    np.testing.assert_allclose(lse, np.log(np.exp(logits).sum(axis=3)), rtol=1e-12)


@pytest.mark.parametrize("group", [0, 32])
def test_zero_points_add_their_mean_under_the_softmax(group, rng):
    q, k, v = qkv(rng)
    k, v = cache(k, v, KVFormat(64, 8, 4, group=group, v_zero=True))
    o, lse = decode(q, k, v)
    without, same_lse = decode(q, k, replace(v, zero=None))
    np.testing.assert_array_equal(lse, same_lse)
    rows = quantize(q, scope="token").dequantize()
    zeros = np.repeat(v.zero.astype(np.float64), v.group, axis=3)
    keys = replace(k, vector=None).dequantize()
    mean, _ = exact.attention(rows, keys, zeros, is_causal=True)
    np.testing.assert_allclose(o - without, mean, rtol=1e-11, atol=1e-13)


def test_equal_values_come_back_whatever_p_is(rng):
    """Their codes and P are rounded, but of zero points the whole is exact."""
    q, k, v = qkv(rng)
    v[:] = 3.0
    o, _ = decode(q, *cache(k, v, ZERO))
    np.testing.assert_allclose(o, 3.0, rtol=1e-7)


# Relative L2 error for normal K and V; section 13 of docs/numerics.md has formulas for them.
@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({}, 0.012, 0.016),
        ({"k_bits": 4}, 0.10, 0.14),
        ({"v_bits": 4}, 0.10, 0.135),
        ({"k_bits": 4, "v_bits": 4}, 0.15, 0.19),
        ({"k_bits": 4, "v_bits": 4, "group": 32}, 0.125, 0.155),
        ({"v_bits": 4, "v_zero": True}, 0.085, 0.115),
        ({"v_bits": 4, "v_zero": True, "group": 32}, 0.07, 0.095),
    ],
)
def test_error_for_normal_inputs(options, least, most, rng):
    q, k, v = qkv(rng, 128, 1024)
    of_o, of_lse = error(q, k, v - 0.5, KVFormat(128, **options))
    assert least <= of_o <= most
    assert of_lse <= (0.06 if options.get("k_bits") == 4 else 0.004)


def test_error_does_not_grow_with_length(rng):
    q, k, v = qkv(rng, 64, 8192, batch=1, heads=1, group=16)
    v -= 0.5
    for kv_format in (KVFormat(64), KVFormat(64, 4, 4)):
        short = error(q, k[:, :, :1024], v[:, :, :1024], kv_format)[0]
        assert error(q, k, v, kv_format)[0] <= 1.2 * short


def test_zero_points_help_values_with_a_mean(rng):
    q, k, v = qkv(rng, 128, 1024)
    bits = {"k_bits": 8, "v_bits": 4}
    without = error(q, k, v + 2, KVFormat(128, **bits))[0]
    assert error(q, k, v + 2, KVFormat(128, **bits, v_zero=True))[0] < 0.6 * without


@pytest.mark.parametrize("operand", ["k", "v"])
def test_groups_help_where_channels_are_uneven(operand, rng):
    q, k, v = qkv(rng, 128, 1024)
    few_are_large = np.where(np.arange(128) < 8, 16, 1).astype(np.float32)
    arrays = {"k": k - 1, "v": v - 0.5}
    arrays[operand] = arrays[operand] * few_are_large / (4 if operand == "k" else 1)
    bits = {"k_bits": 8, "v_bits": 8, f"{operand}_bits": 4}
    without = error(q, **arrays, kv_format=KVFormat(128, **bits))[0]
    assert error(q, **arrays, kv_format=KVFormat(128, **bits, group=32))[0] < 0.7 * without


def test_an_offset_of_the_first_tokens_serves_later_ones(rng):
    """Keys share a component that the first 50 show; lse has the offset's effect put back."""
    q, k, v = qkv(rng, 128, 1024)
    v -= 0.5
    common = 4 * rng.standard_normal(128).astype(np.float32)
    k += common
    expected_o, expected_lse = exact.attention(q, k, v, is_causal=True)
    for kv_format, largest in ((KVFormat(128), 0.004), (KVFormat(128, 4, 8), 0.06)):
        errors = []
        for vector in (offsets(k), offsets(k[:, :, :50]), None):
            o, lse = decode(q, quantize_keys(k, kv_format, vector), quantize_values(v, kv_format))
            errors.append(relative(o, expected_o))
            assert vector is None or np.abs(lse - expected_lse).max() <= largest
        whole, first, none = errors
        assert first <= 1.2 * whole
        assert none > 1.8 * whole


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("workers", [1, 3])
def test_poison_goes_where_it_is_seen(poison, workers, rng):
    q, k, v = qkv(rng, count=200, seqlen_q=40, batch=1, heads=1, group=1)

    def rows_hit(q, k, v):
        keys = quantize_keys(k, ZERO, offsets(k))
        o, lse = decode(q, keys, quantize_values(v, ZERO), workers=workers)
        return ~np.isfinite(o[0, 0]), ~np.isfinite(lse[0, 0])

    def poisoned(x, token):
        x = x.copy()
        x[0, 0, token, 40] = poison
        return x

    row, none = np.arange(40), np.zeros(40, bool)
    for arrays, hit_rows, channels, hit_lse in (
        ((poisoned(q, 5), k, v), row == 5, slice(None), row == 5),
        # Of 40 queries after 200 tokens number 20 is the first to see token 180.
        ((q, poisoned(k, 180), v), row >= 20, slice(None), row >= 20),
        ((q, k, poisoned(v, 180)), row >= 20, slice(32, 64), none),
    ):
        hit = np.zeros((40, 64), bool)
        hit[hit_rows, channels] = True
        found_o, found_lse = rows_hit(*arrays)
        np.testing.assert_array_equal(found_o, hit)
        np.testing.assert_array_equal(found_lse, hit_lse)


@every_format
@pytest.mark.parametrize("workers", [2, 3, 7, 29, 1000])
def test_any_number_of_workers_gives_the_same(kv_format, workers, rng):
    q, k, v = qkv(rng, kv_format.head_dim, 700, seqlen_q=3)
    lengths = [700, 391]
    k, v = cache(k, v, kv_format)
    whole = decode(q, k, v, lengths)
    shared = decode(q, k, v, lengths, workers=workers)
    for x, y in zip(whole, shared, strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("batch", "heads", "seqlen_q", "count"),
    [(0, 2, 3, 3), (1, 0, 3, 3), (1, 2, 0, 3), (1, 2, 3, 0)],
)
def test_nothing_may_be_empty(batch, heads, seqlen_q, count, rng):
    q, k, v = qkv(rng, count=count, seqlen_q=seqlen_q, batch=batch, heads=heads)
    o, lse = decode(q, *cache(k, v, ZERO))
    assert o.shape == q.shape
    assert not o.any()
    assert np.all(lse == -np.inf)


def test_progress_is_reported_to_the_end(rng):
    q, k, v = qkv(rng)
    calls = []
    decode(q, *cache(k, v, ZERO), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 4) for i in range(1, 5)]


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("q.dtype", {"q": np.ones((2, 6, 4, 64), np.int8)}),
        ("q.shape", {"q": np.ones((2, 6, 64), np.float32)}),
        ("q.shape", {"q": np.ones((2, 5, 4, 64), np.float32)}),
        ("k.shape", {"q": np.ones((2, 6, 4, 32), np.float32)}),
        ("lengths", {"lengths": [1, 2, 3]}),
        ("lengths", {"lengths": [1, 301]}),
        ("lengths", {"lengths": [-1, 3]}),
        ("lengths", {"lengths": [1.0, 3.0]}),
        ("scale", {"scale": np.inf}),
        ("workers", {"workers": 0}),
    ],
)
def test_what_does_not_fit_is_refused(argument, options, rng):
    q, k, v = qkv(rng)
    k, v = cache(k, v, ZERO)
    with pytest.raises(ArgumentError) as caught:
        decode(**{"q": q, "k": k, "v": v, **options})
    assert caught.value.argument == argument
