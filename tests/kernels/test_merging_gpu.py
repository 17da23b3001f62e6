"""`merge_states` on a GPU against its definition, and against attention to all keys."""

import numpy as np
import pytest
from helpers.arrays_in_memory import DTYPES, MEMORY, is_aligned
from helpers.gpu_cases import make, on_gpu, on_host
from helpers.merge_cases import (
    ROUNDING,
    assert_same_bits,
    merged,
    on_device,
    placed,
    stored_states,
    typed,
)

import cuattn
from cuattn.reference import exact

pytestmark = pytest.mark.gpu

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@every_dtype
@pytest.mark.parametrize("parts", [*range(1, 41), 100])
def test_any_number_of_parts(cupy, rng, parts, dtype):
    (o, lse), given = on_device(cupy, rng, dtype, parts)
    merged(given, o, lse, dtype)


@pytest.mark.covering
@every_dtype
@pytest.mark.parametrize("head_dim", [*range(8, 257, 8), 320, 512, 576, 1024])
@pytest.mark.parametrize("parts", [2, 5, 20])
def test_every_head_dim(cupy, rng, head_dim, dtype, parts):
    (o, lse), given = on_device(cupy, rng, dtype, parts, (2, 3, 37, head_dim))
    merged(given, o, lse, dtype)


@pytest.mark.covering(memory=(is_aligned,))
@every_dtype
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("head_dim", [64, 72])
@pytest.mark.parametrize("parts", [3, 18])
def test_parts_lie_anywhere(cupy, rng, memory, dtype, layout, head_dim, parts):
    o, lse = stored_states(rng, dtype, parts, (2, 3, 37, head_dim))
    given, lses = placed(cupy, o, lse, dtype, memory)
    if layout == "NHD":
        given = [x.swapaxes(1, 2) for x in given]
    before = [on_host(x).copy() for x in (*given, *lses)]
    merged((given, lses), o, lse, dtype, layout=layout)
    for x, y in zip((*given, *lses), before, strict=True):
        assert on_host(x).tobytes() == y.tobytes()


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 128), (64, 32, 1, 128), (3, 5, 7, 128), (1, 2, 5000, 128), (70000, 1, 1, 8)]
)
@every_dtype
def test_rows_of_every_shape(cupy, rng, shape, dtype):
    (o, lse), given = on_device(cupy, rng, dtype, 3, shape)
    merged(given, o, lse, dtype)


@every_dtype
def test_strides_of_lse_and_channels_that_are_apart(cupy, rng, dtype):
    (o, lse), (given, lses) = on_device(cupy, rng, dtype)
    lses[0] = cupy.ascontiguousarray(lses[0].transpose(2, 0, 1)).transpose(1, 2, 0)
    lses[1] = cupy.ascontiguousarray(lses[1][:, :, ::-1])[:, :, ::-1]
    wide = typed(cupy.asarray(np.repeat(o[2], 2, axis=3)), dtype)
    merged(([*given[:2], wide[..., ::2]], lses), o, lse, dtype)


@every_dtype
@pytest.mark.parametrize("parts", [1, 5, 20])
def test_parts_may_be_stacked(cupy, rng, parts, dtype):
    (o, lse), given = on_device(cupy, rng, dtype, parts)
    wanted = cuattn.merge_states(*given)
    stacked = typed(cupy.asarray(o), dtype), cupy.asarray(lse)
    assert_same_bits(cuattn.merge_states(*stacked), wanted)
    wide = typed(cupy.asarray(np.repeat(o, 2, axis=4)), dtype)
    assert_same_bits(cuattn.merge_states(wide[..., ::2], stacked[1]), wanted)
    # Parts between batch and heads, as they are of a kernel that splits keys.
    inner = np.ascontiguousarray(o.transpose(1, 0, 2, 3, 4))
    inner = typed(cupy.asarray(inner), dtype).transpose(1, 0, 2, 3, 4)
    assert_same_bits(cuattn.merge_states(inner, stacked[1]), wanted)


@every_dtype
@pytest.mark.parametrize("layout", ["HND", "NHD"])
@pytest.mark.parametrize("parts", [2, 20])
@pytest.mark.parametrize("place", ["contiguous", "between others", "odd", "channels apart"])
def test_output_may_be_the_callers(cupy, rng, dtype, layout, parts, place):
    (o, lse), (given, lses) = on_device(cupy, rng, dtype, parts, (2, 3, 37, 72))
    if layout == "NHD":
        given = [x.swapaxes(1, 2) for x in given]
    shape = given[0].shape
    bits = np.uint32 if dtype == "float32" else np.uint16
    wide = cupy.full((*shape[:3], 160), 0xABCD, bits)
    view = wide.view(given[0].dtype)
    where = {
        "contiguous": np.s_[..., :72],
        "between others": np.s_[..., 8:80],
        "odd": np.s_[..., 1:73],
        "channels apart": np.s_[..., :144:2],
    }[place]
    out = cupy.empty_like(given[0], order="C") if place == "contiguous" else view[where]
    result = merged((given, lses), o, lse, dtype, layout=layout, out=out)
    assert result[0] is out
    wide[where] = 0xABCD
    assert bool((wide == 0xABCD).all())


