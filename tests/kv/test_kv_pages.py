"""Pages of a KV cache, and what the host knows of its sequences."""

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.kv import plans
from cuattn.kv.geometry import KVGeometry
from cuattn.kv.host_state import HostState
from cuattn.kv.pages import NO_PAGE
from cuattn.kv_format import KVFormat
from cuattn.reference.kv_offsets import FIRST_TOKENS

BATCH = 3


def host_state(num_pages=8, capacity=64, page_size=16):
    return HostState.empty(KVGeometry(KVFormat(64), BATCH, 1, capacity, page_size, num_pages))


def grown(of, *counts):
    """Return the host state after an append."""
    return plans.appended(of, np.array(counts), (0,)).after


def table(*rows):
    return [[*row, *[NO_PAGE] * (4 - len(row))] for row in rows]


def used(of):
    return of.pages.table[of.pages.table != NO_PAGE].tolist()


def test_sequences_get_pages_as_they_need_them():
    assert host_state().pages.entries.dtype == np.int32
    plan = plans.appended(host_state(), np.array([17, 0, 16]), (0,))
    assert plan.entries.sequence.tolist() == [0, 0, 2]
    assert plan.entries.place.tolist() == [0, 1, 0]
    assert plan.entries.page.tolist() == [0, 1, 2]
    of = plan.after
    assert of.limits.tolist() == [32, 0, 16]
    plan = plans.appended(of, np.array([15, 0, 0]), (0,))
    assert plan.entries is None
    plan = plans.appended(plan.after, np.array([1, 1, 0]), (0,))
    assert plan.entries.page.tolist() == [3, 4]
    of = plan.after
    assert of.pages.table.tolist() == table([0, 1, 3], [4], [2])
    assert of.lengths.tolist() == [33, 1, 16]


def test_a_plan_that_is_dropped_has_given_nothing():
    of = grown(host_state(), 17, 0, 16)
    before = of.pages.table
    for counts in ([30, 30, 0], [0, 0, 48]):
        plans.appended(of, np.array(counts), (0,))
        np.testing.assert_array_equal(of.pages.table, before)
    after = grown(of, 16, 16, 0)
    assert after.pages.table.tolist() == table([0, 1, 3], [4], [2])
    assert of.lengths.tolist() == [17, 0, 16]
    assert of.limits.tolist() == [32, 0, 16]


def test_capacity_that_is_not_whole_pages_limits():
    of = grown(host_state(capacity=40), 40, 0, 0)
    assert of.limits.tolist() == [40, 0, 0]
    with pytest.raises(ArgumentError) as error:
        grown(of, 1, 0, 0)
    words = "of at most 0 tokens for sequence 0, which has 40 of 40 and was to get 1"
    assert str(error.value) == f"k must be {words}, got (0,)"


def test_free_pages_limit():
    of = grown(host_state(num_pages=4), 33, 0, 0)
    before = of.pages.table
    with pytest.raises(ArgumentError) as error:
        grown(of, 0, 1, 1)
    assert str(error.value) == "k must be such that the 1 free pages suffice, not 2, got (0,)"
    np.testing.assert_array_equal(of.pages.table, before)
    assert of.lengths.tolist() == [33, 0, 0]
    assert used(grown(of, 0, 0, 16)) == [0, 1, 2, 3]


def test_truncated_sequences_give_pages_back():
    of = plans.truncated(grown(host_state(num_pages=4), 40, 16, 0), [16, 16, 0]).after
    assert of.pages.table.tolist() == table([0], [3], [])
    assert of.limits.tolist() == [16, 16, 0]
    of = grown(of, 0, 0, 32)
    assert of.pages.table.tolist() == table([0], [3], [1, 2])


def test_pages_that_were_given_back_are_given_first():
    of = plans.truncated(grown(host_state(num_pages=6), 32, 32, 0), [16, 0, 0]).after
    assert grown(of, 0, 0, 64).pages.table.tolist() == table([0], [], [2, 3, 1, 4])
    with pytest.raises(ArgumentError, match="the 5 free pages suffice, not 6"):
        grown(of, 32, 0, 64)
    # None is given twice, whatever is given in between.
    of = grown(of, 0, 0, 17)
    assert of.pages.table.tolist() == table([0], [], [2, 3])
    of = grown(of, 0, 1, 0)
    assert of.pages.table.tolist() == table([0], [1], [2, 3])
    of = grown(of, 32, 0, 0)
    assert of.pages.table.tolist() == table([0, 4, 5], [1], [2, 3])


