"""Bounds on the error of the schemes, and what they owe to each of their ideas."""

import functools

import pytest

from cuattn.reference import emulate, exact
from cuattn.reference.distributions import make
from cuattn.reference.metrics import relative_l1


@functools.cache
def inputs(distribution, seqlen_kv, heads):
    # Rows do not influence each other, so 128 of a few heads stand for a whole call.
    q, k, v = make(
        distribution,
        batch=1,
        num_q_heads=heads,
        num_kv_heads=heads,
        seqlen_q=128,
        seqlen_kv=seqlen_kv,
        head_dim=128,
    )
    return q, k, v, exact.attention(q, k, v)[0]


def error(scheme, distribution, seqlen_kv=1024, heads=4):
    q, k, v, expected = inputs(distribution, seqlen_kv, heads)
    return relative_l1(emulate.attention(q, k, v, scheme=scheme)[0], expected)


@pytest.mark.parametrize(
    ("distribution", "bound"),
    [
        ("normal", 0.015),
        ("uniform", 0.0045),
        ("k-bias", 0.015),
        ("peaked", 0.028),
        ("outliers", 0.03),
    ],
)
def test_int8_keeps_its_promises(distribution, bound):
    assert error("int8", distribution, seqlen_kv=4096, heads=16) <= bound


def test_int8_does_not_get_worse_with_length():
    assert error("int8", "normal", 16384) <= 1.15 * error("int8", "normal", 1024)
    # Against the running maximum, small probabilities round to 0: the longer the row, the more.
    assert error("int-flash", "normal", 16384) > 1.5 * error("int-flash", "normal", 1024)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "k-bias", "peaked", "outliers"])
def test_int8_is_closer_than_int_flash(distribution):
    assert error("int8", distribution) < error("int-flash", distribution)


def test_int8_fp16_shows_the_floor_of_int8_scores():
    # Rounding errors of Q and K are uniform: N(0, s²/12) each, s = max/127, and the maximum of 128
    # normal numbers is about 2.75; so a logit is off by sqrt(2/12)·2.75/127 = 0.9 %, and with it P.
    assert error("int8-fp16", "normal") == pytest.approx(0.009, rel=0.1)


def test_smoothing_makes_a_channel_bias_of_k_harmless():
    assert error("int8-fp16", "k-bias") < 1.1 * error("int8-fp16", "normal")
    assert error("int-flash-half", "k-bias") > 1.5 * error("int-flash-half", "normal")


def test_scale_per_token_of_v_keeps_sinks_harmless():
    """Sinks have small values and large weights; one scale per channel drowns those values."""
    assert error("int8", "sinks") < 0.02
    assert error("int-flash", "sinks") > 0.1


def test_fp16_is_the_baseline():
    assert error("fp16", "normal") < 0.001
