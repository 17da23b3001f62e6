"""Rounding to half-precision types."""

import numpy as np
import pytest

from cuattn.reference.rounding import (
    LARGEST,
    e4m3_bits,
    e4m3_values,
    round_bfloat16,
    round_e4m3,
    round_half,
    saturate,
)

# All e4m3 by their bits but the two NaN: sign, 4 bits of exponent, 3 of fraction.
E4M3 = {
    sign << 7 | exponent << 3 | fraction: (1 - 2 * sign)
    * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))
    for sign in range(2)
    for exponent in range(16)
    for fraction in range(8)
    if (exponent, fraction) != (15, 7)
}


@pytest.mark.parametrize(
    ("x", "rounded"),
    [
        (1.0, 1.0),
        (1 + 2.0**-8, 1.0),  # a tie goes to the even neighbour
        (1 + 3 * 2.0**-8, 1 + 2.0**-6),
        (1 + 2.0**-8 + 2.0**-20, 1 + 2.0**-7),
        (-(1 + 3 * 2.0**-8), -(1 + 2.0**-6)),
        (2 - 2.0**-9, 2.0),  # the carry reaches the exponent
        (2.0**-133, 2.0**-133),  # the smallest of all
        (3.4e38, np.inf),  # above the largest bfloat16, 3.3895e38
        (np.inf, np.inf),
        (-np.inf, -np.inf),
        (0.0, 0.0),
    ],
)
def test_round_bfloat16_by_hand(x, rounded):
    assert round_bfloat16(np.array(x)) == rounded


def test_round_bfloat16_keeps_every_nan():
    bits = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF], np.uint32)
    assert np.isnan(round_bfloat16(bits.view(np.float32))).all()


def test_round_bfloat16_agrees_with_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    with np.errstate(over="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float64)
    np.testing.assert_array_equal(round_bfloat16(x), expected)


def test_round_half_is_ieee_float16():
    x = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 65519.0, 65520.0, 2.0**-25, 2.0**-24])
    expected = [1.0, 1 + 2.0**-9, 65504.0, np.inf, 0.0, 2.0**-24]
    np.testing.assert_array_equal(round_half(x, "float16"), expected)
    np.testing.assert_array_equal(round_half(x, "bfloat16"), round_bfloat16(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_e4m3_to_the_nearest_of_all(dtype):
    values = np.array(sorted({abs(x) for x in E4M3.values()}), dtype)
    assert (values.size, values[-1]) == (127, 448)
    np.testing.assert_array_equal(round_e4m3(values), values)
    between = (values[1:] + values[:-1]) / 2
    # Ties go to the even fraction, which is every other number.
    even = np.where(np.arange(126) % 2, values[1:], values[:-1])
    np.testing.assert_array_equal(round_e4m3(between), even)
    np.testing.assert_array_equal(round_e4m3(np.nextafter(between, dtype(0))), values[:-1])
    np.testing.assert_array_equal(round_e4m3(np.nextafter(between, dtype(1e9))), values[1:])
    np.testing.assert_array_equal(round_e4m3(-between), -even)
    assert round_e4m3(between).dtype == dtype


def test_round_e4m3_saturates_and_keeps_signs_and_nan():
    x = np.array([449, 464, 480, 1e30, np.inf, -np.inf, np.nan, -0.0, -1e-9], np.float32)
    expected = np.array([448, 448, 448, 448, 448, -448, np.nan, -0.0, -0.0], np.float32)
    np.testing.assert_array_equal(round_e4m3(x), expected)
    np.testing.assert_array_equal(np.signbit(round_e4m3(x)), np.signbit(expected))


def test_round_e4m3_agrees_with_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    x = np.concatenate([bits.view(np.float32), np.linspace(-464, 464, 100_001, dtype=np.float32)])
    x = x[np.abs(x) < 464]  # beyond which that type has NaN
    expected = x.astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(round_e4m3(x), expected.astype(np.float32))
    np.testing.assert_array_equal(e4m3_bits(round_e4m3(x)), expected.view(np.uint8))


def test_e4m3_bits_are_those_of_the_format():
    bits, values = np.array(list(E4M3), np.uint8), np.array(list(E4M3.values()), np.float32)
    values[bits == 0x80] = -0.0
    np.testing.assert_array_equal(e4m3_values(bits), values)
    assert e4m3_values(bits).dtype == np.float32
    np.testing.assert_array_equal(e4m3_bits(values), bits)


def test_largest_numbers_of_types():
    assert LARGEST["float16"] == np.finfo(np.float16).max
    assert LARGEST["bfloat16"] == float(np.array([0x7F7F0000], np.uint32).view(np.float32)[0])
    assert LARGEST["float32"] == np.finfo(np.float32).max


@pytest.mark.parametrize("dtype", LARGEST)
def test_saturation_leaves_what_is_not_finite(dtype):
    x = np.array([0.0, -1.5, 1e300, -1e300, np.inf, -np.inf, np.nan])
    largest = LARGEST[dtype]
    expected = [0.0, -1.5, largest, -largest, np.inf, -np.inf, np.nan]
    np.testing.assert_array_equal(saturate(x, dtype), expected)
