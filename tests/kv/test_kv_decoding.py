"""Decoding from a KV cache, on the host and on a GPU, against the reference on its own codes."""

import numpy as np
import pytest
from helpers.kv_contents_cases import (
    DTYPES,
    FORMATS,
    HOST,
    Filled,
    _kernels,  # noqa: F401
    every_format,
    every_place,
    random_pages,
    some_formats,
)

import cuattn
from cuattn.reference import exact
from cuattn.scheme import Scheme

# Units of 16 tokens and blocks of 128, whole and not.
LENGTHS = [1, 15, 16, 17, 127, 128, 129, 300, 511]

# The scheme of the same codes.
PLAIN = Scheme("plain", smooth_k="none", smooth_v="none")


@every_place
@every_format
@pytest.mark.parametrize("head_dim", [64, 128])
def test_decoding_matches_the_reference(rng, place, options, head_dim):
    filled = Filled(place, batch=3, head_dim=head_dim, **options)
    filled.append(rng, [129, 300, 16], spare=3)
    filled.attend(rng, 8, 1)
    filled.append(rng, [1, 1, 1])
    filled.check_contents()
    filled.attend(rng, 8, 1)


@every_place
@some_formats
@pytest.mark.parametrize("head_dim", [16, 80, 96, 112, 176, 256])
def test_other_head_dims(rng, place, options, head_dim):
    filled = Filled(place, head_dim=head_dim, **options).append(rng, [200, 77])
    filled.check_contents()
    filled.attend(rng, 4, 3)


@every_place
@some_formats
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_every_type_and_layout(rng, place, options, dtype, layout):
    filled = Filled(place, **options)
    for counts in ([140, 33], [3, 1]):
        filled.append(rng, counts, dtype=dtype, layout=layout)
        filled.check_contents()
        filled.attend(rng, 4, 2, dtype=dtype, layout=layout, scale=0.2)


@every_place
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(rng, place, length):
    filled = Filled(place, batch=1).append(rng, length)
    filled.check_contents()
    for is_causal in (False, True):
        filled.attend(rng, 2, 4, is_causal=is_causal)


@every_place
@pytest.mark.parametrize("group", [1, 4, 5, 8, 16, 40])
@pytest.mark.parametrize("name", ["8 bits", "4 bits"])
def test_heads_of_a_group(rng, place, group, name):
    filled = Filled(place, head_dim=128, **FORMATS[name]).append(rng, [260, 90])
    filled.attend(rng, 2 * group, 1)


@every_place
@some_formats
@pytest.mark.parametrize("queries", [2, 5, 17])
@pytest.mark.parametrize("is_causal", [False, True])
def test_several_queries(rng, place, options, queries, is_causal):
    filled = Filled(place, batch=3, head_dim=128, **options).append(rng, [200, 128, 4])
    for q_heads in (2, 8):
        filled.attend(rng, q_heads, queries, is_causal=is_causal)


@every_place
@some_formats
def test_sequences_without_tokens(rng, place, options):
    filled = Filled(place, batch=3, **options)
    q, o = filled.attend(rng, 4, 2)
    assert not o.any()
    filled.append(rng, [0, 40, 0])
    _, o = filled.attend(rng, 4, 2)
    assert not o[[0, 2]].any()
    filled.append(rng, [17, 0, 0])
    filled.check_contents()
    filled.attend(rng, 4, 2)
    _, lse = filled.cache.attend(q, return_lse=True)
    assert (place.host(lse)[2] == -np.inf).all()


@every_place
def test_queries_that_see_no_token_are_zero(rng, place):
    filled = Filled(place, batch=1).append(rng, 3)
    _, o = filled.attend(rng, 4, 8)
    assert not o[:, :, :5].any()
    assert o[:, :, 5:].any(axis=-1).all()


