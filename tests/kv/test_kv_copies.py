"""Copies of a KV cache have memory and pages of their own; it is not pickled."""

import copy
import pickle

import numpy as np
import pytest
from kv_cases import FORMATS, assert_same_contents, filled, tokens

from cuattn import KVCache
from cuattn.errors import UnsupportedError

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU

OTHERS = [{}, {"page_size": 16, "num_pages": 12}, {"smooth_k": False}]


@pytest.mark.parametrize("others", OTHERS, ids=str)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_goes_its_own_way(device, rng, others, copied):
    cache = filled(rng, device=device, **others)
    other = copied(cache)
    assert isinstance(other, KVCache)
    assert_same_contents(other, cache)
    assert (other.format, other.nbytes) == (cache.format, cache.nbytes)
    np.testing.assert_array_equal(other.device_lengths, cache.device_lengths)
    before = [x.copy() for x in cache._memory.arrays()]
    k, v = tokens(rng, 3, 2, 25, 64)
    other.append(k, v, counts=[25, 20, 11])
    for x, y in zip(cache._memory.arrays(), before, strict=True):
        np.testing.assert_array_equal(x, y)
    contents, table = other.codes()[0].codes, other.page_table
    cache.append(k, v, counts=[0, 0, 25])
    cache.append(k, v, counts=[25, 20, 0])
    np.testing.assert_array_equal(other.codes()[0].codes, contents)
    np.testing.assert_array_equal(other.page_table, table)
    other.reset()
    assert cache.lengths.tolist() == [75, 20, 46]


def test_a_copy_in_a_structure_is_made_once(rng):
    cache = filled(rng)
    layers = copy.deepcopy({"a": cache, "b": cache})
    assert layers["a"] is layers["b"]
    assert layers["a"] is not cache


def test_a_copy_knows_lengths_that_only_the_gpu_knew(monkeypatch, rng):
    gpu = SimulatedGPU(monkeypatch)
    cache = filled(rng, device=None, page_size=16)
    cache.reserve(60)
    gpu.is_capturing = True
    cache.append(*tokens(rng, 3, 2, 2, 64))
    gpu.is_capturing = False
    other = copy.deepcopy(cache)
    assert_same_contents(other, cache)
    host_state = other._memory.host_state
    assert (host_state.is_known, host_state.is_replayed) == (True, False)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_is_refused(device, rng, protocol):
    cache = filled(rng, FORMATS["8"], device=device)
    with pytest.raises(UnsupportedError, match="a KVCache cannot be pickled: save it to a file"):
        pickle.dumps(cache, protocol)
