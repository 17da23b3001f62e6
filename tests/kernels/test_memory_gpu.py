"""What is written, where NaN and infinities reach, and how large inputs may be, on a GPU."""

import numpy as np
import pytest
from helpers.gpu_cases import SCHEMES, _kernels, arrays, every_preset, make, on_gpu, on_host  # noqa: F401

import cuattn
from cuattn.errors import ArgumentError
from cuattn.reference import exact
from cuattn.reference.sorting import scopes_of_order

pytestmark = pytest.mark.gpu


# ---- what is written


@every_preset
def test_inputs_are_never_written(cupy, rng, scheme):
    inputs = arrays(rng, heads=(4, 2), seqlens=(129, 257), head_dim=72)
    before = [on_host(x) for x in inputs]
    for layout in ("HND", "NHD"):
        given = [x if layout == "HND" else x.transpose(0, 2, 1, 3) for x in inputs]
        cuattn.attention(*given, scheme=scheme, layout=layout, is_causal=True, return_lse=True)
    for x, was in zip(inputs, before, strict=True):
        assert on_host(x).tobytes() == was.tobytes()


@every_preset
def test_only_the_output_is_written(cupy, rng, scheme):
    q, k, v = arrays(rng, seqlens=(129, 257), head_dim=40)
    marker = 123.0
    around = cupy.full((q.shape[0], q.shape[1], q.shape[2] + 8, 56), marker, q.dtype)
    inside = around[:, :, 4:-4, 8:48]
    cuattn.attention(q, k, v, scheme=scheme, out=inside)
    np.testing.assert_array_equal(
        on_host(inside), on_host(cuattn.attention(q, k, v, scheme=scheme))
    )
    inside[...] = marker
    assert bool((around == marker).all())


def test_refused_calls_touch_nothing(cupy, rng):
    q, k, v = arrays(rng)
    out = cupy.full_like(q, 5)
    for call in (
        {"scale": -1.0},
        {"scheme": "int3"},
        {"is_causal": "no"},
        {"check_finite": True},
    ):
        given = (q, k, v) if "check_finite" not in call else (q, k, v * np.float16(np.inf))
        with pytest.raises(ArgumentError):
            cuattn.attention(*given, out=out, **call)
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of q"):
        cuattn.attention(k, k, v, out=k)
    assert bool((out == 5).all())


# ---- NaN and infinities


def first_that_shares(token, k, v, how):
    """Return the first token with the scale of another one in head 0, if keys are sorted."""
    if how.k_scope != "sorted":
        return token
    order = on_host(cuattn.quantize_kv(k, v, scheme=how)[0].order)
    scopes = scopes_of_order(order, k.shape[2])[0, 0]
    return int(np.flatnonzero(scopes == scopes[token])[0])


@every_preset
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_in_a_query_stays_in_its_row(rng, scheme, poison):
    q, k, v = arrays(rng)
    clean, clean_lse = map(on_host, cuattn.attention(q, k, v, scheme=scheme, return_lse=True))
    q[0, 1, 77, 5] = poison
    o, lse = map(on_host, cuattn.attention(q, k, v, scheme=scheme, return_lse=True))
    assert np.isnan(o[0, 1, 77]).all()
    assert np.isnan(lse[0, 1, 77])
    if SCHEMES[scheme].q_scope == "tensor":
        assert np.isnan(o[0, 1]).all()
        o[0, 1], lse[0, 1] = clean[0, 1], clean_lse[0, 1]
    for x, y in ((o, clean), (lse, clean_lse)):
        x[0, 1, 77] = y[0, 1, 77]
        if SCHEMES[scheme].smooth_q == "block":
            # Its channel is not smoothed, in all rows of the block.
            assert np.isfinite(x).all()
            x[0, 1, :128] = y[0, 1, :128]
        np.testing.assert_array_equal(x, y)


@every_preset
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_in_a_key_reaches_the_rows_that_see_it(rng, scheme, poison):
    q, k, v = arrays(rng, heads=(2, 2), seqlens=(600, 600))
    clean = on_host(cuattn.attention(q, k, v, scheme=scheme, is_causal=True))
    k[0, 0, 450, 2] = poison
    o = on_host(cuattn.attention(q, k, v, scheme=scheme, is_causal=True))
    how = SCHEMES[scheme]
    # A scale per block of 128 keys makes the whole block unusable. Of those that share it with the
    # key 450 in SageAttention2's way it is the first; sorted keys share that of a section.
    of_sorted = first_that_shares(450, k, v, how)
    scopes = {"token": 450, "thread": 450, "sorted": of_sorted, "block": 384, "tensor": 0}
    first = scopes[how.k_scope]
    hit = np.isnan(o[0, 0]).any(axis=1)
    if how.qk == "fp16" and poison == np.inf:
        # Unquantized, the logit is negative for some rows, which then give the key no weight.
        assert hit[first:].any()
        assert not hit[:first].any()
    else:
        np.testing.assert_array_equal(hit, np.arange(600) >= first)
    np.testing.assert_array_equal(o[0, 1], clean[0, 1])
    if how.smooth_k == "none":
        np.testing.assert_array_equal(o[0, 0, :first], clean[0, 0, :first])