@every_dtype
def test_one_part_stays_as_it_is(cupy, rng, dtype):
    _, given = on_device(cupy, rng, dtype, 1, empty=0, spread=50.0)
    assert_same_bits(cuattn.merge_states(*given), (given[0][0], given[1][0]))


@every_dtype
def test_what_parts_without_keys_hold_does_not_matter(cupy, rng, dtype):
    (o, lse), given = on_device(cupy, rng, dtype, 4, empty=0)
    wanted = cuattn.merge_states(*given)
    for junk in (np.nan, np.inf, 0.0):
        empty = on_gpu(np.full(o.shape[1:], junk, np.float32), dtype)
        none = cupy.full(lse.shape[1:], -np.inf, np.float32)
        found = cuattn.merge_states(
            [empty, *given[0][:2], empty, *given[0][2:]], [none, *given[1][:2], none, *given[1][2:]]
        )
        assert_same_bits(found, wanted)
        for parts in (1, 2, 40):
            got, got_lse = cuattn.merge_states([empty] * parts, [none] * parts)
            assert not on_host(got).any()
            assert (on_host(got_lse) == -np.inf).all()


@every_dtype
@pytest.mark.parametrize("apart", [80.0, 1e3, 1e30])
@pytest.mark.parametrize("parts", [2, 20])
def test_parts_far_apart(cupy, rng, dtype, apart, parts):
    o, lse = stored_states(rng, dtype, parts, empty=0)
    lse = np.float32(apart) * rng.integers(-1, 2, lse.shape).astype(np.float32)
    got, got_lse = merged(placed(cupy, o, lse, dtype), o, lse, dtype)
    assert np.isfinite(on_host(got).astype(np.float32)).all()
    assert np.isfinite(on_host(got_lse)).all()


@every_dtype
@pytest.mark.parametrize("parts", [3, 20])
def test_lse_that_is_not_a_number_spoils_its_row_only(cupy, rng, dtype, parts):
    o, lse = stored_states(rng, dtype, parts)
    lse[1, 0, 1, 7], lse[0, 1, 2, 3], lse[-1, 1, 0, 0] = np.nan, np.inf, np.nan
    lse[:, 0, 0, 0] = -np.inf
    lse[2, 0, 0, 0] = np.nan
    _, got_lse = merged(placed(cupy, o, lse, dtype), o, lse, dtype)
    assert np.isnan(on_host(got_lse)).sum() == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("parts", [2, 16, 40])
def test_sums_of_large_numbers_stay_finite(cupy, dtype, parts):
    o = on_gpu(np.full((1, 1, 4, 64), 3e38, np.float32), dtype)
    lse = cupy.zeros((1, 1, 4), np.float32)
    got, _ = cuattn.merge_states([o] * parts, [lse] * parts)
    np.testing.assert_allclose(on_host(got), on_host(o), rtol=2 * ROUNDING[dtype][0] * parts)


def test_runs_are_bit_identical(cupy, rng):
    for dtype in DTYPES:
        _, given = on_device(cupy, rng, dtype, 40, (2, 8, 500, 128))
        first = cuattn.merge_states(*given)
        for _ in range(20):
            assert_same_bits(cuattn.merge_states(*given), first)


@pytest.mark.parametrize("scheme", ["fp16", "int8"])
@pytest.mark.parametrize("layout", ["HND", "NHD"])
@every_dtype
def test_attention_to_parts_is_attention_to_all(cupy, rng, scheme, layout, dtype):
    q, k, v = make(rng, heads=(4, 2), seqlens=(200, 1000))
    q *= 3

    def attend(keys):
        arrays = [on_gpu(x, dtype) for x in (q, k[:, :, keys], v[:, :, keys])]
        if layout == "NHD":
            arrays = [cupy.ascontiguousarray(x.swapaxes(1, 2)) for x in arrays]
        return cuattn.attention(*arrays, scheme=scheme, layout=layout, return_lse=True)

    def error(result):
        o = on_host(result[0]).astype(np.float64)
        return np.abs((o.swapaxes(1, 2) if layout == "NHD" else o) - truth).mean()

    truth, truth_lse = exact.attention(*(on_host(on_gpu(x, dtype)) for x in (q, k, v)))
    whole = attend(np.arange(1000))
    allowed = 1.25 * error(whole) + 2 * ROUNDING[dtype][0] * np.abs(truth).mean()
    for parts in (1, 2, 7, 40):
        of_part = rng.integers(0, parts, 1000)  # of 40 parts some have few keys
        some = [attend(np.flatnonzero(of_part == i)) for i in rng.permutation(parts)]
        some.insert(0, attend(np.arange(0)))
        result = cuattn.merge_states(*zip(*some, strict=True), layout=layout)
        assert error(result) <= allowed
        lse_error = np.abs(on_host(result[1]) - truth_lse).mean()
        assert lse_error <= 1.25 * np.abs(on_host(whole[1]) - truth_lse).mean() + 1e-4
