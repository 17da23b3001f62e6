"""Whatever parts a scheme has: without its roundings it is attention."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.presets import PRESETS
from cuattn.reference import exact
from cuattn.reference.emulate import emulate
from cuattn.reference.quantize import operands
from cuattn.reference.smoothing import lse_shift
from cuattn.scheme import Scheme

QK = {
    "qk": ("int8", "int4"),
    "q_scope": ("token", "group", "thread", "block"),
    "k_scope": ("token", "group", "thread", "block"),
    "qk_group": (32, 64),
    "smooth_q": ("none", "block"),
    "smooth_k": ("none", "mean", "sample"),
    "rotate": ("none", "qk", "qkv"),
}
PV = {
    "pv": ("int8", "int4", "fp8", "fp16"),
    "v_scope": ("token", "block", "channel", "tensor"),
    "p_range": ("block", "row", "row_pow2", "static127", "twin"),
    "p_terms": (1, 2),
    "p_split": (3, 9),
    "smooth_v": ("none", "mean", "sample"),
    "rotate": ("none", "qk", "qkv"),
}


def valid(**options):
    """Return all schemes that these values make together."""
    found = []
    for values in product(*options.values()):
        try:
            found.append(Scheme("any", **dict(zip(options, values, strict=True))))
        except ArgumentError:
            continue
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(4)
    q = rng.standard_normal((1, 2, 150, 64)) * 2 + 1
    k, v = rng.standard_normal((2, 1, 1, 200, 64)) + 0.5
    return [x.astype(np.float32) for x in (q, k, v)]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("options", [QK, PV], ids=["scores", "values"])
def test_all_parts_compose_exactly(inputs, options, is_causal):
    truth, lse = exact.attention(*inputs, is_causal=is_causal)
    # Each has one of the masks, and each value of a part both.
    schemes = valid(**options)[is_causal::2]
    assert len(schemes) > 60
    for scheme in schemes:
        ops = operands(*inputs, scheme, exact=("q", "k", "v"))
        shift = lse_shift(inputs[0], getattr(ops.k, "vector", None), 64**-0.5)
        o, found = emulate(ops, scheme, is_causal=is_causal, lse_shift=shift, round_p=False)
        # Scales and means are rounded to float32, and subtracted means with them.
        np.testing.assert_allclose(o, truth, atol=3e-6, err_msg=str(scheme))
        np.testing.assert_allclose(found, lse, atol=3e-6, err_msg=str(scheme))


def relative_l1(inputs, scheme):
    o, _ = emulate(operands(*inputs, scheme), scheme)
    truth, _ = exact.attention(*inputs)
    return np.abs(o - truth).sum() / np.abs(truth).sum()


def test_more_of_everything_is_more_accurate(inputs):
    base = Scheme("base", qk="int4")
    eight, two = replace(base, qk="int8"), Scheme("two", p_terms=2)
    assert relative_l1(inputs, eight) < relative_l1(inputs, base) / 4
    assert relative_l1(inputs, two) < relative_l1(inputs, eight)
    groups = replace(base, q_scope="group", k_scope="group", qk_group=32)
    assert relative_l1(inputs, groups) < relative_l1(inputs, base)
    # All rows of Q and all keys have a mean in common.
    assert relative_l1(inputs, replace(base, smooth_q="block")) < relative_l1(inputs, base)
    assert relative_l1(inputs, base) < relative_l1(inputs, replace(base, smooth_k="none"))


@pytest.mark.parametrize(
    ("scheme", "matrices"), [("int8", 1), ("int8-two-term", 2), ("twin", 2), ("fp16", 1)]
)
def test_p_is_split_into_matrices(scheme, matrices):
    assert PRESETS[scheme].p_matrices == matrices