@every_place
def test_no_queries(rng, place):
    filled = Filled(place).append(rng, 20)
    q = place.array(np.zeros((2, 4, 0, 64), np.float32))
    o, lse = filled.cache.attend(q, return_lse=True)
    assert (o.shape, lse.shape) == (q.shape, (2, 4, 0))


@every_place
@some_formats
def test_scale_and_output_of_the_callers(rng, place, options):
    filled = Filled(place, **options).append(rng, [150, 10])
    for scale in (0.0, 0.01, 0.3):
        q, o = filled.attend(rng, 4, 1, scale=scale)
        out = place.array(np.full(q.shape, np.nan, np.float32))
        assert filled.cache.attend(q, scale=scale, out=out) is out
        np.testing.assert_array_equal(place.host(out), o)


@every_place
@every_format
@pytest.mark.parametrize("page_size", [16, 64, 256])
def test_pages_give_the_same_bits(rng, place, options, page_size):
    seed = rng.integers(2**32)
    found = []
    for size in (0, page_size):
        filled = Filled(place, capacity=320, page_size=size, **options)
        if size:
            random_pages(rng, filled.cache)
        again = np.random.default_rng(seed)
        for counts in ([129, 16], [1, 40], [150, 1]):
            filled.append(again, counts)
        filled.check_contents()
        found.append(filled.attend(again, 8, 2)[1].tobytes())
    assert found[0] == found[1]


@every_place
@some_formats
def test_pieces_give_the_same_bits(rng, place, options):
    seed = rng.integers(2**32)
    q, o = [], []
    pieces = ([100] * 3, [300], [1] * 5 + [295], [16, 112, 128, 44])
    tokens = np.random.default_rng(seed).standard_normal((2, 2, 2, 300, 64), dtype=np.float32)
    q = place.array(tokens[0, :, :, :3])
    for counts in pieces:
        filled = Filled(place, smooth_k=False, **options)
        first = 0
        for n in counts:
            k, v = (place.array(x[:, :, first : first + n]) for x in tokens)
            filled.cache.append(k, v)
            first += n
        o.append(place.host(filled.cache.attend(q)).tobytes())
    assert len(set(o)) == 1


@every_place
@pytest.mark.parametrize("head_dim", [64, 128])
def test_decoding_is_attention_on_the_same_codes(rng, place, head_dim):
    filled = Filled(place, batch=2, head_dim=head_dim, smooth_k=False, rotate=False)
    for count in (150, 1, 99):
        filled.append(rng, count)
    k, v = filled.tokens()
    for queries, q_heads in ((1, 8), (5, 2)):
        q, values = filled.draw(rng, q_heads, queries, "float16")
        o, lse = cuattn.attention(q, k, v, scheme=PLAIN, is_causal=True, return_lse=True)
        filled.check_output(values, place.host(o), place.host(lse))


@every_place
@pytest.mark.parametrize("name", FORMATS)
def test_errors_are_those_of_the_bits(rng, place, name):
    filled = Filled(place, batch=1, head_dim=128, **FORMATS[name]).append(rng, 500)
    q, values = filled.draw(rng, 4, 1, "float16")
    truth, truth_lse = exact.attention(values, filled.k[0][None], filled.v[0][None])
    o, lse = (place.host(x) for x in filled.cache.attend(q, return_lse=True))
    error = np.abs(o - truth).sum() / np.abs(truth).sum()
    assert error < (0.02 if name == "8 bits" else 0.25)
    # The keys' offset is put back: 2 sqrt(128) / sqrt(2) of each logit's unit are not lost.
    assert np.abs(lse - truth_lse).max() < (0.02 if name == "8 bits" else 0.3)


def test_repeated_calls_take_turns_with_others(rng):
    """Plans are remembered by kind: another kind between two equal ones changes nothing."""
    filled = Filled(HOST).append(rng, 40)
    q, o = filled.attend(rng, 4, 1)
    filled.attend(rng, 8, 3, is_causal=False)
    np.testing.assert_array_equal(filled.cache.attend(q), o)
