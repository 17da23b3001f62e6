"""The order of sorted keys, and which of them share scales."""

from dataclasses import replace

import numpy as np
import pytest

from cuattn.reference import emulate
from cuattn.reference.quantize import operands, quantize
from cuattn.reference.quantized import token_amax
from cuattn.reference.sorting import (
    COLUMN_OF_PLACE,
    PLACE_OF_COLUMN,
    SCOPE_OF_PLACE,
    natural_order,
    scopes_of_order,
    sorted_order,
)
from cuattn.scheme import Scheme

SORTED = Scheme("sorted", k_scope="sorted", v_scope="sorted", smooth_v="sample")


def magnitudes(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.lognormal(size=(2, 3, n)).astype(np.float32)


def test_a_place_is_a_column_of_one_lane():
    """Lane t of an m16n8 accumulator has columns 8 i + 2 t and 8 i + 2 t + 1."""
    assert sorted(COLUMN_OF_PLACE) == list(range(128))
    np.testing.assert_array_equal(COLUMN_OF_PLACE[PLACE_OF_COLUMN], np.arange(128))
    for place, column in enumerate(COLUMN_OF_PLACE):
        assert column % 8 // 2 == place // 32


def test_sections_have_2_12_14_and_4_places_of_a_lane():
    np.testing.assert_array_equal(np.bincount(SCOPE_OF_PLACE), [2, 12, 14, 4] * 4)
    np.testing.assert_array_equal(SCOPE_OF_PLACE // 4, np.arange(128) // 32)


@pytest.mark.parametrize("n", [1, 127, 128, 129, 300])
def test_an_order_has_every_token_of_a_block_once(n):
    order = sorted_order(magnitudes(n), magnitudes(n, 1))
    assert order.shape == (2, 3, -(-n // 128), 128)
    np.testing.assert_array_equal(np.sort(order), np.broadcast_to(np.arange(128), order.shape))


def test_sections_are_those_of_v_and_lanes_follow_k():
    """In the first, pairs by V share a lane; in the last, lanes 0 and 1 have its lower half."""
    k, v = magnitudes(128), magnitudes(128, 1)
    order = sorted_order(k, v)
    for at in np.ndindex(2, 3):
        by_v = np.argsort(v[at])
        sections = np.split(order[at][0].reshape(4, 32), [2, 14, 28], axis=1)
        for i, tokens in enumerate(np.split(by_v, [8, 56, 112])):
            lanes = sections[i]
            if i == 0:
                assert sorted(map(tuple, lanes)) == sorted(map(tuple, tokens.reshape(4, 2)))
                assert (np.diff(k[at][lanes].max(axis=1)) > 0).all()
                continue
            parts = 2 if i == 3 else 1
            for dealt, some in zip(np.split(lanes, parts), np.split(tokens, parts), strict=True):
                assert set(dealt.ravel()) == set(some)
                assert (np.diff(k[at][dealt].ravel()) >= 0).all()


def test_equal_magnitudes_keep_the_order_of_tokens():
    order = sorted_order(np.ones((1, 1, 128), np.float32), np.ones((1, 1, 128), np.float32))
    filled = [
        *order[0, 0, 0].reshape(4, 32)[:, :2].ravel(),
        *order[0, 0, 0].reshape(4, 32)[0, 2:14],
    ]
    assert filled == list(range(20))


def test_differences_below_15_bits_of_the_fraction_do_not_count():
    v = np.ones((1, 1, 128), np.float32)
    v[..., 0] = np.nextafter(np.float32(1), np.float32(2))
    assert sorted_order(v, v)[0, 0, 0, 0] == 0
    v[..., 0] = 1 + 2.0**-14
    assert sorted_order(v, v)[0, 0, 0, 0] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_the_largest_but_for_tokens_past_the_end(bad):
    k, v = magnitudes(124)[:1, :1], magnitudes(124, 1)[:1, :1]
    v[..., 7] = bad
    largest = sorted_order(k, v)[0, 0, 0].reshape(4, 32)[:, 28:]
    assert 7 in largest
    # Past the end K is the largest, too.
    assert list(largest[3]) == [124, 125, 126, 127]


def test_keys_that_are_not_sorted_are_in_their_columns():
    order = natural_order(1, 2, 130)
    assert order.shape == (1, 2, 2, 128)
    np.testing.assert_array_equal(order[0, 0, 0][PLACE_OF_COLUMN], np.arange(128))


def test_a_scale_is_made_of_the_largest_token_that_shares_it():
    x = np.random.default_rng(3).standard_normal((1, 2, 200, 8)).astype(np.float32)
    order = sorted_order(token_amax(x), token_amax(x[..., ::-1] * 2))
    made = quantize(x, scope="sorted", order=order)
    scopes = scopes_of_order(order, 200)
    for head in range(2):
        for one in np.unique(scopes[0, head]):
            members = scopes[0, head] == one
            expected = np.abs(x[0, head, members]).max() / np.float32(127)
            assert set(made.scale[0, head, members]) == {expected}
    error = np.abs(made.dequantize() - x)
    assert (error <= 0.5001 * made.scale[..., None]).all()


def test_rows_do_not_depend_on_the_order_of_keys_inside_a_block():
    """Softmax does not see it: only what shares a scale does."""
    rng = np.random.default_rng(4)
    q, k, v = (rng.standard_normal((1, 1, 256, 16)) for _ in range(3))
    shuffled = np.concatenate([rng.permutation(128), 128 + rng.permutation(128)])
    scheme = replace(SORTED, smooth_k="mean", smooth_v="mean")  # which have no order either
    o, lse = emulate.attention(q, k, v, scheme=scheme)
    again, lse_again = emulate.attention(q, k[:, :, shuffled], v[:, :, shuffled], scheme=scheme)
    # The means have other roundings only.
    np.testing.assert_allclose(again, o, atol=2e-3)
    np.testing.assert_allclose(lse_again, lse, atol=2e-3)


def test_operands_of_both_have_one_order():
    rng = np.random.default_rng(5)
    q, k, v = (rng.standard_normal((1, 2, 150, 16)) for _ in range(3))
    made = operands(q, k, v, SORTED)
    assert made.k.order is made.v.order
    assert made.q.order is None
