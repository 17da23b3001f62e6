"""Which tokens ranks have, and the calls that attend from some rows to some keys."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ring_cases import seen_by

import cuattn
from cuattn.distributed import positions, shard, unshard
from cuattn.distributed.parts import part_of, parts_of
from cuattn.distributed.placement import PLACEMENTS, Run, joined
from cuattn.errors import ArgumentError


@given(st.integers(0, 40), st.integers(1, 6), st.sampled_from(PLACEMENTS))
def test_every_token_is_on_one_rank(total, size, placement):
    every = [positions(total, size, rank, placement) for rank in range(size)]
    assert sorted(np.concatenate(every)) == list(range(total))
    lengths = [len(x) for x in every]
    assert max(lengths) - min(lengths) <= (2 if placement == "zigzag" else 1)
    x = np.arange(2 * 3 * total).reshape(1, 2, total, 3)
    shards = [shard(x, size, rank, placement) for rank in range(size)]
    for part, where in zip(shards, every, strict=True):
        np.testing.assert_array_equal(part, x[:, :, where])
    np.testing.assert_array_equal(unshard(shards, placement), x)


bounds = st.one_of(st.none(), st.integers(-12, 12))


@given(st.integers(0, 9), st.integers(0, 9), bounds, bounds)
def test_a_call_sees_what_the_bounds_say(rows, keys, low, high):
    ahead = np.arange(keys)[None, :] - np.arange(rows)[:, None]
    wanted = np.ones((rows, keys), bool)
    if low is not None:
        wanted &= ahead >= low
    if high is not None:
        wanted &= ahead <= high
    seen = np.zeros((rows, keys), bool)
    part = part_of(rows, keys, low, high)
    if part is not None:
        seen[part.start : part.stop] = seen_by(part)
    np.testing.assert_array_equal(seen, wanted)


def test_runs_that_adjoin_are_one():
    assert joined([Run(0, 1, 3), Run(3, 1, 2)]) == (Run(0, 1, 5),)
    assert joined([Run(0, 1, 0), Run(7, 1, 2)]) == (Run(7, 1, 2),)
    assert joined([Run(0, 1, 2), Run(5, 1, 0)]) == (Run(0, 1, 2),)
    assert joined([Run(0, 2, 2), Run(4, 1, 2)]) == (Run(0, 2, 2), Run(4, 1, 2))


def test_mistakes_are_named():
    with pytest.raises(ArgumentError, match="placement must be one of"):
        positions(8, 2, 0, "zig-zag")
    with pytest.raises(ArgumentError, match="rank must be from 0 to 1"):
        positions(8, 2, 2)
    with pytest.raises(ArgumentError, match="layout must be"):
        shard(np.zeros((1, 1, 4, 8)), 2, 0, layout="BHND")
    with pytest.raises(ArgumentError, match=r"shards must be of \[4, 4\] tokens"):
        unshard([np.zeros((1, 1, 5, 8)), np.zeros((1, 1, 3, 8))])
    with pytest.raises(cuattn.ArgumentError, match="timeout must be"):
        cuattn.distributed.from_environment(timeout=0)


@st.composite
def some_runs(draw):
    """Return runs at distance 1 of each other, one behind the other, with gaps or without."""
    found, at = [], draw(st.integers(-3, 9))
    for _ in range(draw(st.integers(1, 3))):
        run = Run(at, 1, draw(st.integers(1, 6)))
        found.append(run)
        at = run.start + run.tokens + draw(st.integers(0, 6))
    return tuple(found)


@given(some_runs(), some_runs(), st.integers(0, 9))
def test_rows_see_the_first_keys_of_a_piece(queries, piece, right):
    rows, keys = (
        np.concatenate([np.arange(run.start, run.start + run.tokens) for run in runs])
        for runs in (queries, piece)
    )
    seen = np.zeros((len(rows), len(keys)), int)
    for part in parts_of(queries, piece, -1, right):
        assert part.window_size[0] == -1
        seen[part.start : part.stop, : part.keys] += seen_by(part)
    np.testing.assert_array_equal(seen, keys[None, :] <= rows[:, None] + right)
