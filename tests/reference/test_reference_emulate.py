"""What `emulate` must do under every scheme, whatever the numbers."""

from dataclasses import replace

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.presets import PRESETS
from cuattn.reference import emulate, exact
from cuattn.reference.quantize import operands, quantize, sorted_tokens
from cuattn.reference.smoothing import lse_shift
from cuattn.reference.sorting import scopes_of_order
from cuattn.scheme import Scheme

SCHEMES = [
    *PRESETS.values(),
    Scheme("running", v_scope="channel", p_range="row", smooth_v="mean"),
    Scheme("tensor", q_scope="tensor", k_scope="tensor", smooth_k="none"),
]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def qkv(seqlen_q=20, seqlen_kv=150, head_dim=16, num_q_heads=1):
    return (
        normal(1, num_q_heads, seqlen_q, head_dim),
        normal(1, 1, seqlen_kv, head_dim, seed=1) + 1,
        normal(1, 1, seqlen_kv, head_dim, seed=2) + 1,
    )


def first_that_shares(token, k, v, scheme):
    """Return the first token with the scale of another one, if keys are sorted."""
    if scheme.k_scope != "sorted":
        return token
    order = sorted_tokens(k, v, scheme)
    scopes = scopes_of_order(order, k.shape[2])[0, 0]
    return int(np.flatnonzero(scopes == scopes[token])[0])


@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
def test_emulate_without_rounding_is_exact(scheme, is_causal):
    """Smoothing, scales in the exponent and block maxima are identities in real arithmetic."""
    q, k, v = qkv(num_q_heads=2)
    ops = operands(q, k, v, scheme, exact=("q", "k", "v"))
    vector = getattr(ops.k, "vector", None)
    o, lse = emulate.emulate(
        ops,
        scheme,
        is_causal=is_causal,
        lse_shift=lse_shift(q, vector, 16**-0.5),
        round_p=False,
    )
    expected_o, expected_lse = exact.attention(q, k, v, is_causal=is_causal)
    np.testing.assert_allclose(o, expected_o, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-12, atol=1e-13)


@every_scheme
def test_emulate_does_not_depend_on_how_rows_are_grouped(scheme, monkeypatch):
    q, k, v = qkv()
    whole = emulate.attention(q, k, v, scheme=scheme, is_causal=True)
    monkeypatch.setattr(emulate, "ROWS", 3)
    parts = emulate.attention(q, k, v, scheme=scheme, is_causal=True)
    for x, y in zip(whole, parts, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13)


@every_scheme
@pytest.mark.parametrize(("batch", "seqlen_q", "seqlen_kv"), [(0, 3, 3), (1, 0, 3), (1, 3, 0)])
def test_emulate_accepts_empty_lengths(scheme, batch, seqlen_q, seqlen_kv):
    q, kv = normal(batch, 2, seqlen_q, 8), normal(batch, 1, seqlen_kv, 8)
    o, lse = emulate.attention(q, kv, kv, scheme=scheme)
    assert o.shape == q.shape
    assert not o.any()
    assert np.all(lse == -np.inf)


@every_scheme
def test_emulate_gives_zero_to_rows_that_see_no_key(scheme):
    q, k, v = qkv(seqlen_q=7, seqlen_kv=3)
    q[0, 0, 1] = np.nan
    o, lse = emulate.attention(q, k, v, scheme=scheme, is_causal=True)
    assert not o[0, 0, :4].any()
    assert np.all(lse[0, 0, :4] == -np.inf)
    # A scale of all these rows makes the others NaN.
    shared = scheme.q_scope in ("block", "tensor")
    assert (np.isnan if shared else np.isfinite)(o[0, 0, 4:]).all()


