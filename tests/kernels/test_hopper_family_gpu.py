"""The kernels of wgmma where they differ from others: tiles, items, tensor maps, integers of O."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.gpu_cases import (
    FLOAT_SUMS,
    MMA_SCHEMES,
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
    mma_family,
    on_gpu,
    on_host,
    operands_of,
    run,
    tolerance,
)

from cuattn.arrays.device import current_device, gpu_status
from cuattn.plan import pipeline
from cuattn.plan.kernels import attention_spec
from cuattn.plan.kernels_sm90 import INTEGER_O_KEYS
from cuattn.plan.prepared import forget_plans
from cuattn.presets import PRESETS
from cuattn.reference.layout import HEAD_DIMS
from cuattn.reference.softmax import FIRST_HEADROOM
from cuattn.scheme import Scheme

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        gpu_status()[0] == "ok" and current_device().arch != "90a", reason="needs a Hopper GPU"
    ),
]

# Queries around rows of one, two and three warpgroups; keys around blocks of 64 and 128.
EDGES = [
    (63, 128),
    (64, 127),
    (65, 129),
    (127, 255),
    (128, 256),
    (129, 257),
    (191, 384),
    (192, 383),
    (193, 385),
    (1, 129),
    (257, 1),
    (256, 65),
    (384, 64),
    (385, 63),
    (130, 191),
    (66, 193),
]


@pytest.mark.covering(seqlens=OF_LENGTHS)
@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("seqlens", EDGES, ids=str)
def test_edges_of_tiles(rng, scheme, is_causal, seqlens):
    # Head dims take turns.
    head_dim = (64, 128, 96, 256, 32, 192)[(EDGES.index(seqlens) + len(scheme)) % 6]
    inputs = make(rng, heads=(2, 1), seqlens=seqlens, head_dim=head_dim)
    arrays = [on_gpu(x, "float32") for x in inputs]
    check(run(arrays, scheme, is_causal=is_causal), arrays, scheme, is_causal=is_causal)


@every_preset
@pytest.mark.parametrize("seqlens", [(700, 5), (700, 130), (1000, 641), (130, 1), (193, 1)])
def test_rows_that_see_nothing(rng, scheme, seqlens):
    """Warpgroups without a key beside some with; items of a CTA without one between others."""
    inputs = make(rng, batch=2, heads=(4, 2), seqlens=seqlens, head_dim=64)
    arrays = [on_gpu(x, "float16") for x in inputs]
    o, lse = run(arrays, scheme, is_causal=True)
    hidden = seqlens[0] - seqlens[1]
    assert not on_host(o)[:, :, :hidden].any()
    assert (on_host(lse)[:, :, :hidden] == -np.inf).all()
    check((o, lse), arrays, scheme, is_causal=True)


@pytest.mark.covering
@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("batch", "heads"), [(1, (1, 1)), (7, (9, 3)), (5, (40, 8))])
def test_fewer_and_more_items_than_multiprocessors(rng, scheme, is_causal, batch, heads):
    inputs = make(rng, batch=batch, heads=heads, seqlens=(200, 333), head_dim=64)
    arrays = [on_gpu(x, "float16") for x in inputs]
    check(run(arrays, scheme, is_causal=is_causal), arrays, scheme, is_causal=is_causal)


@pytest.mark.covering
@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_each_of_very_many_heads_gets_the_same(rng, cupy, scheme, is_causal, head_dim):
    inputs = make(rng, heads=(1, 1), seqlens=(515, 777), head_dim=head_dim)
    one = [on_gpu(x, "float16") for x in inputs]
    arrays = [cupy.ascontiguousarray(cupy.tile(x, (3, 100, 1, 1))) for x in one]
    wanted = run(one, scheme, is_causal=is_causal)
    for x, y in zip(run(arrays, scheme, is_causal=is_causal), wanted, strict=True):
        assert (x == y).all()


@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
def test_runs_are_bit_identical(rng, scheme, is_causal):
    inputs = make(rng, batch=3, heads=(16, 4), seqlens=(1000, 1300), head_dim=128)
    arrays = [on_gpu(x, "float16") for x in inputs]
    assert_runs_are_bit_identical(arrays, scheme, times=10, is_causal=is_causal)


@pytest.mark.covering
@pytest.mark.parametrize("scheme", MMA_SCHEMES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_families_agree(rng, scheme, is_causal, head_dim):
    inputs = make(rng, batch=2, heads=(4, 2), seqlens=(300, 700), head_dim=head_dim)
    arrays = [on_gpu(x, "float32") for x in inputs]
    o, lse = map(on_host, run(arrays, scheme, is_causal=is_causal))
    with mma_family():
        other, other_lse = map(on_host, run(arrays, scheme, is_causal=is_causal))
    # Each may be as far from the emulation.
    allowed = tolerance(scheme)
    assert_close(o, other.astype(np.float64), allowed=allowed._replace(rms=2 * allowed.rms))
    assert_same_lse(lse, other_lse)


def broadcast_heads(cupy, x):
    return cupy.broadcast_to(x[:, :1], x.shape)


def broadcast_batch(cupy, x):
    return cupy.broadcast_to(x[:1], x.shape)


def rows_that_overlap(cupy, x):
    batch, heads, tokens, head_dim = x.shape
    step, n = head_dim // 2, x.itemsize
    flat = x.ravel()[: batch * heads * tokens * step + head_dim]
    strides = (heads * tokens * step * n, tokens * step * n, step * n, n)
    return cupy.lib.stride_tricks.as_strided(flat, x.shape, strides)


def packed(cupy, x):
    """As a slice of [batch, token, 3, head, head_dim], which a map can describe."""
    wide = cupy.stack([x, x, x], axis=2).transpose(0, 3, 2, 1, 4)
    return cupy.ascontiguousarray(wide)[:, :, 1].transpose(0, 2, 1, 3)


def odd(cupy, x):
    """Rows that begin at odd elements."""
    return cupy.pad(x, [(0, 0)] * 3 + [(3, 6)])[..., 3 : 3 + x.shape[3]]


def of_one_token(cupy, x):
    return cupy.broadcast_to(x[:, :, :1], x.shape)


ARRANGEMENTS = [broadcast_heads, broadcast_batch, rows_that_overlap, packed, odd, of_one_token]


@pytest.mark.covering
@pytest.mark.parametrize("scheme", [n for n, how in SCHEMES.items() if how.pv == "fp16"])
@pytest.mark.parametrize("arrange", ARRANGEMENTS)
@pytest.mark.parametrize("which", range(3), ids="qkv")
@pytest.mark.parametrize(
    ("dtype", "head_dim"), [("float16", 64), ("float16", 40), ("bfloat16", 96)]
)
def test_16_bit_inputs_of_any_strides(rng, cupy, scheme, arrange, which, dtype, head_dim):
    inputs = make(rng, batch=2, heads=(4, 4), seqlens=(140, 140), head_dim=head_dim)
    arrays = [on_gpu(x, dtype) for x in inputs]
    if dtype == "bfloat16":
        bits = arrange(cupy, arrays[which].view(np.uint16))
        compact = cupy.ascontiguousarray(bits).view(arrays[which].dtype)
        arrays[which] = bits.view(arrays[which].dtype)
    else:
        arrays[which] = arrange(cupy, arrays[which])
        compact = cupy.ascontiguousarray(arrays[which])
    wanted = run([compact if i == which else x for i, x in enumerate(arrays)], scheme)
    assert_same(run(arrays, scheme), wanted)


@pytest.mark.parametrize("scheme", [n for n, how in SCHEMES.items() if how.pv == "fp16"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_inputs_in_layout_nhd(rng, cupy, scheme, dtype):
    inputs = make(rng, batch=2, heads=(4, 2), seqlens=(130, 200), head_dim=72)
    arrays = [on_gpu(x, dtype) for x in inputs]
    given = [on_gpu(np.ascontiguousarray(x.swapaxes(1, 2)), dtype) for x in inputs]
    o, lse = run(given, scheme, layout="NHD")
    assert_same((o.transpose(0, 2, 1, 3), lse), run(arrays, scheme))


# int8-fast without what smoothing subtracts, so that constants stay what they are.
# Not rotated: channels that are all alike have scores that can be written down.
FAST_AS_IT_IS = replace(PRESETS["int8-fast"], name="int8-fast, as it is", rotate="none")

BARE_FAST = Scheme(
    "bare fast",
    k_scope="block",
    v_scope="channel",
    p_range="row_pow2",
    smooth_k="none",
    smooth_v="none",
)

# Float32 sums of a thousand equal addends may round the same way each time.
DRIFT = 2.0**-12


def ones(cupy, seqlen, value=1.0, head_dim=64):
    return cupy.full((1, 1, seqlen, head_dim), value, np.float32)


@pytest.mark.covering
@pytest.mark.parametrize("seqlen_kv", [66_000, INTEGER_O_KEYS, INTEGER_O_KEYS + 1, 150_000])
@pytest.mark.parametrize("value", [3.0, -3.0])
@pytest.mark.parametrize("head_dim", [64, 256])
def test_largest_sums_of_very_many_keys(cupy, seqlen_kv, value, head_dim):
    """Every code of V is 127 or -127, and P 255 steps from the second block on: the largest sums.

    That is where the keys of the first block are as far below the others as the reference of P is
    above them, and 2e-5 less, or it would move.
    """
    largest = 0.5 * head_dim**0.5
    first = largest - (FIRST_HEADROOM - 2e-5) * np.log(2)
    q = ones(cupy, 70, 1.0, head_dim)
    k = ones(cupy, seqlen_kv, 0.5, head_dim)
    k[:, :, :128] = first / head_dim**0.5
    o, lse = run((q, k, ones(cupy, seqlen_kv, value, head_dim)), BARE_FAST)
    np.testing.assert_allclose(on_host(o), value, rtol=DRIFT)
    wanted = largest + np.log(seqlen_kv - 128 + 128 * np.exp(first - largest))
    np.testing.assert_allclose(on_host(lse), wanted, atol=DRIFT)


@pytest.mark.covering
@pytest.mark.parametrize("half", [30_000, 33_000, 80_000])
@pytest.mark.parametrize("seen_first", [True, False])
@pytest.mark.parametrize("value", [2.0, -2.0])
def test_sums_of_which_half_the_keys_have_no_part(cupy, half, seen_first, value):
    """With V's mean, here 0, subtracted: half of the keys have next to no weight.

    Where these come first, a large O is shifted to nothing.
    """
    seen = [1.0, -1.0] if seen_first else [-1.0, 1.0]
    q = ones(cupy, 70, 4.0)
    k = cupy.concatenate([ones(cupy, half, x) for x in seen], axis=2)
    v = cupy.concatenate([ones(cupy, half, x * value) for x in seen], axis=2)
    o, lse = run((q, k, v), FAST_AS_IT_IS)
    # A reference that is not the maximum itself costs up to half of one of 128 steps, of all P.
    np.testing.assert_allclose(on_host(o), value, rtol=DRIFT if seen_first else 2.0**-8)
    np.testing.assert_allclose(on_host(lse), 32.0 + np.log(half), atol=DRIFT)
    wanted, wanted_lse = emulated((q, k, v), FAST_AS_IT_IS)
    assert_close(on_host(o), wanted)
    assert_same_lse(on_host(lse), wanted_lse)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("is_causal", [False, True])
def test_maximum_that_moves_in_every_block(rng, head_dim, is_causal):
    """O is shifted, and rounded down, again and again."""
    q, k, v = make(rng, heads=(2, 1), seqlens=(200, 3000), head_dim=head_dim)
    q = np.abs(q)
    k += np.linspace(0, 12, 3000, dtype=np.float32)[:, None] / head_dim**0.5
    arrays = [on_gpu(x, "float32") for x in (q, k, v)]
    check(run(arrays, "int8-fast", is_causal=is_causal), arrays, "int8-fast", is_causal=is_causal)


def test_both_forms_of_o_agree(rng, monkeypatch):
    """Few keys with the kernel for very many: a float O differs by what shifts round."""
    inputs = make(rng, heads=(4, 2), seqlens=(200, 900), head_dim=128)
    arrays = [on_gpu(x, "float32") for x in inputs]
    o, lse = map(on_host, run(arrays, "int8-fast"))
    monkeypatch.setattr(pipeline, "INTEGER_O_KEYS", 0)
    forget_plans()
    try:
        other, other_lse = run(arrays, "int8-fast")
        check((other, other_lse), arrays, "int8-fast")
    finally:
        forget_plans()
    np.testing.assert_allclose(lse, on_host(other_lse), rtol=1e-6)
    # Two units of 1/255 of a step of V, in rows whose P add up to 1 or more.
    steps = np.abs(inputs[2] - inputs[2].mean(axis=2, keepdims=True)).max() / 127
    assert np.abs(o - on_host(other)).max() <= 2.5 * steps / 255


def run_with(monkeypatch, arrays, scheme, fields, **options):
    """Return (o, lse) of the kernel that the tuning table chooses, but for some fields."""

    def changed(*args, **kwargs):
        return replace(attention_spec(*args, **kwargs), **fields)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "attention_spec", changed)
        forget_plans()
        try:
            return run(arrays, scheme, **options)
        finally:
            forget_plans()


@pytest.mark.parametrize("seqlen_kv", [128, 900, 5000])
@pytest.mark.parametrize("is_causal", [False, True])
def test_float_sums_cost_a_fortieth_of_a_step_of_v_at_most(rng, monkeypatch, seqlen_kv, is_causal):
    """However many keys there are, and where O is small beside V."""
    inputs = make(rng, heads=(4, 2), seqlens=(200, seqlen_kv), head_dim=128)
    arrays = [on_gpu(x, "float32") for x in inputs]
    plain, summed = (
        run_with(monkeypatch, arrays, "int8-block", {"float_sums": x}, is_causal=is_causal)
        for x in (False, True)
    )
    np.testing.assert_array_equal(on_host(plain[1]), on_host(summed[1]))
    o, other = (on_host(x[0]).astype(np.float64) for x in (plain, summed))
    scale = operands_of(arrays, "int8-block").v.scale.astype(np.float64)
    steps = np.repeat(scale, 2, axis=1)[:, :, None, :]
    assert (np.abs(o - other) <= FLOAT_SUMS * steps + 2.0**-20 * np.abs(o)).all()


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("scheme", ["int8", "int8-token", "int8-block", "int8-fast"])
def test_ties_change_no_bit(rng, monkeypatch, scheme, head_dim):
    """Whatever waits for row sums, with a masked block at the end."""
    inputs = make(rng, heads=(4, 2), seqlens=(200, 900), head_dim=head_dim)
    arrays = [on_gpu(x, "float16") for x in inputs]
    plain, tied = (
        run_with(monkeypatch, arrays, scheme, {"tied_steps": ties}) for ties in (False, True)
    )
    for x, y in zip(plain, tied, strict=True):
        assert (x == y).all()
