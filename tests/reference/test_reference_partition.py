"""Shares of workers that decode, and the rule by which their results are merged."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuattn.errors import ArgumentError
from cuattn.reference.decode import Partial, merge, partition


@given(
    lengths=st.lists(st.integers(0, 2000), max_size=5),
    heads=st.integers(1, 4),
    workers=st.integers(1, 150),
)
def test_shares_hold_every_block_once_and_are_equal(lengths, heads, workers):
    shares = partition(np.array(lengths, np.int32), heads, workers)
    found = [
        (piece.sequence, piece.head, block)
        for share in shares
        for piece in share
        for block in piece.blocks
    ]
    every = [
        (b, h, block)
        for b, length in enumerate(lengths)
        for h in range(heads)
        for block in range(-(-length // 128))
    ]
    assert found == every
    sizes = [sum(len(piece.blocks) for piece in share) for share in shares]
    share = max(sizes)
    assert share <= -(-len(every) // workers) * 17 / 16
    assert sizes == [min(max(len(every) - w * share, 0), share) for w in range(workers)]
    # What a worker has of a head is one piece.
    assert all(
        (a.sequence, a.head) < (b.sequence, b.head) for share in shares for a, b in pairwise(share)
    )


def test_shares_end_where_heads_do():
    for lengths, heads in (([131072], 8), ([8192] * 16, 8), ([4096] * 64, 8), ([32768], 32)):
        shares = partition(np.array(lengths), heads, 264)
        assert all(len(share) <= 2 for share in shares)
        blocks = lengths[0] // 128
        starts = [share[0].blocks.start for share in shares if share]
        assert all(start % min(blocks, 32) == 0 for start in starts)


@given(
    lengths=st.lists(st.integers(0, 9000), min_size=1, max_size=5),
    heads=st.integers(1, 4),
    workers=st.integers(1, 150),
    recent_units=st.integers(1, 20),
)
def test_shares_of_nested_codes_hold_every_block_once(lengths, heads, workers, recent_units):
    shares = partition(lengths, heads, workers, recent_units)
    found = [(x.sequence, x.head, n) for share in shares for x in share for n in x.blocks]
    every = [
        (b, h, n)
        for b, length in enumerate(lengths)
        for h in range(heads)
        for n in range(-(-length // 128))
    ]
    assert found == every


def costs(shares, lengths, recent_units):
    """Stages of each worker: two for a block with one of the newest units."""
    return [
        sum(
            1 + (8 * n + 8 > -(-lengths[piece.sequence] // 16) - recent_units)
            for piece in share
            for n in piece.blocks
        )
        for share in shares
    ]


@pytest.mark.parametrize(
    ("lengths", "heads", "workers", "most", "without"),
    [([131072], 8, 264, 32, 35), ([131072], 8, 396, 21, 24), ([8192] * 16, 8, 396, 23, 24)],
)
def test_shares_of_nested_codes_take_alike(lengths, heads, workers, most, without):
    shares = partition(lengths, heads, workers, 17)
    assert all(len(share) <= 1 for share in shares)
    assert max(costs(shares, lengths, 17)) == most
    assert max(costs(partition(lengths, heads, workers), lengths, 17)) == without


def partial(rng, unseen=()):
    row_max, row_sum = 100 * rng.standard_normal(6), rng.uniform(1, 128, 6)
    o = rng.standard_normal((6, 5))
    for row in unseen:
        row_max[row], row_sum[row], o[row] = -np.inf, 0, 0
    return Partial(o, row_max, row_sum, row_max > -np.inf)


def assert_equal(a, b):
    np.testing.assert_allclose(a.row_max, b.row_max, rtol=0)
    np.testing.assert_allclose(a.row_sum, b.row_sum, rtol=1e-12)
    np.testing.assert_allclose(a.o, b.o, rtol=1e-11, atol=1e-14)


def test_merging_is_associative_and_commutative(rng):
    a, b, c = partial(rng, [0, 5]), partial(rng, [1, 5]), partial(rng, [2, 5])
    assert_equal(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert_equal(merge(a, b), merge(b, a))


def test_merging_with_nothing_changes_nothing(rng):
    a, nothing = partial(rng, [3]), partial(rng, range(6))
    assert_equal(merge(a, nothing), a)
    assert_equal(merge(nothing, nothing), nothing)


def test_partition_refuses_what_is_no_number_of_heads():
    with pytest.raises(ArgumentError, match="heads"):
        partition([1], -1, 1)
