"""Attention on the GPU: against the emulation of the same codes, exact attention, and itself."""

import numpy as np
import pytest
from helpers.gpu_cases import (
    DTYPES,
    OF_LENGTHS,
    SCHEMES,
    _kernels,  # noqa: F401
    assert_close,
    assert_runs_are_bit_identical,
    assert_same,
    assert_same_lse,
    check,
    emulated,
    every_preset,
    every_scheme,
    make,
    on_gpu,
    on_host,
    quantized,
    relative_l1,
    run,
    tolerance,
)

import cuattn
from cuattn.reference import exact

pytestmark = pytest.mark.gpu

# Padded or not, and every size that has a kernel.
HEAD_DIMS = (8, 32, 40, 64, 96, 104, 128, 192, 200, 256)

# (queries, keys): one tile and its neighbours, one key, many more of one than of the other.
LENGTHS = [
    (1, 1),
    (128, 128),
    (129, 127),
    (37, 129),
    (300, 300),
    (1, 300),
    (300, 37),
    (127, 1),
    (65, 257),
]
HEADS = [(2, 2), (4, 2), (3, 1)]


@pytest.mark.covering
@every_scheme
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_matches_emulation(rng, scheme, head_dim, is_causal):
    # Lengths and heads take turns, so that each meets each head_dim and mask under some scheme.
    first = list(SCHEMES).index(scheme) + HEAD_DIMS.index(head_dim)
    for turn in range(3):
        seqlens = LENGTHS[(3 * first + turn) % len(LENGTHS)]
        inputs = make(rng, batch=2, heads=HEADS[turn], seqlens=seqlens, head_dim=head_dim)
        arrays = [on_gpu(x, "float32") for x in inputs]
        check(run(arrays, scheme, is_causal=is_causal), arrays, scheme, is_causal=is_causal)


@pytest.mark.covering
@every_scheme
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_type_is_taken_and_returned(rng, scheme, dtype, head_dim):
    inputs = make(rng, heads=(4, 2), seqlens=(150, 290), head_dim=head_dim)
    arrays = [on_gpu(x, dtype) for x in inputs]
    o, lse = run(arrays, scheme, scale=0.2)
    assert o.dtype == arrays[0].dtype
    assert lse.dtype == np.float32
    check((o, lse), arrays, scheme, scale=0.2)


@pytest.mark.covering(seqlens=OF_LENGTHS)
@every_scheme
@pytest.mark.parametrize("seqlens", LENGTHS, ids=str)
def test_every_length_under_the_mask(rng, scheme, seqlens):
    arrays = [on_gpu(x, "float16") for x in make(rng, heads=(2, 1), seqlens=seqlens)]
    check(run(arrays, scheme, is_causal=True), arrays, scheme, is_causal=True)


@every_preset
@pytest.mark.parametrize("seqlens", [(0, 5), (5, 0), (0, 0)])
def test_empty_lengths(rng, scheme, seqlens):
    arrays = [on_gpu(x, "float16") for x in make(rng, seqlens=seqlens)]
    o, lse = run(arrays, scheme)
    assert o.shape == arrays[0].shape
    assert not on_host(o).any()
    assert (on_host(lse) == -np.inf).all()


@every_preset
def test_rows_that_see_no_key_are_zero(rng, scheme):
    arrays = [on_gpu(x, "float16") for x in make(rng, seqlens=(300, 37))]
    o, lse = map(on_host, run(arrays, scheme, is_causal=True))
    assert not o[:, :, :263].any()
    assert (lse[:, :, :263] == -np.inf).all()
    assert np.isfinite(lse[:, :, 263:]).all()


# How arrays [batch, head, token, head_dim] of the same values can lie in memory.
def gaps_aligned(x):
    return padded(x, 8, 8)


def gaps_odd(x):
    return padded(x, 3, 6)


def padded(x, before, after):
    import cupy

    wide = cupy.pad(x, [(0, 0)] * 3 + [(before, after)])
    return wide[..., before : before + x.shape[3]]


def heads_inside(x):
    import cupy

    return cupy.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


def batch_inside(x):
    import cupy

    return cupy.ascontiguousarray(x.transpose(2, 1, 0, 3)).transpose(2, 1, 0, 3)


def tokens_backwards(x):
    import cupy

    return cupy.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1]


def columns_apart(x):
    return x.repeat(2, axis=3)[..., ::2]


