"""Sequences of a KV cache that become others and share pages: what a caller sees of it."""

import numpy as np
import pytest
from kv_cases import FORMATS, assert_same_contents, assert_unchanged, everything, tokens
from kv_moves_cases import PAGED, filled, free_pages, shared_with

from cuattn import ArgumentError, UnsupportedError


@pytest.mark.parametrize("others", [{}, PAGED], ids=["in one piece", "pages"])
@pytest.mark.parametrize("kv_format", [FORMATS["8"], FORMATS["nested"]], ids=["8", "nested"])
def test_a_fork_has_the_tokens_and_goes_its_own_way(device, rng, kv_format, others):
    cache = filled(rng, device, kv_format, **others)
    expected = cache.copy()
    cache.fork(0, 1)
    assert cache.lengths.tolist() == [50, 50, 21]
    (k, _), (wanted, _) = cache.gather(), expected.gather()
    np.testing.assert_array_equal(k[:2], wanted[[0, 0]])
    new = tokens(rng, 3, 2, 5, 64)
    cache.append(*new, counts=[0, 5, 0])
    expected.append(*new)
    assert_same = np.testing.assert_array_equal
    assert_same(cache.codes()[0].codes[0, :, :50], expected.codes()[0].codes[0, :, :50])
    assert cache.lengths.tolist() == [50, 55, 21]
    # It is rounded as one that has got all of its tokens itself.
    cache.append(*new, counts=[5, 0, 0])
    new_keys = cache.gather("float32")[0]
    assert np.abs(new_keys[1, :, 50:] - new[0][1]).max() < 0.3
    assert np.abs(new_keys[0, :, 50:] - new[0][0]).max() < 0.3


def test_a_prefix_of_many_sequences_is_kept_once(device, rng):
    cache = filled(rng, device, counts=(40, 0, 0), **PAGED)
    cache.fork(0, 1)
    cache.fork(0, 2)
    assert free_pages(cache) == 9
    assert [shared_with(cache, b) for b in (1, 2)] == [3, 3]
    # Each takes a page for its own end; the last one keeps what was shared.
    cache.append(*tokens(rng, 3, 2, 1, 64))
    assert free_pages(cache) == 7
    assert [shared_with(cache, b) for b in (1, 2)] == [2, 2]
    cache.truncate([0, 41, 0])
    assert free_pages(cache) == 9
    cache.reset()
    assert free_pages(cache) == 12


def test_a_full_page_is_never_copied(device, rng):
    cache = filled(rng, device, counts=(32, 0, 0), **PAGED)
    cache.fork(0, 1)
    cache.append(*tokens(rng, 3, 2, 1, 64), counts=[1, 1, 0])
    assert shared_with(cache, 1) == 2
    assert free_pages(cache) == 8


def test_too_few_pages_for_copies_change_nothing(device, rng):
    cache = filled(rng, device, counts=(40, 0, 0), page_size=16, num_pages=4)
    cache.reorder([0, 0, 0])
    before = everything(cache)
    new = tokens(rng, 3, 2, 1, 64)
    with pytest.raises(ArgumentError, match="such that the 1 free pages suffice, not 2"):
        cache.append(*new)
    assert_unchanged(cache, before)
    cache.append(*new, counts=[1, 0, 0])
    with pytest.raises(ArgumentError, match="such that the 0 free pages suffice, not 1"):
        cache.append(*new, counts=[0, 1, 0])
    cache.truncate([41, 0, 40])
    cache.append(*new, counts=[0, 0, 1])
    assert cache.lengths.tolist() == [41, 0, 41]


@pytest.mark.parametrize("others", [{}, PAGED], ids=["in one piece", "pages"])
def test_reordered_sequences_are_what_they_were(device, rng, others):
    cache = filled(rng, device, FORMATS["nested"], (50, 30, 21), **others)
    before = cache.gather()[0]
    cache.reorder([2, 0, 1])
    assert cache.lengths.tolist() == [21, 50, 30]
    np.testing.assert_array_equal(cache.gather()[0], before[[2, 0, 1]])
    cache.reorder([1, 1, 2])
    np.testing.assert_array_equal(cache.gather()[0], before[[0, 0, 1]])
    if others:
        assert free_pages(cache) == 12 - 4 - 2


@pytest.mark.parametrize("others", [{}, PAGED], ids=["in one piece", "pages"])
@pytest.mark.parametrize("order", [[1, 0, 2], [0, 0, 0], [2, 1, 1]])
def test_reordered_sequences_answer_as_before(device, rng, order, others):
    cache = filled(rng, device, FORMATS["4-group64-zero"], (20, 7, 0), **others)
    q = tokens(rng, 3, 4, 1, 64)[0][[0, 0, 0]]
    answers = cache.attend(q)
    cache.reorder(order)
    np.testing.assert_array_equal(cache.attend(q), answers[order])


def test_what_is_reordered_to_itself_is_left_alone(rng):
    cache = filled(rng)
    before = everything(cache)
    cache.reorder(range(3))
    cache.fork(1, 1)
    assert_unchanged(cache, before)


@pytest.mark.parametrize(
    ("call", "argument", "words"),
    [
        (lambda c: c.fork(3, 0), "src", "a sequence from 0 to 2"),
        (lambda c: c.fork(0, -1), "dst", "a sequence from 0 to 2"),
        (lambda c: c.fork(0, 1.0), "dst", "a sequence from 0 to 2"),
        (lambda c: c.reorder([0, 1]), "indices", "whole numbers of shape (3,)"),
        (lambda c: c.reorder([0, 1, 3]), "indices", "of sequences from 0 to 2"),
        (lambda c: c.evict(3, [0]), "sequence", "a sequence from 0 to 2"),
        (lambda c: c.evict(0, [3]), "pages", "from 0 to 2: before that of the last token"),
        (lambda c: c.evict(0, [1, 1]), "pages", "different places in the page table"),
        (lambda c: c.evict(0, 1), "pages", "a list of places in the page table"),
        (lambda c: c.evict(0, [0.5]), "pages", "whole numbers"),
        (lambda c: c.evict(1, [0]), "pages", "of which there are none"),
    ],
)
def test_what_is_wrong_is_named_and_changes_nothing(device, rng, call, argument, words):
    cache = filled(rng, device, **PAGED)
    before = everything(cache)
    with pytest.raises(ArgumentError) as error:
        call(cache)
    assert error.value.argument == argument
    assert words in str(error.value)
    assert_unchanged(cache, before)


def test_pages_of_the_caller_are_not_shared_or_given_back(device, rng):
    cache = filled(rng, device, **PAGED)
    cache.set_page_table(cache.page_table)
    for call in (lambda: cache.fork(0, 1), lambda: cache.evict(0, [0])):
        with pytest.raises(UnsupportedError, match="set_page_table has made them the caller's"):
            call()
    with pytest.raises(UnsupportedError, match="a cache with a page_size, which here is 0"):
        filled(rng, device).evict(0, [0])


def test_copy_is_that_of_the_module(device, rng):
    cache = filled(rng, device, **PAGED)
    cache.fork(0, 1)
    other = cache.copy()
    assert_same_contents(other, cache)
    np.testing.assert_array_equal(other.page_table, cache.page_table)
    other.append(*tokens(rng, 3, 2, 3, 64))
    assert shared_with(cache, 1) == 4
    assert shared_with(other, 1) == 3
