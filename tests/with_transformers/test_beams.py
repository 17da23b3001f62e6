"""Sequences of a `cuattn.KVCache` in another order."""

from importlib import import_module

import numpy as np
import pytest

from cuattn import ArgumentError, KVCache

pytestmark = pytest.mark.needs("torch", "transformers")


@pytest.fixture(scope="module")
def reorder():
    return import_module("cuattn.transformers.beams").reorder


@pytest.fixture
def cache(rng):
    made = KVCache(3, 2, 64, 48, device="cpu")
    k, v = rng.standard_normal((2, 3, 2, 20, 64), np.float32)
    made.append(k, v, counts=[20, 7, 0])
    return made


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [0, 0, 0], [2, 1, 1]])
def test_sequences_have_the_tokens_of_others_bit_for_bit(reorder, cache, rng, order):
    before = cache.lengths, cache.codes()
    q = rng.standard_normal((3, 4, 1, 64), np.float32)
    answers = cache.attend(q[[0, 0, 0]])
    reorder(cache, order)
    np.testing.assert_array_equal(cache.lengths, before[0][order])
    np.testing.assert_array_equal(cache.attend(q[[0, 0, 0]]), answers[order])
    for new, old in zip(cache.codes(), before[1], strict=True):
        longest = new.codes.shape[2]
        np.testing.assert_array_equal(new.codes, old.codes[order][:, :, :longest])
        np.testing.assert_array_equal(new.scale, old.scale[order][:, :, :longest])
    # They go ways of their own from here on.
    cache.append(*rng.standard_normal((2, 3, 2, 1, 64), np.float32))
    np.testing.assert_array_equal(cache.lengths, before[0][order] + 1)


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 3], [-1, 0, 1]])
def test_wrong_orders_change_nothing(reorder, cache, order):
    with pytest.raises(ArgumentError, match="beam_idx must be 3 numbers of sequences"):
        reorder(cache, order)
    np.testing.assert_array_equal(cache.lengths, [20, 7, 0])


def test_pages_are_not_shared(reorder):
    paged = KVCache(2, 1, 64, 32, page_size=16, device="cpu")
    with pytest.raises(ArgumentError, match="page_size must be 0 to reorder"):
        reorder(paged, [1, 0])
