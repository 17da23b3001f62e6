"""Options of `exact.attention` that change logits or hide keys, and `merge_states`, written out."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuattn.errors import ArgumentError
from cuattn.reference import exact, merging


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def inputs(seqlen_q=5, seqlen_kv=9, batch=2, heads=4, kv_heads=2):
    return (
        normal(batch, heads, seqlen_q, 3),
        normal(batch, kv_heads, seqlen_kv, 3, seed=1),
        normal(batch, kv_heads, seqlen_kv, 2, seed=2),
    )


def sees(i, j, own, options):
    """Whether position hides nothing of key j from row i, whose own key is given."""
    left, right = options.get("window_size", (-1, -1))
    if options.get("is_causal") and j > own:
        return False
    return (left < 0 or j >= own - left) and (right < 0 or j <= own + right)


def by_definition(q, k, v, **options):
    """Attention one row after the other, with every option written out."""
    batch, heads, seqlen_q, _ = q.shape
    seqlen_kv = k.shape[2]
    o, lse = np.zeros((batch, heads, seqlen_q, v.shape[3])), np.full(q.shape[:3], -np.inf)
    used = options.get("seqused_k", [seqlen_kv] * batch)
    full = (batch, heads, seqlen_q, seqlen_kv)
    mask = np.broadcast_to(options.get("attn_mask", np.zeros(1)), full)
    slopes = np.broadcast_to(options.get("alibi_slopes", np.zeros(1)), (batch, heads))
    sinks = options.get("sinks", np.full(heads, -np.inf))
    for b, h, i in itertools.product(range(batch), range(heads), range(seqlen_q)):
        own, logits, values = i + used[b] - seqlen_q, [sinks[h]], [np.zeros(v.shape[3])]
        for j in range(used[b]):
            allowed, bias = mask[b, h, i, j], 0.0
            if mask.dtype != bool:
                bias = float(mask[b, h, i, j])
                allowed = bias > np.finfo(mask.dtype).min
            if not (allowed and sees(i, j, own, options)):
                continue
            s = q[b, h, i] @ k[b, h // (heads // k.shape[1]), j] / np.sqrt(q.shape[3])
            if options.get("softcap"):
                s = options["softcap"] * np.tanh(s / options["softcap"])
            logits.append(s - slopes[b, h] * abs(own - j) + bias)
            values.append(v[b, h // (heads // k.shape[1]), j])
        if max(logits) > -np.inf:
            weights = np.exp(np.array(logits) - max(logits))
            lse[b, h, i] = max(logits) + np.log(weights.sum())
            o[b, h, i] = weights @ np.array(values) / weights.sum()
    return o, lse


def documents(lengths):
    """Return a mask in which tokens see those of their own document."""
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    return numbers[:, None] == numbers


FLOATS = normal(2, 1, 5, 9, seed=3)
FLOATS[0, 0, 1] = -np.inf
FLOATS[1, 0, :, 2:5] = np.finfo(np.float64).min

OPTIONS = {
    "is_causal": [True],
    "window_size": [(2, 0), (0, 1), (-1, 2), (3, -1), (0, 0)],
    "softcap": [0.5, 20.0],
    "sinks": [np.array([0.3, -2.0, 5.0, -np.inf])],
    "attn_mask": [
        documents([2, 3, 4])[4:],
        FLOATS,
        np.clip(FLOATS, np.finfo(np.float16).min, None).astype(np.float16),
        np.arange(9) % 3 > 0,
    ],
    "alibi_slopes": [np.array([0.5, 0.25, 0.0, 1.0]), normal(2, 4, seed=4)],
    "seqused_k": [[9, 4], [0, 1]],
}
ALONE = [{name: value} for name, values in OPTIONS.items() for value in values]


def agree(found, expected):
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("block", [2, 1024])
@pytest.mark.parametrize("options", ALONE, ids=lambda options: next(iter(options)))
def test_each_option_is_what_its_definition_says(options, block):
    q, k, v = inputs()
    agree(exact.attention(q, k, v, **options, block=block), by_definition(q, k, v, **options))


@given(
    options=st.fixed_dictionaries(
        {}, optional={name: st.sampled_from(values) for name, values in OPTIONS.items()}
    ),
    block=st.sampled_from([1, 3, 64]),
)
def test_options_combine(options, block):
    q, k, v = inputs()
    agree(exact.attention(q, k, v, **options, block=block), by_definition(q, k, v, **options))


@given(seqlen_q=st.integers(0, 9), left=st.integers(-1, 9), right=st.integers(-1, 9))
def test_windows_of_any_size_beside_any_length(seqlen_q, left, right):
    q, k, v = inputs(seqlen_q, 6, batch=1)
    found = exact.attention(q, k, v, window_size=(left, right), block=2)
    agree(found, by_definition(q, k, v, window_size=(left, right)))


NEUTRAL = [
    {"window_size": (8, 8)},
    {"softcap": 0.0},
    {"sinks": np.full(4, -np.inf, np.float32)},
    {"attn_mask": np.ones((5, 9), bool)},
    {"attn_mask": np.zeros((2, 1, 1, 9), np.float16)},
    {"alibi_slopes": np.zeros(4)},
    {"seqused_k": [9, 9]},
]


@pytest.mark.parametrize("options", NEUTRAL)
@pytest.mark.parametrize("is_causal", [False, True])
def test_what_changes_nothing_gives_the_same_bits(options, is_causal):
    q, k, v = inputs()
    plain = exact.attention(q, k, v, is_causal=is_causal, block=4)
    found = exact.attention(q, k, v, **options, is_causal=is_causal, block=4)
    for x, y in zip(found, plain, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize(
    "options",
    [
        {"window_size": (2, 0)},
        {"attn_mask": np.arange(9) > 3},
        {"attn_mask": np.where(np.arange(9) > 3, 0, -np.inf)},
        {"seqused_k": [5, 5]},
    ],
)
def test_what_nobody_sees_never_shows(options, poison):
    q, k, v = inputs()
    clean = exact.attention(q, k, v, **options)
    nobody = slice(5, None) if "seqused_k" in options else slice(0, 2)
    k[:, :, nobody] = v[:, :, nobody] = poison
    for x, y in zip(exact.attention(q, k, v, **options), clean, strict=True):
        np.testing.assert_array_equal(x, y)


def test_rows_without_keys_have_the_sink_alone():
    q, k, v = inputs()
    sinks = np.array([0.5, -1.0, 2.0, -np.inf])
    mask = np.ones((5, 9), bool)
    mask[2] = False
    o, lse = exact.attention(q, k, v, attn_mask=mask, sinks=sinks)
    assert not o[:, :, 2].any()
    np.testing.assert_array_equal(lse[:, :, 2], [sinks, sinks])
    assert o[:, :, [0, 1, 3, 4]].all()


@pytest.mark.parametrize("ends", [[9], [3, 9], [0, 0, 4, 9, 9], [8, 9]])
@pytest.mark.parametrize("magnitude", [1.0, 80.0])
def test_parts_of_the_keys_merge_into_all_of_them(ends, magnitude):
    q, k, v = inputs()
    k[:, :, 5:] *= magnitude
    parts = []
    for begin, end in itertools.pairwise([0, *ends]):
        parts.append(exact.attention(q, k[:, :, begin:end], v[:, :, begin:end]))
    whole = exact.attention(q, k, v)
    for order in (parts, parts[::-1]):
        agree(merging.merge_states(*map(np.stack, zip(*order, strict=True))), whole)


def test_nothing_merges_into_nothing():
    o, lse = np.full((3, 2, 4, 5), np.nan), np.full((3, 2, 4), -np.inf)
    for parts in (0, 1, 3):
        merged_o, merged_lse = merging.merge_states(o[:parts], lse[:parts])
        np.testing.assert_array_equal(merged_o, np.zeros((2, 4, 5)))
        np.testing.assert_array_equal(merged_lse, np.full((2, 4), -np.inf))


def test_states_of_one_query_merge():
    o, lse = merging.merge_states([[1.0, 3.0], [3.0, 5.0], [np.nan, 0.0]], [0.0, 0.0, -np.inf])
    np.testing.assert_array_equal(o, [2.0, 4.0])
    assert lse == np.log(2.0)
    # Only what nobody sees is left out: NaN in a part that weighs nothing still is NaN.
    assert np.isnan(merging.merge_states([[1.0], [np.nan]], [0.0, -2000.0])[0]).all()


WRONG = [
    ("window_size", (1, 2, 3), "window_size must be whole numbers of shape"),
    ("window_size", (-2, 0), r"window_size must be \(left, right\), -1 for all keys"),
    ("window_size", (0.5, 0), "window_size must be whole numbers"),
    ("softcap", -1.0, "softcap must be a positive number"),
    ("softcap", np.nan, "softcap must be a positive number"),
    ("softcap", "50", "softcap must be a positive number"),
    ("sinks", np.zeros(2), r"sinks must be an array of shape \(4,\)"),
    ("sinks", np.zeros(4, int), "sinks.dtype must be a floating-point type"),
    (
        "attn_mask",
        np.ones((5, 8), bool),
        r"attn_mask must be an array that broadcasts to \(2, 4, 5, 9",
    ),
    ("attn_mask", np.ones((5, 9), int), "attn_mask.dtype must be a floating-point type"),
    ("alibi_slopes", np.zeros(3), r"alibi_slopes must be an array that broadcasts to \(2, 4\)"),
    ("seqused_k", np.array([9, 10]), r"seqused_k must be whole numbers from 0 to 9, got \[9, 10\]"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_wrong_options_are_named(name, value, message):
    with pytest.raises(ArgumentError, match=message):
        exact.attention(*inputs(), **{name: value})


def test_states_that_do_not_fit_are_refused():
    with pytest.raises(ArgumentError, match=r"lse.shape must be"):
        merging.merge_states(np.zeros((2, 3, 4)), np.zeros((2, 4)))
