"""The attribution of errors to Q, K, P and V."""

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.presets import PRESETS
from cuattn.reference import emulate, exact
from cuattn.reference.attribute import attribute
from cuattn.reference.distributions import make
from cuattn.reference.metrics import metrics
from cuattn.reference.quantize import operands
from cuattn.reference.smoothing import Q_BLOCK, block_means


def qkv(name="normal", seqlen_q=64):
    return make(
        name, batch=1, num_q_heads=2, num_kv_heads=1, seqlen_q=seqlen_q, seqlen_kv=300, head_dim=32
    )


def means_of_q(q, scheme):
    """What smoothing subtracts from each row of Q."""
    if PRESETS[scheme].smooth_q == "none":
        return np.zeros_like(q)
    return np.repeat(block_means(q), Q_BLOCK, axis=2)[:, :, : q.shape[2]]


def values_of(x):
    return x if isinstance(x, np.ndarray) else x.dequantize()


@pytest.mark.parametrize("scheme", PRESETS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_attribute_rounds_one_operand_at_a_time(scheme, is_causal):
    """Rounding Q, K or V alone is exact attention on what that operand represents.

    The products of Q's means are of the unrounded keys: attention with twice the channels.
    """
    q, k, v = qkv("k-bias", seqlen_q=200)
    found = attribute(q, k, v, scheme=scheme, scale=0.3, is_causal=is_causal)
    options = {"scale": 0.3, "is_causal": is_causal}
    expected, _ = exact.attention(q, k, v, **options)
    ops = operands(q, k, v, scheme)
    means = means_of_q(q, scheme).astype(np.float64)
    for name in ("q", "k", "v"):
        arrays = {"q": q - means, "k": k, "v": v} | {name: values_of(getattr(ops, name))}
        o, _ = exact.attention(
            np.concatenate([arrays["q"], means], axis=-1),
            np.concatenate([arrays["k"], k], axis=-1),
            np.concatenate([arrays["v"], np.zeros_like(v)], axis=-1),
            **options,
        )
        assert found[name] == pytest.approx(metrics(o[..., :32], expected), rel=1e-6)
    o, _ = emulate.attention(q, k, v, scheme=scheme, **options)
    assert found["all"] == metrics(o, expected)


@pytest.mark.parametrize("scheme", PRESETS)
def test_attribute_finds_shares_that_add_up(scheme):
    found = attribute(*qkv(), scheme=scheme)
    assert list(found) == ["q", "k", "p", "v", "all"]
    squares = sum(found[name]["relative_l2"] ** 2 for name in ("q", "k", "p", "v"))
    # The four are independent in first order; their product terms are of the square of 1 %.
    assert squares**0.5 == pytest.approx(found["all"]["relative_l2"], rel=0.1)


@pytest.mark.parametrize("distribution", ["common-mean", "channel-outliers"])
@pytest.mark.parametrize("scheme", ["int4", "sage2-4", "twin"])
def test_attribute_blames_the_coarsest_rounding(scheme, distribution):
    found = attribute(*qkv(distribution), scheme=scheme)
    share = {name: found[name]["relative_l2"] for name in ("q", "k", "p", "v")}
    together = sum(error**2 for error in share.values()) ** 0.5
    # Errors of 50 % are beyond first order, so the sum is a rougher one.
    assert together == pytest.approx(found["all"]["relative_l2"], rel=0.15)
    if PRESETS[scheme].qk == "int4":
        assert min(share["q"], share["k"]) > 4 * max(share["p"], share["v"])
    elif distribution == "common-mean":
        # Of 8 bits all, P has the fewest steps in most of its range.
        assert share["p"] == max(share.values())
    else:
        assert min(share["q"], share["k"]) > 2 * max(share["p"], share["v"])


def test_attribute_takes_a_reference_and_reports_progress():
    q, k, v = qkv()
    reference, _ = exact.attention(q, k, v)
    without, with_it = [], []
    first = attribute(q, k, v, progress=lambda *step: without.append(step))
    second = attribute(q, k, v, reference=reference, progress=lambda *step: with_it.append(step))
    assert first == second
    assert without == [(i, 6) for i in range(1, 7)]
    assert with_it == [(i, 5) for i in range(1, 6)]


def test_attribute_refuses_a_reference_of_another_shape():
    q, k, v = qkv()
    with pytest.raises(ArgumentError, match=r"^reference\.shape must be"):
        attribute(q, k, v, reference=k)