def test_reserved_pages_stay_until_all_are_emptied():
    plan = plans.reserving(host_state(), 20)
    assert plan.entries.sequence.tolist() == [0, 0, 1, 1, 2, 2]
    of = plan.after
    assert of.limits.tolist() == [32] * 3
    assert plans.reserving(of, 17).entries is None
    of = plans.truncated(grown(plans.reserving(of, 17).after, 40, 20, 0), [0, 0, 0]).after
    assert of.limits.tolist() == [32] * 3
    of = of.emptied()
    assert of.reserved == 0
    assert of.limits.tolist() == [0] * 3
    assert used(of) == []
    plan = plans.appended(of, np.array([64, 64, 0]), (0,))
    assert sorted(used(plan.after)) == list(range(8))
    assert [x.dtype for x in plan.entries] == [np.int32] * 3


def test_reserving_too_much_changes_nothing():
    of = host_state(num_pages=5)
    with pytest.raises(ArgumentError) as error:
        plans.reserving(of, 17)
    words = "tokens must be such that the 5 free pages suffice, not 6, got 17"
    assert str(error.value) == words
    assert used(of) == []
    for tokens in (-1, 65, 1.0, True, "all"):
        with pytest.raises(ArgumentError) as error:
            plans.reserving(of, tokens)
        words = f"tokens must be a whole number from 0 to 64, got {tokens!r}"
        assert str(error.value) == words
    nothing = plans.reserving(of, 0)
    assert nothing.entries is None
    assert nothing.after.reserved == 0


def test_the_sequence_that_lacks_pages_is_named():
    of = grown(host_state(), 16, 33, 17)
    with pytest.raises(ArgumentError, match="for the 33 tokens of sequence 1, got"):
        of.replaced_pages(table([0], [1, 2], [3]))


def test_a_single_page_of_the_caller():
    assert host_state().replaced_pages(table([7], [], [])).limits.tolist() == [16, 0, 0]


def test_own_pages_of_the_caller():
    rows = np.array(table([7, 1], [3], []), np.int64)
    of = grown(host_state(), 16, 0, 0).replaced_pages(rows)
    assert (of.pages.entries.dtype, of.pages.counts.dtype) == (np.int32, np.int64)
    assert of.limits.tolist() == [32, 16, 0]
    plan = plans.appended(of, np.array([16, 16, 0]), (0,))
    assert plan.entries is None
    with pytest.raises(ArgumentError) as error:
        grown(plan.after, 0, 0, 1)
    words = "such that sequence 2 has at most the 0 tokens of its pages, not 1"
    assert str(error.value) == f"k must be {words}, got (0,)"
    of = plans.truncated(plan.after, [1, 0, 0]).after.emptied()
    assert of.limits.tolist() == [32, 16, 0]
    assert used(of) == [7, 1, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (table([0, 8], [1], []), "of pages 0 to 7, or -1"),
        (table([0, -2], [1], []), "of pages 0 to 7, or -1"),
        (table([0, 1], [1], []), "without a page that is there twice"),
        (table([0, 1], [2, -1, 3], []), "rows of pages followed by -1 only"),
        (table([0], [1], []), "with pages for the 17 tokens of sequence 0"),
        ([[0, 1, 2]] * 3, "whole numbers of shape (3, 4)"),
        (np.zeros((3, 4)), "whole numbers of shape (3, 4)"),
    ],
)
def test_wrong_tables_are_refused(rows, message):
    of = grown(host_state(), 17, 0, 0)
    before = of.pages.table
    with pytest.raises(ArgumentError) as error:
        of.replaced_pages(rows)
    assert str(error.value) == str(ArgumentError("table", rows, message))
    np.testing.assert_array_equal(of.pages.table, before)
    assert used(grown(of, 16, 0, 0)) == [0, 1, 2]