MEMORY = [
    gaps_aligned,
    gaps_odd,
    heads_inside,
    batch_inside,
    tokens_backwards,
    columns_apart,
]


@pytest.mark.covering
@every_preset
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("which", range(4), ids=["q", "k", "v", "out"])
def test_strides_change_nothing(rng, scheme, memory, which):
    inputs = make(rng, batch=2, heads=(4, 2), seqlens=(70, 140), head_dim=72)
    arrays = [on_gpu(x, "float16") for x in inputs]
    o, lse = run(arrays, scheme)
    if which < 3:
        arrays[which] = memory(arrays[which])
        again, again_lse = run(arrays, scheme)
    else:
        out = memory(arrays[0] * 0)
        again, again_lse = run(arrays, scheme, out=out)
        assert again is out
    np.testing.assert_array_equal(on_host(again), on_host(o))
    np.testing.assert_array_equal(on_host(again_lse), on_host(lse))


@every_preset
@pytest.mark.parametrize("dtype", DTYPES)
def test_layout_nhd_is_the_same_transposed(rng, scheme, dtype):
    import cupy

    arrays = [on_gpu(x, "float32") for x in make(rng, batch=2, heads=(4, 2), seqlens=(70, 140))]
    given = [cupy.ascontiguousarray(x.transpose(0, 2, 1, 3)) for x in arrays]
    arrays, given = ([on_gpu(on_host(x), dtype) for x in some] for some in (arrays, given))
    o, lse = run(arrays, scheme)
    nhd, nhd_lse = run(given, scheme, layout="NHD")
    assert nhd.flags.c_contiguous
    np.testing.assert_array_equal(on_host(nhd).swapaxes(1, 2), on_host(o))
    np.testing.assert_array_equal(on_host(nhd_lse), on_host(lse))


@every_scheme
def test_quantized_tensors_give_identical_results(rng, scheme):
    arrays = [on_gpu(x, "float16") for x in make(rng, heads=(4, 2), seqlens=(150, 290))]
    o, lse = map(on_host, run(arrays, scheme))
    how = SCHEMES[scheme]
    tensors = quantized(arrays, scheme)
    truth, _ = exact.attention(*map(on_host, arrays))
    for some in ("k", "v", "kv", "q", "qkv"):
        given = [tensors.get(n, x) if n in some else x for n, x in zip("qkv", arrays, strict=True)]
        again, again_lse = map(on_host, run(given, scheme))
        if how.smooth_q == "block" and "k" in some:
            # What smoothing took from the scores is then that of the quantized keys.
            assert relative_l1(again, truth) < 1.25 * relative_l1(o, truth)
            continue
        np.testing.assert_array_equal(again, o)
        # Without Q itself, what K's smoothing took from the logits is known from Q's codes only.
        of_codes = 0.1 * (127 / 7 if how.qk == "int4" else 1)
        np.testing.assert_allclose(again_lse, lse, atol=of_codes if "q" in some else 0)


@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
def test_runs_are_bit_identical(rng, scheme, is_causal):
    inputs = make(rng, batch=2, heads=(8, 4), seqlens=(700, 1500), head_dim=128)
    arrays = [on_gpu(x, "float32") for x in inputs]
    assert_runs_are_bit_identical(arrays, scheme, times=3, is_causal=is_causal)


@every_scheme
def test_grouped_heads_equal_repeated_ones(rng, scheme):
    q, k, v = (on_gpu(x, "float16") for x in make(rng, batch=2, heads=(6, 2), seqlens=(90, 200)))
    grouped = run((q, k, v), scheme)
    repeated = run((q, k.repeat(3, axis=1), v.repeat(3, axis=1)), scheme)
    assert_same(grouped, repeated)


@every_scheme
def test_order_of_keys_does_not_matter(rng, scheme):
    inputs = make(rng, seqlens=(100, 300))
    order = rng.permutation(300)
    shuffled = [inputs[0], *(np.ascontiguousarray(x[:, :, order]) for x in inputs[1:])]
    truth, truth_lse = exact.attention(*inputs)
    results = []
    for some in (inputs, shuffled):
        arrays = [on_gpu(x, "float32") for x in some]
        results.append([on_host(x).astype(np.float64) for x in run(arrays, scheme)])
    # Other blocks, other roundings: both are within the scheme's error of the same truth.
    (o, lse), (other, other_lse) = results
    assert np.abs(o - other).sum() <= 2 * np.abs(o - truth).sum() + 1e-6 * np.abs(truth).sum()
    assert np.abs(lse - other_lse).max() <= 2 * np.abs(lse - truth_lse).max() + 1e-5


