"""The quantizer and the smoothing vectors: values by hand, then what holds for all inputs."""

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.reference.quantize import AMAX_FLOOR, SAMPLE, quantize, smoothing_vector
from cuattn.reference.rounding import round_e4m3

SCOPES = ["token", "group", "block", "thread_q", "thread_k", "channel", "tensor"]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def one_row(*values):
    return np.array(values, np.float32)[None, None, None]


def test_quantize_rounds_ties_to_even():
    # amax 127 makes the scale 1, so values are codes before rounding.
    q = quantize(one_row(127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127), scope="token")
    np.testing.assert_array_equal(q.codes[0, 0, 0], [127, 0, 2, 2, 0, -2, -2, -127])
    np.testing.assert_array_equal(q.scale, np.float32(1)[None, None, None])


def test_quantize_gives_zeros_the_smallest_scale():
    q = quantize(one_row(0, 0, 0), scope="token")
    assert not q.codes.any()
    assert q.scale[0, 0, 0] == np.float32(2.0**-64) / np.float32(127)
    assert not q.dequantize().any()


def test_quantize_floors_tiny_values_and_keeps_those_just_above():
    below = quantize(one_row(2.0**-65, -(2.0**-74), 1e-45), scope="token")
    # 2^-65 is half of the floor, 63.5 steps, a tie that goes to the even 64.
    np.testing.assert_array_equal(below.codes[0, 0, 0], [64, 0, 0])
    above = quantize(one_row(2.0**-63, -(2.0**-64)), scope="token")
    np.testing.assert_array_equal(above.codes[0, 0, 0], [127, -64])
    assert above.scale[0, 0, 0] > below.scale[0, 0, 0] > 0


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scope", SCOPES)
def test_quantize_carries_poison_in_the_scale_of_its_scope_only(scope, poison):
    x = normal(1, 2, 12, 4)
    x[0, 1, 5, 2] = poison
    q = quantize(x, scope=scope, block=4)
    hit = np.zeros(x.shape, bool)
    at = {
        "token": np.s_[0, 1, 5, :],
        "group": np.s_[0, 1, 5, :],  # of four channels
        "block": np.s_[0, 1, 4:8, :],
        "thread_q": np.s_[0, 1, 5, :],  # 5 + 8 is not there
        "thread_k": np.s_[0, 1, 4:6, :],
        "channel": np.s_[0, 1, :, 2],
        "tensor": np.s_[0, 1, :, :],
    }
    hit[at[scope]] = True
    assert not q.codes[hit].any()
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(np.isfinite(q.dequantize()), ~hit)
    assert np.sum(~np.isfinite(q.scale)) == 1
    assert np.isnan(q.scale).any() == np.isnan(poison)


def test_quantize_by_float32_arithmetic_written_out():
    x = normal(1, 1, 1, 64)[0, 0, 0]
    amax = np.float32(0)
    for value in x:
        amax = max(amax, abs(value))
    factor = np.float32(127) / amax
    expected = [int(np.rint(np.float32(value * factor))) for value in x]
    q = quantize(x[None, None, None], scope="token")
    np.testing.assert_array_equal(q.codes[0, 0, 0], expected)
    assert q.scale[0, 0, 0] == amax / np.float32(127)
    assert q.codes.dtype == np.int8
    assert q.scale.dtype == np.float32


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("smooth", ["none", "mean"])
def test_quantize_to_fp8_has_the_floats_precision(scope, smooth):
    x = 5 + normal(2, 3, 37, 24)
    q = quantize(x, scope=scope, block=8, vector=smoothing_vector(x, smooth), to="fp8")
    assert q.codes.dtype == q.scale.dtype == np.float32
    assert np.abs(q.codes).max() == 448
    np.testing.assert_array_equal(round_e4m3(q.codes), q.codes)
    same = quantize(x, scope=scope, block=8, vector=smoothing_vector(x, smooth))
    np.testing.assert_allclose(q.scale * 448, same.scale * 127, rtol=3e-7)
    # Half of the last of 3 bits, and half of the smallest step where there are fewer.
    d = x if q.vector is None else x - q.vector[:, :, None, :]
    steps = d / np.abs(d).max() * 448
    error = np.abs(q.dequantize() - x) / np.abs(d).max() * 448
    assert (error <= np.maximum(np.abs(steps) * 2.0**-4, 2.0**-10) * 1.0001 + 1e-4).all()


