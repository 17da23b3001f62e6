"""`exact.attention` against the formula in 50 digits, and its answers in the corners."""

import itertools

import mpmath
import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.reference import exact


def in_50_digits(q, k, v, scale, is_causal):
    """Attention by its definition, one sum after the other."""
    _, num_q_heads, seqlen_q, head_dim = q.shape
    seqlen_kv = k.shape[2]
    group = num_q_heads // k.shape[1]
    o = np.zeros(q.shape)
    lse = np.full(q.shape[:3], -np.inf)
    with mpmath.workdps(50):
        for b, h, i in np.ndindex(*q.shape[:3]):
            keys = [j for j in range(seqlen_kv) if not is_causal or j <= i + seqlen_kv - seqlen_q]
            if not keys:
                continue
            q_row = [mpmath.mpf(float(x)) for x in q[b, h, i]]
            weights = []
            for j in keys:
                k_row = [mpmath.mpf(float(x)) for x in k[b, h // group, j]]
                weights.append(mpmath.exp(mpmath.mpf(scale) * mpmath.fdot(q_row, k_row)))
            total = mpmath.fsum(weights)
            lse[b, h, i] = mpmath.log(total)
            for d in range(head_dim):
                values = [mpmath.mpf(float(v[b, h // group, j, d])) for j in keys]
                o[b, h, i, d] = mpmath.fdot(weights, values) / total
    return o, lse


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# Logits from almost equal to far beyond what exp can represent unshifted (exp overflows at 709).
@pytest.mark.parametrize("magnitude", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("is_causal", [False, True])
def test_exact_agrees_with_50_digits(magnitude, is_causal):
    q, k, v = normal(1, 2, 5, 3), normal(1, 2, 5, 3, seed=1), normal(1, 2, 5, 3, seed=2)
    o, lse = exact.attention(q, k, v, scale=magnitude, is_causal=is_causal, block=2)
    expected_o, expected_lse = in_50_digits(q, k, v, magnitude, is_causal)
    # A logit of size L carries an error of about L·2^-52, which exp turns into a relative one.
    tolerance = max(magnitude, 1.0) * 1e-14
    np.testing.assert_allclose(o, expected_o, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("seqlen_q", "seqlen_kv"), [(3, 7), (7, 3), (1, 4), (4, 1), (5, 5)])
def test_exact_aligns_the_causal_mask_at_the_bottom_right(seqlen_q, seqlen_kv):
    q = normal(1, 1, seqlen_q, 4)
    k, v = normal(1, 1, seqlen_kv, 4, seed=1), normal(1, 1, seqlen_kv, 4, seed=2)
    o, lse = exact.attention(q, k, v, is_causal=True, block=2)
    expected_o, expected_lse = in_50_digits(q, k, v, 0.5, True)
    np.testing.assert_allclose(o, expected_o, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-13, atol=1e-14)
    blind = max(seqlen_q - seqlen_kv, 0)
    assert not o[:, :, :blind].any()
    assert np.all(lse[:, :, :blind] == -np.inf)


def test_exact_shares_heads_among_groups_of_queries():
    q = normal(2, 6, 3, 4)
    k, v = normal(2, 2, 5, 4, seed=1), normal(2, 2, 5, 4, seed=2)
    grouped = exact.attention(q, k, v)
    repeated = exact.attention(q, np.repeat(k, 3, axis=1), np.repeat(v, 3, axis=1))
    for x, y in zip(grouped, repeated, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("is_causal", [False, True])
def test_exact_does_not_depend_on_its_block(is_causal):
    q, k, v = normal(1, 1, 37, 8), normal(1, 1, 53, 8, seed=1), normal(1, 1, 53, 8, seed=2)
    whole = exact.attention(q, k, v, is_causal=is_causal)
    for block in (1, 7, 64):
        parts = exact.attention(q, k, v, is_causal=is_causal, block=block)
        for x, y in zip(whole, parts, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("batch", "seqlen_q", "seqlen_kv"), [(0, 3, 3), (1, 0, 3), (1, 3, 0)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_exact_accepts_empty_lengths(batch, seqlen_q, seqlen_kv, is_causal):
    q, kv = normal(batch, 2, seqlen_q, 4), normal(batch, 1, seqlen_kv, 4)
    o, lse = exact.attention(q, kv, kv, is_causal=is_causal)
    assert o.shape == q.shape
    assert not o.any()
    assert np.all(lse == -np.inf)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_exact_keeps_hidden_poison_hidden(poison):
    q, k, v = normal(1, 1, 4, 3), normal(1, 1, 4, 3, seed=1), normal(1, 1, 4, 3, seed=2)
    clean_o, clean_lse = exact.attention(q, k, v, is_causal=True)
    k[0, 0, 2] = poison
    v[0, 0, 3, 1] = poison
    o, lse = exact.attention(q, k, v, is_causal=True)
    np.testing.assert_array_equal(o[0, 0, :2], clean_o[0, 0, :2])
    np.testing.assert_array_equal(lse[0, 0, :2], clean_lse[0, 0, :2])
    assert not np.isfinite(o[0, 0, 3, 1])


def test_exact_confines_nan_in_q_to_its_row_and_in_v_to_its_channel():
    q, k, v = normal(1, 1, 4, 3), normal(1, 1, 4, 3, seed=1), normal(1, 1, 4, 3, seed=2)
    q[0, 0, 1, 0] = np.nan
    v[0, 0, 2, 2] = np.nan
    o, lse = exact.attention(q, k, v)
    nan = np.zeros((4, 3), bool)
    nan[1, :] = nan[:, 2] = True
    np.testing.assert_array_equal(np.isnan(o[0, 0]), nan)
    np.testing.assert_array_equal(np.isnan(lse[0, 0]), [False, True, False, False])


def test_exact_reports_progress_to_the_end():
    calls = []
    q = normal(1, 2, 10, 4)
    exact.attention(q, q, q, block=4, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 6) for i in range(1, 7)]


def test_exact_takes_half_precision_inputs():
    q = normal(1, 1, 6, 4).astype(np.float16)
    o, lse = exact.attention(q, q, q)
    wide = q.astype(np.float64)
    np.testing.assert_array_equal(o, exact.attention(wide, wide, wide)[0])
    assert o.dtype == lse.dtype == np.float64


BAD_SHAPES = [
    ((1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4), "q.shape"),
    ((1, 2, 3, 4), (1, 2, 3, 8), (1, 2, 3, 8), "k.shape"),
    ((1, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4), "k.shape"),
    ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 5, 4), "v.shape"),
    ((1, 3, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), "q.shape"),
    ((1, 2, 3, 0), (1, 2, 3, 0), (1, 2, 3, 0), "q.shape"),
    ((1, 2, 3, 4), (1, 0, 3, 4), (1, 0, 3, 4), "q.shape"),
]


@pytest.mark.parametrize(("q", "k", "v", "argument"), BAD_SHAPES)
def test_exact_refuses_shapes_that_do_not_fit(q, k, v, argument):
    with pytest.raises(ArgumentError, match=f"^{argument} must be") as error:
        exact.attention(np.zeros(q), np.zeros(k), np.zeros(v))
    assert error.value.argument == argument


@pytest.mark.parametrize(
    ("options", "argument"),
    [({"scale": np.inf}, "scale"), ({"scale": "1"}, "scale"), ({"block": 0}, "block")],
)
def test_exact_refuses_options_that_make_no_sense(options, argument):
    q = normal(1, 1, 2, 2)
    with pytest.raises(ArgumentError, match=f"^{argument} must be"):
        exact.attention(q, q, q, **options)


def test_exact_refuses_integers():
    x = np.ones((1, 1, 2, 2))
    for position, name in itertools.product(range(3), [np.int64, bool]):
        arrays = [x, x, x]
        arrays[position] = x.astype(name)
        with pytest.raises(ArgumentError, match=r"^[qkv]\.dtype must be a floating-point type"):
            exact.attention(*arrays)
