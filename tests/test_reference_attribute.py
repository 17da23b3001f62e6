"""The attribution of errors to Q, K, P and V."""

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.reference import emulate, exact
from cuattn.reference.attribute import attribute
from cuattn.reference.distributions import make
from cuattn.reference.metrics import metrics
from cuattn.reference.quantize import operands
from cuattn.scheme import PRESETS


def qkv(name="normal"):
    return make(
        name, batch=1, num_q_heads=2, num_kv_heads=1, seqlen_q=64, seqlen_kv=300, head_dim=32
    )


@pytest.mark.parametrize("scheme", PRESETS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_attribute_rounds_one_operand_at_a_time(scheme, is_causal):
    """Rounding Q, K or V alone is exact attention on what that operand represents."""
    q, k, v = qkv("k-bias")
    found = attribute(q, k, v, scheme=scheme, scale=0.3, is_causal=is_causal)
    options = {"scale": 0.3, "is_causal": is_causal}
    expected, _ = exact.attention(q, k, v, **options)
    ops = operands(q, k, v, scheme)
    for name in ("q", "k", "v"):
        x = getattr(ops, name)
        arrays = {"q": q, "k": k, "v": v}
        arrays[name] = x if isinstance(x, np.ndarray) else x.dequantize()
        o, _ = exact.attention(**arrays, **options)
        assert found[name] == pytest.approx(metrics(o, expected), rel=1e-6)
    o, _ = emulate.attention(q, k, v, scheme=scheme, **options)
    assert found["all"] == metrics(o, expected)


@pytest.mark.parametrize("scheme", PRESETS)
def test_attribute_finds_shares_that_add_up(scheme):
    found = attribute(*qkv(), scheme=scheme)
    assert list(found) == ["q", "k", "p", "v", "all"]
    squares = sum(found[name]["relative_l2"] ** 2 for name in ("q", "k", "p", "v"))
    # The four are independent in first order; their product terms are of the square of 1 %.
    assert squares**0.5 == pytest.approx(found["all"]["relative_l2"], rel=0.1)


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
