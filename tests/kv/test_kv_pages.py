"""Pages of a KV cache, and what the host knows of its sequences."""

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.kv.book import Book
from cuattn.kv.geometry import KVGeometry
from cuattn.kv.pages import NO_PAGE
from cuattn.kv_format import KVFormat

BATCH = 3


def book(num_pages=8, capacity=64, page_size=16):
    return Book(KVGeometry(KVFormat(64), BATCH, 1, capacity, page_size, num_pages))


def grow(of, *counts):
    plan = of.plan(np.array(counts), (0,))
    given = of.give_pages(plan.after) if plan.lacks_pages else None
    of.learn(plan.after)
    return given


def used(of):
    return of.pages.table[of.pages.table != NO_PAGE].tolist()


def test_sequences_get_pages_as_they_need_them():
    of = book()
    given = grow(of, 17, 0, 16)
    assert given.sequence.tolist() == [0, 0, 2]
    assert given.place.tolist() == [0, 1, 0]
    assert given.page.tolist() == [0, 1, 2]
    assert of.limits.tolist() == [32, 0, 16]
    assert grow(of, 15, 0, 0) is None
    assert grow(of, 1, 1, 0).page.tolist() == [3, 4]
    assert of.pages.table.tolist() == [[0, 1, 3, -1], [4, -1, -1, -1], [2, -1, -1, -1]]
    assert of.lengths.tolist() == [33, 1, 16]


def test_capacity_that_is_not_whole_pages_limits():
    of = book(capacity=40)
    grow(of, 40, 0, 0)
    assert of.limits.tolist() == [40, 0, 0]
    with pytest.raises(ArgumentError, match="at most 0 tokens for sequence 0, which has 40 of 40"):
        grow(of, 1, 0, 0)


def test_free_pages_limit():
    of = book(num_pages=4)
    grow(of, 33, 0, 0)
    before = of.pages.table.copy()
    with pytest.raises(ArgumentError, match="k must be such that the 1 free pages suffice, not 2"):
        grow(of, 0, 1, 1)
    np.testing.assert_array_equal(of.pages.table, before)
    assert of.lengths.tolist() == [33, 0, 0]
    grow(of, 0, 0, 16)


def test_truncated_sequences_give_pages_back():
    of = book(num_pages=4)
    grow(of, 40, 16, 0)
    of.truncate(of.truncated([16, 16, 0]))
    assert of.pages.table.tolist() == [[0, -1, -1, -1], [3, -1, -1, -1], [-1, -1, -1, -1]]
    assert of.limits.tolist() == [16, 16, 0]
    assert sorted(grow(of, 0, 0, 32).page.tolist()) == [1, 2]


def test_reserved_pages_stay_until_reset():
    of = book()
    given = of.reserve(20)
    assert given.sequence.tolist() == [0, 0, 1, 1, 2, 2]
    assert of.limits.tolist() == [32] * 3
    assert not of.reserve(17).page.size
    grow(of, 40, 20, 0)
    of.truncate(of.truncated([0, 0, 0]))
    assert of.limits.tolist() == [32] * 3
    of.reset()
    assert of.limits.tolist() == [0] * 3
    assert used(of) == []
    assert sorted(grow(of, 64, 64, 0).page.tolist()) == list(range(8))


def test_reserving_too_much_changes_nothing():
    of = book(num_pages=5)
    with pytest.raises(ArgumentError, match="tokens must be such that the 5 free pages suffice"):
        of.reserve(17)
    assert used(of) == []
    for tokens in (-1, 65, 1.0, True, "all"):
        with pytest.raises(ArgumentError, match="tokens must be a whole number from 0 to 64"):
            of.reserve(tokens)


def table(*rows):
    return [[*row, *[NO_PAGE] * (4 - len(row))] for row in rows]


def test_own_pages_of_the_caller():
    of = book()
    grow(of, 16, 0, 0)
    of.replace_pages(table([7, 1], [3], []))
    assert of.limits.tolist() == [32, 16, 0]
    assert grow(of, 16, 16, 0) is None
    with pytest.raises(ArgumentError, match="sequence 2 has at most the 0 tokens of its pages"):
        grow(of, 0, 0, 1)
    of.truncate(of.truncated([1, 0, 0]))
    of.reset()
    assert of.limits.tolist() == [32, 16, 0]
    assert used(of) == [7, 1, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (table([0, 8], [1], []), "pages 0 to 7"),
        (table([0, -2], [1], []), "pages 0 to 7"),
        (table([0, 1], [1], []), "there twice"),
        (table([0, 1], [2, -1, 3], []), "followed by -1 only"),
        (table([0], [1], []), "the 17 tokens of sequence 0"),
        ([[0, 1, 2]] * 3, r"whole numbers of shape \(3, 4\)"),
        (np.zeros((3, 4)), r"whole numbers of shape \(3, 4\)"),
    ],
)
def test_wrong_tables_are_refused(rows, message):
    of = book()
    grow(of, 17, 0, 0)
    before = of.pages.table.copy()
    with pytest.raises(ArgumentError, match=message):
        of.replace_pages(rows)
    np.testing.assert_array_equal(of.pages.table, before)
    assert grow(of, 16, 0, 0).page.tolist() == [2]


def test_a_cache_in_one_piece_has_no_table():
    of = Book(KVGeometry(KVFormat(64), BATCH, 1, 20, 0, BATCH))
    assert of.limits.tolist() == [20] * 3
    assert of.reserve(20) is None
    assert grow(of, 20, 0, 1) is None
    with pytest.raises(ArgumentError, match="page_size only"):
        of.replace_pages([[0]] * 3)


def test_an_append_begins_sequences_that_are_empty():
    of = book()
    assert of.may_begin
    assert of.plan(np.array([1, 0, 0]), (0,)).begins
    grow(of, 1, 1, 0)
    assert not of.plan(np.array([5, 5, 0]), (0,)).begins
    assert of.plan(1, (0,)).begins
    grow(of, 0, 0, 1)
    assert not of.may_begin
    assert not of.plan(1, (0,)).begins


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([4, 0, 0], "0 to 3 for sequence 0, not 4"),
        ([0, -1, 0], "0 to 2 for sequence 1, not -1"),
        ([0, 0], r"whole numbers of shape \(3,\)"),
        ([0.0, 0.0, 0.0], r"whole numbers of shape \(3,\)"),
    ],
)
def test_truncating_to_other_lengths_is_refused(lengths, message):
    of = book()
    grow(of, 3, 2, 1)
    with pytest.raises(ArgumentError, match=message):
        of.truncated(lengths)