@every_scheme
def test_emulate_confines_nan_of_a_query_to_its_scope(scheme):
    q, k, v = qkv()
    clean_o, clean_lse = emulate.attention(q, k, v, scheme=scheme)
    q[0, 0, 3, 5] = np.nan
    o, lse = emulate.attention(q, k, v, scheme=scheme)
    hit = {"token": [3], "thread": [3, 11, 19]}.get(scheme.q_scope, range(20))
    assert np.isnan(o[0, 0, hit]).all()
    assert np.isnan(lse[0, 0, hit]).all()
    others = np.delete(np.arange(20), hit)
    assert np.isfinite(o[0, 0, others]).all()
    assert np.isfinite(lse[0, 0, others]).all()
    if scheme.smooth_q == "none":  # else they have another mean
        np.testing.assert_array_equal(o[0, 0, others], clean_o[0, 0, others])
        np.testing.assert_array_equal(lse[0, 0, others], clean_lse[0, 0, others])


@every_scheme
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_emulate_carries_poison_of_a_key_to_the_rows_that_see_it(scheme, poison):
    q, k, v = qkv(seqlen_q=150, seqlen_kv=150)
    k[0, 0, 139, 2] = poison
    o, _ = emulate.attention(q, k, v, scheme=scheme, is_causal=True)
    # The last 11 rows see the key. Before them there are others that see a key of its scale.
    of_sorted = first_that_shares(139, k, v, scheme)
    first = {"token": 139, "thread": 130, "sorted": of_sorted, "block": 128, "tensor": 0}
    sees = np.arange(150) >= first[scheme.k_scope]
    if scheme.qk == "fp16" and poison == np.inf:
        # Unquantized, an infinite logit is negative for about half of the rows: weight 0.
        assert np.isfinite(o[0, 0, ~sees]).all()
        assert np.isnan(o[0, 0, sees]).any()
    else:
        np.testing.assert_array_equal(np.isnan(o[0, 0]).any(axis=1), sees)


@every_scheme
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_emulate_carries_poison_of_a_value_as_far_as_its_scale_reaches(scheme, poison):
    q, k, v = qkv(seqlen_q=140, seqlen_kv=140)
    v[0, 0, 130, 2] = poison
    o, lse = emulate.attention(q, k, v, scheme=scheme, is_causal=True)
    hit = np.zeros((140, 16), bool)
    of_sorted = first_that_shares(130, k, v, scheme)
    first = {"token": 130, "sorted": of_sorted, "block": 128}
    if scheme.pv == "fp16":
        hit[130:, 2] = True
    elif scheme.v_scope in first:
        hit[first[scheme.v_scope] :] = True
    elif scheme.v_scope == "channel":
        hit[:, 2] = True
    else:
        hit[:] = True
    np.testing.assert_array_equal(~np.isfinite(o[0, 0]), hit)
    assert np.isfinite(lse).all()


@every_scheme
def test_emulate_reads_the_head_of_its_group(scheme):
    q = normal(1, 4, 9, 8)
    k, v = normal(1, 2, 30, 8, seed=1), normal(1, 2, 30, 8, seed=2)
    grouped = emulate.attention(q, k, v, scheme=scheme)
    repeated = emulate.attention(q, np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1), scheme=scheme)
    for x, y in zip(grouped, repeated, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "preset", ["int8", "int8-token", "int8-block", "int8-two-term", "sage-vb", "twin"]
)
def test_emulate_sums_the_largest_codes_exactly(preset):
    """D = 256 and 128 keys of codes 127, P at its maximum: 255 steps nearly fill 22 bits."""
    scheme = replace(PRESETS[preset], smooth_k="none", smooth_v="none", rotate="none")
    ones = np.ones((1, 1, 128, 256), np.float32)
    o, lse = emulate.attention(ones, ones, ones, scheme=scheme)
    one = 127 * float(np.float32(1) / np.float32(127))
    np.testing.assert_allclose(o, one, rtol=1e-15)
    np.testing.assert_allclose(lse, 16 * one**2 + np.log(128), rtol=1e-15)


def test_emulate_is_exact_for_constant_v_with_v_smoothing():
    q, k, _ = qkv()
    v = np.broadcast_to(normal(16), (1, 1, 150, 16))
    o, _ = emulate.attention(q, k, v, scheme="int8-block")
    # The mean of equal numbers is that number, so the codes are all 0.
    np.testing.assert_array_equal(o, np.broadcast_to(v[:, :, :1], o.shape))