def test_quantize_to_fp8_by_hand():
    # amax 448 makes the scale 1, so values are codes before rounding.
    q = quantize(one_row(448, 17, 19, 2.0**-10, -3.3, 0), scope="token", to="fp8")
    np.testing.assert_array_equal(q.codes[0, 0, 0], [448, 16, 20, 0, -3.25, 0])
    assert q.scale[0, 0, 0] == 1
    zeros = quantize(one_row(0, 0), scope="token", to="fp8")
    assert zeros.scale[0, 0, 0] == np.float32(AMAX_FLOOR) / np.float32(448)
    poisoned = quantize(one_row(1, np.nan), scope="tensor", to="fp8")
    assert np.isnan(poisoned.scale).all()
    assert not poisoned.codes.any()
    with pytest.raises(ArgumentError, match=r"^to must be"):
        quantize(one_row(1), scope="token", to="fp4")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("smooth", ["none", "mean"])
def test_quantize_is_within_half_a_step(scope, smooth):
    x = 5 + normal(2, 3, 37, 24)
    q = quantize(x, scope=scope, block=8, vector=smoothing_vector(x, smooth))
    shape = {
        "token": (2, 3, 37),
        "group": (2, 3, 37, 3),
        "block": (2, 3, 5),
        "thread_q": (2, 3, 16),
        "thread_k": (2, 3, 4),
        "channel": (2, 3, 24),
        "tensor": (2, 3),
    }
    assert q.scale.shape == shape[scope]
    assert np.abs(q.codes.astype(int)).max() == 127
    step = {
        "token": lambda: q.scale[..., None],
        "group": lambda: np.repeat(q.scale, 8, axis=3),
        "block": lambda: np.repeat(q.scale, 8, axis=2)[:, :, :37, None],
        "thread_q": lambda: q.scale[:, :, [t // 32 * 8 + t % 8 for t in range(37)], None],
        "thread_k": lambda: q.scale[:, :, [t % 8 // 2 for t in range(37)], None],
        "channel": lambda: q.scale[:, :, None, :],
        "tensor": lambda: q.scale[:, :, None, None],
    }[scope]()
    error = np.abs(q.dequantize() - x)
    # Half a step, plus three float32 roundings of numbers of up to 127 steps, plus that of d.
    assert np.all(error <= step * (0.5 + 127 * 3 * 2.0**-24) + np.abs(x) * 2.0**-24)


@pytest.mark.parametrize("scope", SCOPES)
def test_quantize_never_exceeds_127(scope):
    # Magnitudes over the whole range of float32, where the factor 127/amax rounds both ways.
    x = normal(1, 64, 32, 8) * np.exp2(np.linspace(-140, 125, 64, dtype=np.float32))[:, None, None]
    codes = quantize(x, scope=scope, block=8).codes
    assert codes.min() >= -127
    above_floor = np.abs(x).max(axis=(2, 3)) > AMAX_FLOOR
    assert np.all(np.abs(codes.astype(int)).max(axis=(2, 3))[above_floor] == 127)


def test_quantize_to_int4_by_hand():
    q = quantize(one_row(7, 0.5, 1.5, -2.5, -7, 3), scope="token", to="int4")
    np.testing.assert_array_equal(q.codes[0, 0, 0], [7, 0, 2, -2, -7, 3])
    assert q.scale[0, 0, 0] == 1
    assert q.codes.dtype == np.int8


def test_quantize_by_groups_of_channels_is_by_tokens_of_that_width():
    x = normal(1, 2, 5, 12)
    q = quantize(x, scope="group", block=4, to="int4")
    for group in range(3):
        at = slice(4 * group, 4 * group + 4)
        alone = quantize(x[..., at], scope="token", to="int4")
        np.testing.assert_array_equal(q.codes[..., at], alone.codes)
        np.testing.assert_array_equal(q.scale[..., group], alone.scale)


@pytest.mark.parametrize(
    ("scope", "together"),
    [
        # A thread g of 8 sees rows g, g + 8, g + 16, g + 24 of 32; thread t of 4 keys 8 j + 2 t and
        # 8 j + 2 t + 1 of 64.
        (
            "thread_q",
            [[32 * tile + g + 8 * j for j in range(4)] for tile in (0, 1) for g in range(8)],
        ),
        ("thread_k", [[8 * j + 2 * t + e for j in range(8) for e in (0, 1)] for t in range(4)]),
    ],
)
def test_quantize_by_threads(scope, together):
    x = normal(1, 1, 64, 6)
    q = quantize(x, scope=scope)
    assert q.scale.shape == (1, 1, len(together))
    for number, tokens in enumerate(together):
        alone = quantize(x[:, :, tokens], scope="tensor")
        np.testing.assert_array_equal(q.codes[:, :, tokens], alone.codes)
        assert q.scale[0, 0, number] == alone.scale[0, 0]


def test_quantize_is_the_same_for_half_precision_and_its_float32():
    x = normal(1, 2, 9, 8).astype(np.float16)
    narrow, wide = quantize(x, scope="token"), quantize(x.astype(np.float32), scope="token")
    np.testing.assert_array_equal(narrow.codes, wide.codes)
    np.testing.assert_array_equal(narrow.scale, wide.scale)


@pytest.mark.parametrize("scope", SCOPES)
def test_quantize_accepts_no_tokens(scope):
    q = quantize(np.zeros((2, 3, 0, 8), np.float32), scope=scope, block=4)
    assert q.codes.shape == q.dequantize().shape == (2, 3, 0, 8)


def test_quantize_leaves_unrounded_codes_exact():
    x = normal(1, 2, 20, 8) + 3
    vector = smoothing_vector(x, "mean")
    exact = quantize(x, scope="token", vector=vector, rounded=False)
    rounded = quantize(x, scope="token", vector=vector)
    np.testing.assert_array_equal(exact.scale, rounded.scale)
    np.testing.assert_allclose(exact.dequantize(), x, rtol=1e-14, atol=1e-14)
    assert np.abs(exact.codes - rounded.codes).max() <= 0.5001


def test_quantize_leaves_its_input_alone():
    x = normal(1, 1, 8, 8)
    before = x.copy()
    quantize(x, scope="channel", vector=smoothing_vector(x, "sample"))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"scope": "row"}, "scope"),
        ({"scope": "block", "block": 0}, "block"),
        ({"scope": "group", "block": 3}, "block"),
        ({"scope": "token", "vector": np.zeros((1, 1, 5), np.float32)}, "vector.shape"),
    ],
)
def test_quantize_refuses_options_that_make_no_sense(options, argument):
    with pytest.raises(ArgumentError, match=f"^{argument} must be"):
        quantize(np.zeros((1, 1, 4, 4)), **options)


