"""Ulysses, Ulysses inside of rings, and caches whose tokens are spread over ranks."""

import numpy as np
import pytest
from ring_cases import HEAD_DIM, inputs, over_ranks, relative_l1

import cuattn
from cuattn.distributed import (
    DistributedKVCache,
    nodes,
    run_virtual,
    shard,
    ulysses_attention,
    unshard,
    usp_attention,
)
from cuattn.reference import exact


@pytest.mark.parametrize("wire", [None, "int4", "input"])
@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"window_size": (30, 9)}],
    ids=["no-mask", "causal", "near"],
)
def test_ulysses(rng, options, wire):
    arrays = inputs(rng, 101, heads=8, kv_heads=4)
    sinks = rng.standard_normal(8).astype(np.float32)
    wanted, wanted_lse = exact.attention(*arrays, sinks=sinks, **options)

    def attend(*own, placement, **more):
        return ulysses_attention(*own, wire=wire, sinks=sinks, **more)

    for size in (2, 4):
        o, lse = over_ranks(attend, arrays, size, "contiguous", **options)
        assert relative_l1(o, wanted) < (0.25 if wire == "int4" else 0.02)
        assert np.abs(lse - wanted_lse).max() < (2 if wire == "int4" else 0.1)


def test_ulysses_of_one_rank_is_attention(rng):
    arrays = inputs(rng, 33)
    (o,) = run_virtual(1, lambda group: ulysses_attention(*arrays, group, is_causal=True))
    np.testing.assert_array_equal(o, cuattn.attention(*arrays, is_causal=True))


@pytest.mark.parametrize("placement", ["zigzag", "contiguous", "striped"])
@pytest.mark.parametrize(("inner", "outer"), [(2, 2), (4, 2), (2, 3)])
def test_ulysses_inside_of_a_ring(rng, inner, outer, placement):
    arrays = inputs(rng, 103, heads=8, kv_heads=4)

    def work(group):
        node, between = nodes(group, inner)
        own = [
            shard(shard(x, outer, between.rank, placement), inner, node.rank, "contiguous")
            for x in arrays
        ]
        return usp_attention(*own, node, between, is_causal=True, placement=placement)

    results = run_virtual(inner * outer, work)
    by_node = [results[n * inner : (n + 1) * inner] for n in range(outer)]
    o = unshard([unshard(node, "contiguous") for node in by_node], placement)
    assert relative_l1(o, exact.attention(*arrays, is_causal=True)[0]) < 0.02


@pytest.mark.parametrize("split_heads", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_decoding_over_ranks(rng, size, split_heads):
    """Sequences of different lengths, appended in two goes, and drafts of four tokens."""
    k, v = rng.standard_normal((2, 3, 2, 60, HEAD_DIM)).astype(np.float32)
    q = rng.standard_normal((3, 8, 4, HEAD_DIM)).astype(np.float32)
    sinks = rng.standard_normal(8).astype(np.float32)
    first, second = [30, 20, 3], [14, 10, 4]
    later = [np.stack([x[b, :, n : n + 14] for b, n in enumerate(first)]) for x in (k, v)]

    def work(group):
        cache = DistributedKVCache(group, 3, 2, HEAD_DIM, 100, interleave=4, device="cpu")
        cache.append(k[:, :, :30], v[:, :, :30], counts=first)
        cache.append(*later, counts=second)
        heads = slice(group.rank * 8 // size, (group.rank + 1) * 8 // size)
        own = q[:, heads] if split_heads else q
        options = {"sinks": sinks, "split_heads": split_heads, "return_lse": True}
        return *cache.attend(own, **options), cache.local.lengths, cache.lengths

    results = run_virtual(size, work)
    lengths = np.add(first, second)
    np.testing.assert_array_equal(sum(of_rank for _, _, of_rank, _ in results), lengths)
    np.testing.assert_array_equal(results[-1][3], lengths)
    o, lse = results[-1][:2]
    if split_heads:
        o, lse = (np.concatenate([x[i] for x in results], axis=1) for i in (0, 1))
    else:
        assert all(np.array_equal(x[0], o) for x in results)
    for b, n in enumerate(lengths):
        some = slice(b, b + 1)
        wanted, wanted_lse = exact.attention(
            q[some], k[some, :, :n], v[some, :, :n], is_causal=True, sinks=sinks
        )
        assert relative_l1(o[some], wanted) < 0.02
        assert np.abs(lse[some] - wanted_lse).max() < 0.05


def test_one_token_is_of_one_rank(rng):
    def work(group):
        cache = DistributedKVCache(group, 1, 2, HEAD_DIM, 100, interleave=2, device="cpu")
        found = []
        for _ in range(7):
            cache.append(*np.zeros((2, 1, 2, 1, HEAD_DIM), np.float32))
            found.append(int(cache.local.lengths[0]))
        return found

    assert run_virtual(2, work) == [[1, 2, 2, 2, 3, 4, 4], [0, 0, 1, 2, 2, 2, 3]]
