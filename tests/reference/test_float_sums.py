"""What sums of P V that begin at the bits of 12582912 cost: the arithmetic of attention_sm90.cu."""

import numpy as np
import pytest

MAGIC = np.float32(12582912.0)
# Blocks of keys after which what is too much is taken off O.
BIASED = 4
# docs/numerics.md, section 11: in steps of V's scale.
BOUND = 1 / 40


def fma(x, y, z):
    """Multiply and add with one rounding to float32; float64 holds the product exactly."""
    return np.float32(np.float64(x) * np.float64(y) + np.float64(z))


def attended(sums, weights, totals):
    """Return O over the row sum, of blocks with integer sums of P V, weights and sums of P.

    Parameters
    ----------
    sums : ndarray of int64 [block, channel]
    weights, totals : ndarray of float32 [block]

    Returns
    -------
    found, exact : ndarray [channel]
        In steps of V's scale.
    """
    o = np.zeros(sums.shape[1], np.float32)
    bias, row_sum = np.float32(0), 0.0
    for block, (products, weight, total) in enumerate(zip(sums, weights, totals, strict=True)):
        begun = (MAGIC.view(np.int32) + products).astype(np.int32).view(np.float32)
        o = fma(begun, weight, o)
        bias = np.float32(bias + weight)
        row_sum += float(weight) * float(total)
        if block % BIASED == BIASED - 1:
            o, bias = fma(-MAGIC, bias, o), np.float32(0)
    o = fma(-MAGIC, bias, o)
    exact = (weights.astype(np.float64)[:, None] * sums).sum(axis=0)
    return o / row_sum, exact / row_sum


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 7, 64, 500])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_a_fortieth_of_a_step_at_most(rng, blocks, spread):
    """Where it is worst: one key of a block has all of its P, and O nearly nothing of V."""
    weights = np.exp2(spread * rng.standard_normal(blocks)).astype(np.float32)
    # One code of V for 255, and what cancels among the many channels of a row.
    codes = rng.integers(-127, 128, (blocks, 256))
    found, exact = attended(255 * codes, weights, np.full(blocks, 255.0, np.float32))
    assert np.abs(found - exact).max() <= BOUND


def test_it_does_not_grow_with_the_keys(rng):
    errors = []
    for blocks in (8, 2000):
        codes = rng.integers(-127, 128, (blocks, 256))
        weights = rng.uniform(0.5, 1, blocks).astype(np.float32)
        found, exact = attended(255 * codes, weights, np.full(blocks, 255.0, np.float32))
        errors.append(np.abs(found - exact).max())
    assert errors[1] <= errors[0]


def test_bits_read_as_floats_are_the_integers():
    """Sums of 128 products of codes are below 2^22."""
    sums = np.array([-255 * 127 * 128, -1, 0, 1, 255 * 127 * 128])
    floats = (MAGIC.view(np.int32) + sums).astype(np.int32).view(np.float32)
    np.testing.assert_array_equal(floats.astype(np.float64) - 12582912, sums)
