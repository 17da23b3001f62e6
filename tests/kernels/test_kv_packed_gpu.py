"""Tokens end to end on a GPU: bit for bit what appending them in the ordinary way makes."""

import numpy as np
import pytest
from helpers.gpu_cases import on_gpu, on_host
from helpers.kv_contents_cases import GPU, SOME, Filled, every_format, snapshot, some_formats

import cuattn
from cuattn import Rope
from cuattn.errors import ArgumentError

pytestmark = pytest.mark.gpu

HEADS = 2
# Of steps the tokens of each sequence.
STEPS = ([300, 0, 7, 16], [1, 1, 1, 1], [0, 130, 0, 3], [0, 0, 0, 0], [17, 1, 200, 33])


def turns(cupy, rope_dim=32, positions=600):
    angles = np.outer(np.arange(positions), 100.0 ** -(np.arange(0, rope_dim, 2) / rope_dim))
    return Rope(*(cupy.asarray(f(angles).astype(np.float32)) for f in (np.cos, np.sin)))


def drawn(rng, counts, head_dim=64, dtype="float16", behind=3):
    """Return K and V between the heads of one array, on the GPU; rows beyond the tokens are NaN."""
    total = int(np.sum(counts))
    x = rng.standard_normal((total + behind, 4 * HEADS, head_dim), dtype=np.float32)
    x[:, :HEADS] += np.cos(np.arange(head_dim, dtype=np.float32))
    x[total:] = np.nan
    x = on_gpu(x, dtype)
    return x[:, :HEADS], x[:, 2 * HEADS : 3 * HEADS]


def bounds_of(counts):
    return np.cumsum([0, *counts], dtype=np.int64).tolist()


def by_sequence(cupy, x, counts, sequences, batch):
    """Return tokens [batch, heads, most, head_dim]."""
    apart = cupy.zeros((batch, x.shape[1], max(1, *counts), x.shape[2]), x.dtype)
    bounds = bounds_of(counts)
    for i, b in enumerate(sequences):
        apart[b, :, : counts[i]] = x[bounds[i] : bounds[i + 1]].swapaxes(0, 1)
    return apart


def append_both(cupy, packed, ordinary, rng, counts, *, sequences=None, dtype="float16", **given):
    """Append the same tokens end to end to one cache, and in the ordinary way to the other one."""
    batch, _, head_dim = packed.shape
    k, v = drawn(rng, counts, head_dim, dtype)
    whose = list(range(batch)) if sequences is None else sequences
    own = np.zeros(batch, np.int64)
    own[whose] = counts
    bounds = given.pop("bounds", bounds_of(counts))
    packed.cache.append(k, v, cu_seqlens_k=bounds, sequences=sequences, **given)
    both = (by_sequence(cupy, x, counts, whose, batch) for x in (k, v))
    ordinary.cache.append(*both, counts=own.tolist(), **given)


class Sized:
    """A cache and its sizes."""

    def __init__(self, batch=4, head_dim=64, capacity=600, **options):
        self.shape = (batch, HEADS, head_dim)
        self.cache = cuattn.KVCache(batch, HEADS, head_dim, capacity, **options)


def two(**options):
    return Sized(**options), Sized(**options)


@every_format
@pytest.mark.parametrize("turned", [False, True], ids=["plain", "rope"])
def test_is_the_same_as_the_ordinary_way(cupy, rng, options, turned):
    given = {"rope": turns(cupy)} if turned else {}
    for others in ({}, {"page_size": 16}):
        packed, ordinary = two(**options, **others)
        for counts in STEPS:
            append_both(cupy, packed, ordinary, rng, counts, **given)
        assert snapshot(packed.cache) == snapshot(ordinary.cache)
        q = on_gpu(rng.standard_normal((4, 4, 1, 64)), "float16")
        o = [on_host(x.cache.attend(q)).tobytes() for x in (packed, ordinary)]
        assert o[0] == o[1]


@some_formats
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_type_and_head_dim(cupy, rng, options, head_dim, dtype):
    packed, ordinary = two(head_dim=head_dim, **options)
    for counts in STEPS:
        append_both(cupy, packed, ordinary, rng, counts, dtype=dtype)
    assert snapshot(packed.cache) == snapshot(ordinary.cache)


