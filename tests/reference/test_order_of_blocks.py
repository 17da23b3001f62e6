"""The first block of keys is taken last, after which sinks have no say in others."""

from dataclasses import replace

import numpy as np
import pytest

from cuattn.presets import PRESETS
from cuattn.reference import emulate, exact
from cuattn.reference.distributions import make
from cuattn.reference.metrics import relative_l1
from cuattn.reference.quantize import operands

SIZES = {"batch": 1, "num_q_heads": 4, "num_kv_heads": 4, "seqlen_q": 128, "head_dim": 128}


def errors(scheme, q, k, v):
    """Return the error in the order of the kernels, and with what is of the other end first."""
    expected, _ = exact.attention(q, k, v)
    # Of whole blocks: what was the first is now taken first.
    turned = (np.roll(x, 128, axis=2) for x in (k, v))
    found = (emulate.attention(q, *kv, scheme=scheme)[0] for kv in ((k, v), turned))
    return [relative_l1(o, expected) for o in found]


@pytest.mark.parametrize(
    ("scheme", "first_is_last", "first_to_last"),
    [
        ("int8-fast", 0.135, 0.330),
        ("int-flash", 0.176, 0.405),
        ("sage-vt", 0.141, 0.394),
        ("int8-fp8", 0.034, 0.036),
    ],
)
def test_sinks_come_last(scheme, first_is_last, first_to_last):
    """Others are rounded before a maximum that none of them comes near."""
    q, k, v = make("sinks", **SIZES, seqlen_kv=4096)
    assert errors(scheme, q, k, v) == pytest.approx([first_is_last, first_to_last], rel=0.03)


@pytest.mark.parametrize("scheme", ["int8-fast", "int-flash"])
def test_either_order_serves_where_all_keys_are_alike(scheme):
    found = errors(scheme, *make("normal", **SIZES, seqlen_kv=4096))
    assert found[0] == pytest.approx(found[1], rel=0.05)


@pytest.mark.parametrize("distribution", ["normal", "sinks"])
@pytest.mark.parametrize("scheme", ["int8", "int8-token", "int8-block", "int8-two-term", "int4"])
def test_order_is_nothing_to_the_maximum_of_a_block(scheme, distribution):
    # Without means, which float32 rounds in an order of its own.
    of_codes = replace(PRESETS[scheme], smooth_q="none", smooth_k="none", smooth_v="none")
    q, k, v = make(distribution, **SIZES, seqlen_kv=1024)
    o, lse = emulate.attention(q, k, v, scheme=of_codes)
    turned, turned_lse = emulate.attention(q, k[:, :, ::-1], v[:, :, ::-1], scheme=of_codes)
    np.testing.assert_allclose(turned, o, rtol=0, atol=1e-14 * np.abs(o).max())
    np.testing.assert_allclose(turned_lse, lse, rtol=1e-14)


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ({}, [128, 256, 0]),
        ({"is_causal": True}, [128, 0]),
        ({"window_size": (100, 30)}, [128, 0]),
        ({"window_size": (20, 0)}, [128]),
    ],
)
def test_blocks_stay_where_they_are(options, starts):
    """The order is another one, the blocks are not: each starts at a multiple of its size."""
    qkv = make("normal", **(SIZES | {"seqlen_q": 300}), seqlen_kv=300)
    seen = []
    emulate.emulate(
        operands(*qkv, "fp8"),
        "fp8",
        row_blocks=[range(150, 180)],
        observe=lambda b, h, rows, keys, p: seen.append(keys.start),
        **options,
    )
    assert seen == starts * SIZES["num_q_heads"]
