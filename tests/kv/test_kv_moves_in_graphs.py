"""Sequences that share and lose pages where graphs, or the GPU alone, change lengths."""

import copy

import numpy as np
import pytest
from kv_cases import assert_same_contents, assert_unchanged, everything, tokens
from kv_moves_cases import PAGED, filled, shared_with

from cuattn import ArgumentError, UnsupportedError

pytest.importorskip("cupy")


def test_a_graph_appends_to_pages_of_its_own(gpu, rng):
    cache = filled(rng, None, counts=(40, 0, 0), **PAGED)
    new = tokens(rng, 3, 2, 2, 64)
    cache.fork(0, 1)
    gpu.is_capturing = True
    with pytest.raises(UnsupportedError, match=r"sequences share .*: reserve\(\) gives them"):
        cache.append(*new)
    gpu.is_capturing = False
    cache.reserve(48)
    assert shared_with(cache, 1) == 2
    gpu.is_capturing = True
    cache.append(*new)
    gpu.is_capturing = False
    # From now on forks have their own last pages at once.
    cache.truncate([40, 40, 2])
    cache.fork(0, 2)
    assert shared_with(cache, 2) == 2
    assert (cache.page_table >= 0).sum(axis=1).tolist() == [3, 3, 3]


def test_appends_with_counts_of_the_gpu_copy_shared_pages_before(gpu, rng):
    cache = filled(rng, None, counts=(40, 0, 0), **PAGED)
    cache.fork(0, 1)
    new = tokens(rng, 3, 2, 2, 64)
    expected = cache.copy()
    expected.append(*new, counts=[1, 2, 0])
    cache.append(*new, counts=np.array([1, 2, 0]))
    assert shared_with(cache, 1) == 2
    assert_same_contents(cache, expected)


def test_a_graph_that_shortens_leaves_nothing_shared(gpu, rng):
    cache = filled(rng, None, counts=(40, 0, 0), page_size=16, num_pages=7)
    gpu.is_capturing = True
    cache.truncate(np.array([40, 40, 40]))
    gpu.is_capturing = False
    cache.fork(0, 1)
    assert shared_with(cache, 1) == 0
    assert_same_contents(cache, copy.copy(cache))
    np.testing.assert_array_equal(*cache.gather()[0][:2])
    before = everything(cache)
    with pytest.raises(ArgumentError, match="such that the 1 free pages suffice, not 3"):
        cache.fork(0, 2)
    assert_unchanged(cache, before)
    with pytest.raises(UnsupportedError, match="a graph that shortens sequences"):
        cache.evict(0, [0])


def test_lengths_of_the_gpu_shorten_no_shared_or_evicted_pages(gpu, rng):
    cache = filled(rng, None, counts=(40, 0, 0), **PAGED)
    cache.fork(0, 1)
    with pytest.raises(ArgumentError, match="in host memory while sequences share pages"):
        cache.truncate(np.array([30, 30, 0]))
    cache.truncate([40, 0, 0])
    cache.evict(0, [0])
    with pytest.raises(ArgumentError, match="in host memory where pages are evicted"):
        cache.truncate(np.array([20, 0, 0]))


def test_moves_are_not_captured(gpu, rng):
    cache = filled(rng, None, **PAGED)
    before = everything(cache)
    gpu.is_capturing = True
    for call in (lambda: cache.fork(0, 1), lambda: cache.evict(0, [0])):
        with pytest.raises(UnsupportedError, match="captured"):
            call()
    gpu.is_capturing = False
    assert_unchanged(cache, before)