@some_formats
def test_many_sequences_in_any_order(cupy, rng, options):
    packed, ordinary = two(batch=300, capacity=400, page_size=64, **options)
    for most in (300, 2, 40):
        some = rng.permutation(300)[: rng.integers(1, 300)].tolist()
        counts = rng.integers(0, rng.choice([1, most], len(some)) + 1).tolist()
        append_both(cupy, packed, ordinary, rng, counts, sequences=some)
    assert snapshot(packed.cache) == snapshot(ordinary.cache)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_bounds_on_the_gpu_are_checked_there(cupy, rng, dtype):
    packed, ordinary = two()
    for counts in STEPS:
        bounds = cupy.asarray(np.array(bounds_of(counts), dtype))
        append_both(cupy, packed, ordinary, rng, counts, bounds=bounds)
    before = snapshot(packed.cache)
    assert before == snapshot(ordinary.cache)
    k, v = drawn(rng, [10, 10, 10, 10], behind=0)
    for wrong in (
        [0, 10, 5, 20, 40],
        [-1, 10, 20, 30, 40],
        [0, 10, 20, 30, 41],
        [0, 2**31 - 1, -(2**31), 30, 40],
        [40, 30, 20, 10, 0],
    ):
        packed.cache.append(k, v, cu_seqlens_k=cupy.asarray(np.array(wrong, dtype)))
        with pytest.raises(ArgumentError, match="the GPU has refused"):
            _ = packed.cache.lengths
        assert snapshot(packed.cache) == before
    k, v = drawn(rng, [600], behind=0)
    packed.cache.append(k, v, cu_seqlens_k=cupy.asarray(np.array([0, 0, 0, 0, 600], dtype)))
    with pytest.raises(ArgumentError, match="the GPU has refused"):
        _ = packed.cache.lengths
    assert snapshot(packed.cache) == before


@pytest.mark.parametrize("options", SOME.values(), ids=SOME)
def test_a_graph_takes_other_bounds_at_each_replay(cupy, rng, options):
    rope, total = turns(cupy), 40
    packed, ordinary = two(**options)
    k, v = (cupy.empty((total, HEADS, 64), np.float16) for _ in "kv")
    bounds = cupy.zeros(5, np.int32)
    cupy.cuda.Device().synchronize()
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            packed.cache.append(k, v, cu_seqlens_k=bounds, rope=rope)  # nothing yet
            stream.synchronize()
            stream.begin_capture()
            packed.cache.append(k, v, cu_seqlens_k=bounds, rope=rope)
            graph = stream.end_capture()
    for counts in ([30, 0, 3, 1], [1, 1, 1, 1], [0, 0, 40, 0], [20, 20, 0, 0], [2, 3, 4, 31]):
        fresh = drawn(rng, counts, behind=total - sum(counts))
        for to, x in zip((k, v), fresh, strict=True):
            to[...] = x
        bounds[...] = cupy.asarray(bounds_of(counts))
        cupy.cuda.Device().synchronize()
        graph.launch(stream)
        stream.synchronize()
        both = (by_sequence(cupy, x, counts, range(4), 4) for x in fresh)
        ordinary.cache.append(*both, counts=counts, rope=rope)
    assert snapshot(packed.cache) == snapshot(ordinary.cache)


def test_a_window_moves_on_and_tokens_keep_their_positions(cupy, rng):
    rope, others = turns(cupy), {"page_size": 16, "window": 40, "bits": 8}
    packed, ordinary = two(**others)
    for step in range(9):
        counts = [17, 3 * step, 0 if step % 2 else 60, 1]
        append_both(cupy, packed, ordinary, rng, counts, rope=rope)
    assert packed.cache.positions.max() > packed.cache.lengths.max()
    assert snapshot(packed.cache) == snapshot(ordinary.cache)


def test_positions_are_of_rows(cupy, rng):
    rope, counts = turns(cupy), [30, 0, 9, 1]
    k, v = drawn(rng, counts, behind=0)
    at = rng.integers(0, 600, len(k))
    packed, ordinary = two(bits=8)
    places = cupy.zeros((4, 30), np.int64)
    for b, (begin, count) in enumerate(zip(bounds_of(counts)[:-1], counts, strict=True)):
        places[b, :count] = cupy.asarray(at[begin : begin + count])
    both = (by_sequence(cupy, x, counts, range(4), 4) for x in (k, v))
    ordinary.cache.append(*both, counts=counts, rope=rope, positions=places)
    wanted = snapshot(ordinary.cache)
    for positions in (at, cupy.asarray(at), cupy.asarray(at.astype(np.int32))):
        packed = Sized(bits=8)
        packed.cache.append(k, v, cu_seqlens_k=bounds_of(counts), rope=rope, positions=positions)
        assert snapshot(packed.cache) == wanted


@some_formats
def test_contents_are_the_references(cupy, rng, options):
    filled = Filled(GPU, batch=3, **options)
    for counts in ([70, 0, 5], [1, 3, 300], [20, 20, 20]):
        k, v = drawn(rng, counts)
        filled.cache.append(k, v, cu_seqlens_k=bounds_of(counts))
        both = (by_sequence(cupy, x, counts, range(3), 3) for x in (k, v))
        filled.remember(*(on_host(x).astype(np.float32) for x in both), np.array(counts))
        filled.check_contents()
