"""Bounds on the error of the schemes, and what they owe to each of their ideas."""

import functools
from dataclasses import replace
from itertools import pairwise

import pytest

from cuattn.presets import PRESETS
from cuattn.reference import emulate, exact
from cuattn.reference.distributions import make
from cuattn.reference.metrics import relative_l1
from cuattn.reference.quantize import operands


@functools.cache
def inputs(distribution, seqlen_kv, heads, head_dim):
    # Rows do not influence each other, so 128 of a few heads stand for a whole call.
    q, k, v = make(
        distribution,
        batch=1,
        num_q_heads=heads,
        num_kv_heads=heads,
        seqlen_q=128,
        seqlen_kv=seqlen_kv,
        head_dim=head_dim,
    )
    return q, k, v, exact.attention(q, k, v)[0]


def error(scheme, distribution, seqlen_kv=1024, heads=4, head_dim=128):
    q, k, v, expected = inputs(distribution, seqlen_kv, heads, head_dim)
    return relative_l1(emulate.attention(q, k, v, scheme=scheme)[0], expected)


@pytest.mark.parametrize(
    ("distribution", "bound"),
    [
        ("normal", 0.015),
        ("uniform", 0.0045),
        ("k-bias", 0.015),
        ("peaked", 0.028),
        ("outliers", 0.03),
        ("common-mean", 0.002),
        ("channel-outliers", 0.027),
    ],
)
def test_int8_keeps_its_promises(distribution, bound):
    assert error("int8", distribution, seqlen_kv=4096, heads=16) <= bound


def test_int8_does_not_get_worse_with_length():
    assert error("int8", "normal", 16384) <= 1.15 * error("int8", "normal", 1024)
    # Against the running maximum, small probabilities round to 0: the longer the row, the more.
    assert error("int-flash", "normal", 16384) > 1.5 * error("int-flash", "normal", 1024)


@pytest.mark.parametrize(
    "distribution",
    ["normal", "uniform", "k-bias", "peaked", "outliers", "common-mean", "channel-outliers"],
)
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


@pytest.mark.parametrize(
    ("scheme", "bound"),
    [("sage-t", 0.019), ("sage-b", 0.021), ("sage-vt", 0.064), ("sage-vb", 0.138)],
)
def test_sage_attention_is_as_close_as_its_paper_says(scheme, bound):
    """Relative L1 errors of SageAttention's kernels (arXiv 2410.02367)."""
    assert error(scheme, "normal", head_dim=64) <= bound


@pytest.mark.parametrize("scheme", ["int4", "int4-fp16"])
def test_smoothing_of_q_and_k_makes_room_for_4_bits(scheme):
    both = PRESETS[scheme]
    of_k = replace(both, smooth_q="none")
    found = [
        error(s, "common-mean", head_dim=64) for s in (both, of_k, replace(of_k, smooth_k="none"))
    ]
    assert found[0] <= 0.065
    assert found[0] < 0.8 * found[1]
    assert found[1] < 0.9 * found[2]


@pytest.mark.parametrize("preset", ["int4", "sage2-4"])
def test_fewer_numbers_of_a_scale_are_closer(preset):
    """Groups of channels, tokens, those of a thread, blocks: what 4 bits are worth."""
    found = [
        error(replace(PRESETS[preset], q_scope=scope, k_scope=scope, qk_group=32), "normal")
        for scope in ("group", "token", "thread", "block")
    ]
    assert all(fine < 0.9 * coarse for fine, coarse in pairwise(found))


@pytest.mark.parametrize(
    ("preset", "rotate"), [("int8", "qk"), ("int4", "qk"), ("int4", "qkv"), ("twin", "qkv")]
)
def test_rotation_keeps_outlier_channels_harmless(preset, rotate):
    plain, rotated = (replace(PRESETS[preset], rotate=x) for x in ("none", rotate))
    assert error(rotated, "channel-outliers") < 0.65 * error(plain, "channel-outliers")
    assert error(rotated, "normal") == pytest.approx(error(plain, "normal"), rel=0.05)


@pytest.mark.parametrize("distribution", ["normal", "peaked", "sinks"])
def test_two_terms_leave_no_error_of_p(distribution):
    scheme = PRESETS["int8-two-term"]
    q, k, v, expected = inputs(distribution, 1024, 4, 128)
    o, _ = emulate.emulate(operands(q, k, v, scheme), scheme, round_p=False)
    assert error(scheme, distribution) == pytest.approx(relative_l1(o, expected), rel=0.001)
    assert error(scheme, distribution) < error("int8", distribution)


def test_twin_steps_keep_small_probabilities():
    """The longer the row, the more keys have less than 1/127 of the largest probability."""
    one_range = replace(PRESETS["twin"], p_range="static127")
    assert error("twin", "sinks") < 0.75 * error(one_range, "sinks")
    assert error("twin", "normal", 16384) < 0.5 * error(one_range, "normal", 16384)


def test_fp16_is_the_baseline():
    assert error("fp16", "normal") < 0.001
