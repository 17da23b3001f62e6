"""Quantized attention with masks, biases, softcap and sinks, beside `exact.attention` with them."""

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.presets import PRESETS
from cuattn.reference import distributions, emulate, exact, metrics, quantize

SHAPE = {"batch": 1, "num_q_heads": 4, "num_kv_heads": 2, "seqlen_q": 150, "seqlen_kv": 300}
Q, K, V = distributions.make("k-bias", **SHAPE, head_dim=32)
V = V + 0.25

RNG = np.random.default_rng(0)
OPTIONS = {
    "window": {"window_size": (100, 3)},
    "causal window": {"window_size": (130, 0), "is_causal": True},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks": np.array([4.0, 6.0, -3.0, -np.inf])},
    "documents": {"attn_mask": np.arange(300) // 60 == np.arange(150, 300)[:, None] // 60},
    "bias": {"attn_mask": RNG.standard_normal((4, 150, 300)), "is_causal": True},
    "alibi": {"alibi_slopes": 2.0 ** -np.arange(1, 5), "is_causal": True},
    "all": {
        "window_size": (200, 20),
        "softcap": 3.0,
        "sinks": np.zeros(4),
        "attn_mask": np.arange(300) % 7 > 0,
        "alibi_slopes": np.full(4, 0.01),
    },
}


def error(scheme, options):
    """Return the relative L1 error of an emulated call, and the largest one of lse."""
    o, lse = exact.attention(Q, K, V, **options)
    found_o, found_lse = emulate.attention(Q, K, V, scheme=scheme, **options)
    seen = np.isfinite(lse)
    np.testing.assert_array_equal(np.isfinite(found_lse), seen)
    return metrics.relative_l1(found_o, o), np.abs(found_lse - lse)[seen].max()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("scheme", [*PRESETS])
def test_options_cost_no_scheme_its_accuracy(scheme, name):
    plain, plain_lse = error(scheme, {"is_causal": OPTIONS[name].get("is_causal", False)})
    found, found_lse = error(scheme, OPTIONS[name])
    # Fewer keys average less out, and the largest error of lse is one row's. A bias in units of
    # log 2, a softcap of smoothed logits or a sink beside them are off by far more.
    assert found < 2.2 * plain
    assert found_lse < 5 * plain_lse + 1e-12


@pytest.mark.parametrize("scheme", ["int8", "int8-fast", "int4", "fp16"])
@pytest.mark.parametrize(
    "options",
    [
        {"window_size": (299, 149)},
        {"softcap": 0.0, "sinks": np.full(4, -np.inf)},
        {"attn_mask": np.ones((1, 1, 150, 300), bool)},
    ],
)
def test_what_changes_nothing_gives_the_same_bits(scheme, options):
    plain = emulate.attention(Q, K, V, scheme=scheme)
    for x, y in zip(emulate.attention(Q, K, V, scheme=scheme, **options), plain, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("scheme", ["int8", "int8-block", "int8-fast", "int-flash", "fp8", "twin"])
def test_blocks_that_a_row_does_not_see_leave_it_alone(scheme):
    # Rows of one document after the other: blocks of 128 keys before and behind are hidden.
    numbers = np.repeat([0, 1, 2], [140, 20, 140])
    mask = numbers == numbers[150:, None]
    mask[7] = False
    o, lse = emulate.attention(Q, K, V, scheme=scheme, attn_mask=mask)
    expected_o, expected_lse = exact.attention(Q, K, V, attn_mask=mask)
    assert not o[:, :, 7].any()
    assert np.all(lse[:, :, 7] == -np.inf)
    assert metrics.relative_l1(o, expected_o) < 0.15
    seen = np.isfinite(expected_lse)
    np.testing.assert_allclose(lse[seen], expected_lse[seen], atol=0.3)


@pytest.mark.parametrize("options", [{"softcap": 5.0}, {"sinks": np.zeros(4)}])
def test_smoothed_keys_ask_for_what_smoothing_took(options):
    ops = quantize.operands(Q, K, V, PRESETS["int8"])
    with pytest.raises(
        ArgumentError, match="lse_shift must be given with softcap, sinks or score_mod"
    ):
        emulate.emulate(ops, "int8", **options)