def test_emulate_is_not_disturbed_by_a_zero_token_of_v():
    """Its scale is tiny; a scale of 1 would take the whole range of P in its block."""
    q, k, v = qkv()
    v *= 1e-3
    v[0, 0, 17] = 0
    o, _ = emulate.attention(q, k, v, scheme="int8")
    expected, _ = exact.attention(q, k, v)
    assert np.abs(o - expected).sum() / np.abs(expected).sum() < 0.01


def test_emulate_corrects_lse_for_smoothing():
    q, k, v = qkv()
    k += 20 * normal(16, seed=9)
    _, expected = exact.attention(q, k, v)
    for preset in ("int8", "int8-token", "int8-block", "int8-fp16", "sage-t", "sage2-8"):
        _, lse = emulate.attention(q, k, v, scheme=preset)
        assert np.abs(lse - expected).max() < 0.02
    # Unsmoothed, the common vector uses up the codes' range.
    _, lse = emulate.attention(q, k, v, scheme="int-flash")
    assert np.abs(lse - expected).max() > 0.1


def test_emulate_rounds_to_bfloat16_on_request():
    q, k, v = qkv()
    expected, _ = exact.attention(q, k, v)
    error = {}
    for compute in ("float16", "bfloat16"):
        o, _ = emulate.attention(q, k, v, scheme="fp16", compute=compute)
        error[compute] = np.abs(o - expected).sum() / np.abs(expected).sum()
    # Three fewer bits: eight times the error, give or take.
    assert 4 < error["bfloat16"] / error["float16"] < 16
    # INT8 schemes multiply P and V in float16 whatever the inputs are.
    same = [emulate.attention(q, k, v, scheme="int8-fp16", compute=c)[0] for c in error]
    np.testing.assert_array_equal(*same)


def test_emulate_takes_bfloat16_arrays():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    narrow = [x.astype(ml_dtypes.bfloat16) for x in qkv()]
    wide = [x.astype(np.float32) for x in narrow]
    o, _ = emulate.attention(*narrow, scheme="fp16")
    np.testing.assert_array_equal(o, emulate.attention(*wide, scheme="fp16", compute="bfloat16")[0])


def test_emulate_reports_progress_to_the_end():
    calls = []
    q, k, v = qkv(seqlen_q=1025, seqlen_kv=2)
    emulate.attention(q, k, v, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_emulate_refuses_operands_of_another_scheme():
    q, k, v = qkv()
    ops = operands(q, k, v, "int8-token")
    for scheme, argument in (
        ("int8", "ops.k.scope"),
        ("int8-block", "ops.k.scope"),
        ("fp16", "ops.q.scope"),
        ("int-flash", "ops.v.scope"),
        ("int8-fp16", "ops.v.scope"),
        ("fp8", "ops.q.scope"),
        ("sage2-8", "ops.q.scope"),
        ("sage-vb", "ops.q.scope"),
    ):
        with pytest.raises(ArgumentError) as error:
            emulate.emulate(ops, scheme)
        assert error.value.argument == argument
    with pytest.raises(ArgumentError, match=r"^ops\.v\.codes must be of float32 as fp8 codes"):
        emulate.emulate(operands(q, k, v, "int8-fast"), "int8-fp8")
    small = operands(q, k, v, "int8-block")
    small = replace(small, k=quantize(k, scope="block", block=64))
    with pytest.raises(ArgumentError, match=r"^ops\.k\.block must be 128"):
        emulate.emulate(small, "int8-block")


def test_emulate_refuses_unknown_names():
    q, k, v = qkv()
    with pytest.raises(ArgumentError, match=r"^scheme must be"):
        emulate.attention(q, k, v, scheme="int3")
    with pytest.raises(ArgumentError, match=r"^compute must be"):
        emulate.attention(q, k, v, scheme="fp16", compute="float8")
