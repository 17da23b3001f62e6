"""Nested codes: 8 bits of which the upper 4 are codes too."""

import numpy as np
import pytest

from cuattn.kv_format import KVFormat
from cuattn.reference.distributions import make
from cuattn.reference.kv_cache import kept, quantize_keys, quantize_nested
from cuattn.reference.metrics import relative_l1
from cuattn.reference.nested import nested_codes, scale_and_zero, words


def elements(rng, head_dim=128, tokens=40, scale=1.0, mean=0.0):
    return (scale * rng.standard_normal((2, 1, tokens, head_dim)) + mean).astype(np.float32)


def fine(made):
    return kept(made, np.ones(made.codes.shape[::2][:2], np.bool_)).dequantize()


def upper(made):
    return kept(made, np.zeros(made.codes.shape[::2][:2], np.bool_)).dequantize()


def numbers_of(made):
    return made.fine_scale, made.fine_zero, made.scale, made.zero


def test_a_group_by_hand():
    x = np.float32([-128, 126, -2, 14]).reshape(1, 1, 1, 4)
    made = nested_codes(x, 1)
    # Around -1 up to 127 away: steps of 1.
    assert (made.fine_zero.item(), made.fine_scale.item()) == (-1, 1)
    assert made.codes.ravel().tolist() == [-127, 127, -1, 15]
    assert made.upper.ravel().tolist() == [-128, 112, -16, 0]
    # Sums of codes and halves: 14 and -32; 4 times variance and covariance: 32485 * 4 - 196 and
    # 30496 * 4 + 448.
    ratio = np.float32((32485 * 4 - 196) / (30496 * 4 + 448))
    assert made.scale.item() == pytest.approx(ratio, rel=2**-8)
    assert made.zero.item() == pytest.approx(-1 + 14 / 4 + made.scale.item() * 32 / 4, rel=2**-8)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("scale", "mean"), [(1, 0), (1e-6, 3), (1e30, 0), (5, -40)])
def test_nothing_is_further_from_its_8_bits_than_half_a_step(rng, groups, scale, mean):
    made = nested_codes(elements(rng, scale=scale, mean=mean), groups)
    x = elements(np.random.default_rng(0), scale=scale, mean=mean)
    made = nested_codes(x, groups)
    step = np.repeat(made.fine_scale, 128 // groups, axis=3)
    assert (np.abs(fine(made) - x) <= 0.5001 * step).all()
    # The largest deviation from the zero point is 127 steps, which bfloat16 makes 1 % longer.
    reach = np.abs(x - np.repeat(made.fine_zero, 128 // groups, axis=3)).reshape(
        2, 1, 40, groups, -1
    )
    assert (made.fine_scale <= 1.01 * reach.max(axis=4) / 127).all()


def test_all_numbers_are_bfloat16_and_come_back_from_words(rng):
    made = nested_codes(elements(rng), 2)
    for x in numbers_of(made):
        assert x.dtype == np.float32
        assert not (x.view(np.uint32) & 0xFFFF).any()
    scale, zero = scale_and_zero(words(made.scale, made.zero))
    np.testing.assert_array_equal(scale, made.scale)
    np.testing.assert_array_equal(zero, made.zero)


@pytest.mark.parametrize("groups", [1, 2])
def test_upper_halves_are_unbiased(rng, groups):
    """Their mean and their product with the whole codes' deviations are those of these codes."""
    made = nested_codes(elements(rng, mean=0.3), groups)
    shape = (2, 1, 40, groups, 128 // groups)
    whole, halves = (x.reshape(shape) for x in (fine(made), upper(made)))
    step = made.scale * 16
    assert (np.abs(whole.mean(axis=4) - halves.mean(axis=4)) <= 0.02 * step).all()
    deviation = whole - whole.mean(axis=4, keepdims=True)
    own, other = (deviation**2).sum(axis=4), (deviation * halves).sum(axis=4)
    np.testing.assert_allclose(other, own, rtol=2**-8)


def test_rounding_down_is_no_loss_of_size(rng):
    """The scale that makes the squared error least would shrink these by 1 %."""
    x = elements(rng, 64, 4000)
    made = nested_codes(x, 1)
    q = rng.standard_normal((64,))
    slope = [np.polyfit((x @ q).ravel(), (y @ q).ravel(), 1)[0] for y in (fine(made), upper(made))]
    np.testing.assert_allclose(slope, 1, atol=1.5e-3)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.0, 2.0**-100, 1e-38])
def test_equal_elements_are_kept(value):
    made = nested_codes(np.full((1, 1, 2, 64), value, np.float32), 1)
    for x in (fine(made), upper(made)):
        np.testing.assert_allclose(x, value, rtol=2**-8, atol=2.0**-70)
    assert (made.scale > 0).all()


def test_groups_of_zeros_of_both_signs_are_one(rng):
    x = np.where(rng.random((1, 1, 3, 64)) < 0.5, np.float32(0), np.float32(-0.0))
    for number in numbers_of(nested_codes(x, 1)):
        assert not np.signbit(number).any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_group(rng, wrong):
    x = elements(rng, tokens=2)
    made = nested_codes(x, 2)
    x[0, 0, 1, 70] = wrong
    found = nested_codes(x, 2)
    assert np.isnan(found.scale[0, 0, 1, 1])
    assert np.isnan(found.fine_scale[0, 0, 1, 1])
    assert not found.codes[0, 0, 1, 64:].any()
    for a, b in zip(numbers_of(found), numbers_of(made), strict=True):
        different = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        different[0, 0, 1, 1] = False
        assert not different.any()


@pytest.mark.parametrize("name", ["normal", "k-bias", "outliers", "channel-outliers", "rope"])
def test_errors_are_no_larger_than_those_of_plain_codes(name):
    """At equal bits: a float32 scale of 64 channels, or two bfloat16 numbers."""
    sizes = {"batch": 1, "num_q_heads": 2, "num_kv_heads": 2, "seqlen_q": 1}
    _, k, _ = make(name, **sizes, seqlen_kv=256, head_dim=128)
    plain = quantize_keys(k, KVFormat(128, 4, 4, 64)).dequantize()
    made, _ = quantize_nested(k, k, KVFormat(128, 4, 4, 64, nested=True))
    assert relative_l1(upper(made), k) < relative_l1(plain, k)