@every_scheme
def test_constant_values_are_returned(rng, scheme):
    q, k, _ = make(rng, seqlens=(100, 300))
    one = rng.standard_normal(64, dtype=np.float32)
    v = np.ascontiguousarray(np.broadcast_to(one, k.shape))
    o, _ = run([on_gpu(x, "float32") for x in (q, k, v)], scheme)
    how = SCHEMES[scheme]
    # One step of V's codes and one of P's; with V smoothed, its codes are all 0.
    steps = {"int8": 2 / 127, "fp8": 2 * 2.0**-4, "fp16": 2.0**-10}[how.pv]
    allowed = 2.0**-20 if how.smooth_v != "none" else steps
    assert np.abs(on_host(o) - one).max() <= allowed * np.abs(one).max()


@pytest.mark.parametrize("scheme", [n for n, s in SCHEMES.items() if s.smooth_k != "none"])
def test_a_vector_common_to_all_keys_only_shifts_lse(rng, scheme):
    q, k, v = make(rng, seqlens=(100, 300))
    # Multiples of 2^-8 below 2^6 add up exactly in float32, so that K's differences stay.
    k = np.round(k * 256) / 256
    shift = np.round(rng.standard_normal(64) * 8).astype(np.float32)
    o, lse = run([on_gpu(x, "float32") for x in (q, k, v)], scheme)
    moved, moved_lse = run([on_gpu(x, "float32") for x in (q, k + shift, v)], scheme)
    # The mean itself is rounded, so a code of K here and there may be another.
    difference = np.abs(on_host(moved) - on_host(o)).sum() / np.abs(on_host(o)).sum()
    assert difference <= (1e-2 if SCHEMES[scheme].pv == "fp8" else 2e-3)
    expected = on_host(lse) + 64**-0.5 * (q.astype(np.float64) @ shift)
    np.testing.assert_allclose(on_host(moved_lse), expected, rtol=1e-5, atol=1e-3)


def test_default_scheme_errs_no_more_with_length(rng):
    """Against the block's own maximum, small P are as exact in long sequences as in short ones."""
    errors = []
    for n in (1024, 4096):
        arrays = [on_gpu(x, "float16") for x in make(rng, seqlens=(256, n), head_dim=128)]
        truth, _ = exact.attention(*map(on_host, arrays))
        errors.append(relative_l1(on_host(cuattn.attention(*arrays)), truth))
    assert errors[1] <= 1.15 * errors[0]


@every_preset
@pytest.mark.parametrize("scale", [0.0, 1e-3, 4.0])
def test_scales_from_uniform_to_one_hot(rng, scheme, scale):
    arrays = [on_gpu(x, "float32") for x in make(rng, seqlens=(70, 200))]
    o, lse = run(arrays, scheme, scale=scale)
    if scale < 1:
        check((o, lse), arrays, scheme, scale=scale)
    else:
        # With logits of some thousands float32 cannot hold their fraction, and 3/4 of a unit of an
        # integer score, which the kernels may lose, is 4e-3: ask for less.
        wanted, wanted_lse = emulated(arrays, scheme, scale=scale)
        assert np.isfinite(on_host(o)).all()
        # FP8 products of the tensor cores have 13 bits: of a score of thousands, tenths are lost.
        fp8 = SCHEMES[scheme].qk == "fp8"
        atol = 0.25 if fp8 else 4e-3
        np.testing.assert_allclose(on_host(lse), wanted_lse, rtol=1e-4, atol=atol)
        assert relative_l1(on_host(o), wanted) <= (0.25 if fp8 else 0.02)


@pytest.mark.parametrize("scheme", [n for n, s in SCHEMES.items() if s.pv != "fp16"])
@pytest.mark.parametrize("exponent", [-60, 60])
def test_values_of_any_magnitude_keep_their_accuracy(rng, scheme, exponent):
    q, k, v = (on_gpu(x, "float32") for x in make(rng, seqlens=(70, 200)))
    # A power of two leaves all codes as they are.
    factor = np.float32(2.0**exponent)
    wanted, wanted_lse = run((q, k, v), scheme)
    o, lse = run((q, k, v * factor), scheme)
    allowed = tolerance(scheme)
    assert_close(on_host(o) / factor, on_host(wanted).astype(np.float64), allowed=allowed)
    assert_same_lse(on_host(lse), on_host(wanted_lse), allowed)