def test_quantize_refuses_other_arrays():
    with pytest.raises(ArgumentError, match=r"^x\.shape must be"):
        quantize(np.zeros((4, 4)), scope="token")
    with pytest.raises(ArgumentError, match=r"^x\.dtype must be"):
        quantize(np.zeros((1, 1, 4, 4), np.int8), scope="token")


def test_smoothing_mean_is_the_mean():
    x = normal(2, 3, 11, 4)
    mean = x.astype(np.float64).mean(axis=2).astype(np.float32)
    np.testing.assert_array_equal(smoothing_vector(x, "mean"), mean)
    assert smoothing_vector(x, "none") is None


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200, 1000])
def test_smoothing_sample_takes_evenly_spaced_tokens(n):
    # Each token holds its own index, so the mean tells which tokens were taken.
    x = np.arange(n, dtype=np.float32)[None, None, :, None]
    count = min(SAMPLE, n)
    tokens = [(i * n) // count for i in range(count)]
    assert len(set(tokens)) == count
    expected = np.float32(sum(tokens) / count)
    np.testing.assert_array_equal(smoothing_vector(x, "sample"), expected[None, None, None])


@pytest.mark.parametrize("how", ["mean", "robust", "sample"])
def test_smoothing_is_not_poisoned_and_accepts_no_tokens(how):
    x = normal(1, 1, 10, 3)
    x[0, 0, 4, 1] = np.nan
    x[0, 0, 7, 2] = np.inf
    vector = smoothing_vector(x, how)
    assert vector[0, 0, 0] != 0
    # A mean that is robust does without the tokens, another without the channels.
    np.testing.assert_array_equal(vector[0, 0, 1:] == 0, [how == "mean"] * 2)
    np.testing.assert_array_equal(
        smoothing_vector(np.full((1, 1, 10, 3), np.nan), how), np.zeros((1, 1, 3))
    )
    np.testing.assert_array_equal(smoothing_vector(x[:, :, :0], how), np.zeros((1, 1, 3)))


def test_smoothing_refuses_other_names():
    with pytest.raises(ArgumentError, match=r"^how must be one of"):
        smoothing_vector(normal(1, 1, 2, 2), "median")