@every_preset
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poison_in_a_value_reaches_as_far_as_its_scale(rng, scheme, poison):
    q, k, v = arrays(rng, heads=(2, 2), seqlens=(600, 600))
    v[0, 0, 450, 2] = poison
    o = on_host(cuattn.attention(q, k, v, scheme=scheme, is_causal=True))
    how = SCHEMES[scheme]
    bad = ~np.isfinite(o[0, 0])
    if how.pv != "fp16" and how.v_scope == "tensor":
        assert bad.all()
    elif how.pv != "fp16" and how.v_scope == "channel":
        assert bad[:, 2].all()
        assert not np.delete(bad, 2, axis=1).any()
    else:
        seen = np.arange(600) >= first_that_shares(450, k, v, how)
        if how.pv == "int8":
            np.testing.assert_array_equal(bad, np.broadcast_to(seen[:, None], bad.shape))
        else:
            # 0 * NaN in the products of a tile of keys: rows of the same tile may be hit as well.
            assert bad[seen, 2].all()
            assert not bad[:384].any()
            assert not np.delete(bad, 2, axis=1).any()
    assert np.isfinite(o[0, 1]).all()


@every_preset
def test_poison_where_no_row_looks_has_no_effect(rng, scheme):
    q, k, v = arrays(rng, heads=(2, 2), seqlens=(300, 37))
    v[...] = np.nan
    o, lse = cuattn.attention(q, k, v, scheme=scheme, is_causal=True, return_lse=True)
    assert not on_host(o)[:, :, :200].any()
    assert (on_host(lse)[:, :, :263] == -np.inf).all()


def test_check_finite_names_the_input(rng):
    for dtype in ("float16", "float32", "bfloat16"):
        for which, name in enumerate("qkv"):
            given = arrays(rng, dtype)
            cuattn.attention(*given, check_finite=True)
            poisoned = on_host(given[which])
            poisoned[0, 1, 2, 3] = np.nan
            given[which] = on_gpu(poisoned, dtype)
            with pytest.raises(ArgumentError, match=f"^{name} must be without NaN and infinity"):
                cuattn.attention(*given, check_finite=True)


# ---- sizes


def test_many_heads_and_batches(rng):
    """Grids along all three axes, and more CTAs than the GPU holds at a time."""
    inputs = make(rng, batch=3, heads=(40, 20), seqlens=(130, 70), head_dim=32)
    o = on_host(cuattn.attention(*(on_gpu(x, "float16") for x in inputs)))
    rounded = [x.astype(np.float16) for x in inputs]
    truth, _ = exact.attention(*rounded)
    assert np.abs(o - truth).sum() <= 0.02 * np.abs(truth).sum()


@pytest.mark.alone
def test_addresses_beyond_32_bits(cupy):
    """Eight gigabytes of V, of which the last head counts."""
    free, _ = cupy.cuda.runtime.memGetInfo()
    if free < 24 << 30:
        pytest.skip("takes 24 GiB")
    heads, n, d = 2048, 16384, 128
    kv = cupy.zeros((1, heads, n, d), cupy.float16)
    kv[0, -1] = cupy.asarray(np.random.default_rng(0).standard_normal((n, d)), cupy.float16)
    q = cupy.zeros((1, heads, 1, d), cupy.float16)
    q[0, -1] = cupy.asarray(np.random.default_rng(1).standard_normal((1, d)), cupy.float16)
    for scheme in ("int8", "int8-block", "fp16"):
        o = cuattn.attention(q, kv, kv, scheme=scheme)
        alone = cuattn.attention(q[:, -1:], kv[:, -1:], kv[:, -1:], scheme=scheme)
        np.testing.assert_array_equal(on_host(o[:, -1:]), on_host(alone))
        assert not bool(o[:, :-1].any())
        del o, alone
        cupy.get_default_memory_pool().free_all_blocks()
