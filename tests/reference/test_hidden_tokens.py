"""What a hidden token of any size does to the rows that do not see it: what scales' scopes do."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest

import cuattn
from cuattn.presets import PRESETS
from cuattn.reference import emulate, exact
from cuattn.reference.distributions import make
from cuattn.reference.metrics import relative_l1

NUMERICS = Path(cuattn.__file__).resolve().parent.parent / "docs" / "numerics.md"
TOKENS, BLOCK = 512, 128
HEADS = {"batch": 1, "num_q_heads": 2, "num_kv_heads": 2, "head_dim": 64}

# Schemes without a scale that other tokens share with the last one.
FREE = ("int8-token", "int8-fp16", "int8-two-term", "int4-fp16", "int-flash-half", "fp16")
# Of own schemes those whose scales are those of lanes, sections or blocks.
BLOCKS = ("int8", "int8-fp8", "int-flash-rotated")


@functools.cache
def inputs(tokens=TOKENS):
    """Return Q, K and V, K and V with a last token of 10^4 times the size, and the exact O."""
    q, k, v = make("normal", **HEADS, seqlen_q=tokens, seqlen_kv=tokens)
    huge = []
    for x in (k, v):
        huge.append(x.copy())
        huge[-1][:, :, -1] *= np.float32(1e4)
    return (q, k, v), (q, *huge), exact.attention(q, k, v, is_causal=True)[0]


def error(qkv, scheme, rows, tokens=TOKENS):
    o, _ = emulate.attention(*qkv, scheme=scheme, is_causal=True)
    return 100 * relative_l1(o[:, :, rows], inputs(tokens)[2][:, :, rows])


@functools.cache
def errors(scheme):
    """Return the errors in %, without and with the huge token: of rows before its block, in it."""
    rows = (slice(TOKENS - BLOCK), slice(TOKENS - BLOCK, TOKENS - 1))
    return [[error(qkv, scheme, which) for which in rows] for qkv in inputs()[:2]]


def table():
    """Return what docs/numerics.md says of each scheme: two pairs of numbers, and a reason."""
    text = NUMERICS.read_text(encoding="utf-8")
    part = re.search(r"<!-- hidden tokens -->\n(.*?)\n\n", text, re.DOTALL)[1]
    return {
        name: ([[float(x) for x in pair.split(" / ")] for pair in (clean, huge)], why)
        for name, clean, huge, why in re.findall(
            r"^\| `([\w-]+)` \| (.+?) \| (.+?) \| (.*?) ?\|$", part, re.MULTILINE
        )
    }


@pytest.mark.parametrize("scheme", PRESETS)
def test_the_table_says_what_is_found(scheme):
    said, why = table()[scheme]
    np.testing.assert_allclose(errors(scheme), said, rtol=0.05)
    clean, huge = errors(scheme)
    harmless = all(b <= 1.2 * a for a, b in zip(clean, huge, strict=True))
    assert harmless == (not why)


def test_the_table_has_every_preset():
    assert table().keys() == PRESETS.keys()


@pytest.mark.parametrize("scheme", FREE)
def test_without_shared_scales_it_has_no_effect(scheme):
    clean, huge = errors(scheme)
    assert np.all(np.array(huge) <= np.multiply(1.05, clean))


@pytest.mark.parametrize("scheme", BLOCKS)
def test_rows_of_other_blocks_share_no_scale_with_it(scheme):
    clean, huge = errors(scheme)
    assert huge[0] <= 1.05 * clean[0]


def test_the_default_hardly_notices_it_in_a_long_sequence():
    """A sample without the token, and one block among many."""
    clean, huge, _ = inputs(4096)
    rows = slice(4095)
    assert error(huge, "int8", rows, 4096) < 1.2 * error(clean, "int8", rows, 4096)


@pytest.mark.parametrize("tokens", [20, 60, 128])
def test_it_has_no_effect_in_short_sequences_either(tokens):
    clean, huge, _ = inputs(tokens)
    rows = slice(tokens - 1)
    found = error(huge, "int8-token", rows, tokens) / error(clean, "int8-token", rows, tokens)
    assert found < 1.2


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_costs_no_channel_its_mean(poison):
    """It was left out of means before, but then its channel went unsmoothed."""
    q, k, v = (x.copy() for x in inputs()[0])
    k += np.float32(20)
    clean, _ = emulate.attention(q, k, v, scheme="int8-token", is_causal=True)
    k[:, :, -1, 3] = v[:, :, -1, 5] = poison
    o, _ = emulate.attention(q, k, v, scheme="int8-token", is_causal=True)
    assert relative_l1(o[:, :, :-1], clean[:, :, :-1]) < 0.01
    assert not np.isfinite(o[:, :, -1]).any()
