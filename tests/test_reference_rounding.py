"""Rounding to half-precision types."""

import numpy as np
import pytest

from cuattn.reference.rounding import round_bfloat16, round_half


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