def test_a_cache_in_one_piece_has_no_table():
    of = HostState.empty(KVGeometry(KVFormat(64), BATCH, 1, 20, 0, BATCH))
    assert of.limits.tolist() == [20] * 3
    assert plans.reserving(of, 20).entries is None
    plan = plans.appended(of, np.array([20, 0, 1]), (0,))
    assert (plan.entries, plan.begins) == (None, True)
    assert plan.after.emptied().limits.tolist() == [20] * 3
    assert plans.appended(plan.after, np.array([0, 0, 0]), (0,)).begins is False
    with pytest.raises(ArgumentError, match="at most 19 tokens for sequence 2, which has 1 of 20"):
        grown(plan.after, 0, 0, 20)
    with pytest.raises(ArgumentError) as error:
        of.replaced_pages([[0]] * 3)
    words = "table must be given to a cache with a page_size only, got [[0], [0], [0]]"
    assert str(error.value) == words


def test_an_append_begins_sequences_that_have_first_tokens_only():
    of = host_state(30, 160)
    assert of.may_begin
    assert plans.appended(of, np.array([1, 0, 0]), (0,)).begins
    of = grown(of, FIRST_TOKENS + 1, FIRST_TOKENS + 2, FIRST_TOKENS)
    assert not plans.appended(of, np.array([5, 5, 0]), (0,)).begins
    assert plans.appended(of, 1, (0,)).begins
    of = grown(of, 0, 0, 1)
    assert not of.may_begin
    assert not plans.appended(of, 1, (0,)).begins
    # What the GPU shortens may have no tokens left.
    assert not of.forgotten(replayed=False).may_begin
    assert of.forgotten(replayed=False, may_begin=True).may_begin


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([4, 0, 0], "from 0 to 3 for sequence 0, not 4"),
        ([0, -1, 0], "from 0 to 2 for sequence 1, not -1"),
        ([0, 0], "whole numbers of shape (3,)"),
        ([0.0, 0.0, 0.0], "whole numbers of shape (3,)"),
    ],
)
def test_truncating_to_other_lengths_is_refused(lengths, message):
    of = grown(host_state(), 3, 2, 1)
    with pytest.raises(ArgumentError) as error:
        plans.truncated(of, lengths)
    assert str(error.value) == str(ArgumentError("lengths", lengths, message))


def test_many_pages_take_no_time_until_they_are_given():
    of = HostState.empty(KVGeometry(KVFormat(64), 1, 1, 2**20, 16, 2**31 - 1))
    assert used(grown(of, 17)) == [0, 1]


def test_what_only_the_device_knows():
    of = grown(host_state(), 3, 2, 1)
    after = of.forgotten(replayed=False)
    assert (after.is_known, after.is_replayed) == (False, False)
    assert after.lengths.tolist() == [3, 2, 1]
    emptied = of.forgotten(replayed=True, may_begin=True)
    assert (emptied.is_known, emptied.is_replayed) == (False, True)
    assert emptied.lengths.tolist() == [0, 0, 0]
    # Once a graph has been captured it may be launched at any time.
    assert emptied.forgotten(replayed=False).is_replayed
    again = emptied.learned(np.array([4, 4, 4]))
    assert (again.is_known, again.is_replayed) == (True, True)
    assert again.limits.tolist() == of.limits.tolist()


def test_a_copy_gives_pages_of_its_own():
    of = plans.reserving(grown(host_state(), 17, 0, 0), 20).after.forgotten(replayed=True)
    other = of.copied()
    assert (other.is_known, other.is_replayed, other.reserved) == (False, False, 20)
    assert other.lengths.tolist() == of.lengths.tolist()
    assert other.limits.tolist() == of.limits.tolist()
    before = of.pages.table
    grown(other, 47, 0, 0)
    grown(of, 0, 33, 0)
    np.testing.assert_array_equal(of.pages.table, before)
    np.testing.assert_array_equal(other.pages.table, before)
    assert not np.shares_memory(of.pages.entries, other.pages.entries)
    in_one_piece = HostState.empty(KVGeometry(KVFormat(64), BATCH, 1, 20, 0, BATCH))
    assert in_one_piece.copied().pages is None
