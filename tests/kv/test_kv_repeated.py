"""Calls of `KVCache.attend` that have been made before: on the simulated GPU, with arrays."""

import numpy as np
import pytest
from kv_cases import tokens

import cuattn
from cuattn.errors import ArgumentError, UnsupportedError

pytest.importorskip("cupy")
from simulated_gpu.gpu import SimulatedCaller
from simulated_gpu.score_rules import EXPRESSIONS

BATCH, HEADS, DIM = 2, 2, 64


@pytest.fixture
def looked_at(gpu, monkeypatch):
    """Count the arrays that are looked at one by one."""
    names = []
    look = SimulatedCaller.look
    monkeypatch.setattr(
        SimulatedCaller, "look", lambda self, x, name: names.append(name) or look(self, x, name)
    )
    return names


def caches(rng, count=40, **options):
    """Return a cache of the simulated GPU and one in host memory, of the same contents."""
    both = [
        cuattn.KVCache(BATCH, HEADS, DIM, 512, device=device, **options) for device in (None, "cpu")
    ]
    append(both, rng, count)
    return both


def append(both, rng, count):
    given = tokens(rng, BATCH, HEADS, count, DIM)
    for cache in both:
        cache.append(*given)


def query(rng, queries=1):
    return rng.standard_normal((BATCH, 2 * HEADS, queries, DIM)).astype(np.float16)


def check(both, q, **options):
    found, wanted = (cache.attend(q, return_lse=True, **options) for cache in both)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)


def test_queries_of_the_same_kinds_are_not_looked_at(rng, looked_at):
    both = caches(rng)
    for step in range(4):
        check(both, query(rng))
        check(both, query(rng, 3), is_causal=False, softcap=5.0)
        sinks = rng.standard_normal(2 * HEADS).astype(np.float32)
        check(both, query(rng), sinks=sinks)
        assert looked_at.count("q") == 3, step
        append(both, rng, 7)
        looked_at[:] = [name for name in looked_at if name in ("q", "sinks")]
    assert looked_at == ["q", "q", "q", "sinks"]


def test_caches_remember_for_themselves(rng, looked_at):
    first, second = caches(rng), caches(rng)
    for _ in range(3):
        check(first, query(rng))
        check(second, query(rng))
    assert looked_at.count("q") == 2
    check((first[0].copy(), first[1]), query(rng))
    assert looked_at.count("q") == 3


def test_outputs_are_written_unless_they_overlap(rng, looked_at):
    cache, other = caches(rng)
    out = np.empty_like(query(rng))
    for _ in range(3):
        q = query(rng)
        assert cache.attend(q, out=out) is out
        np.testing.assert_allclose(out, other.attend(q), rtol=1e-3, atol=1e-3)
    assert looked_at.count("q") == 1
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of q"):
        cache.attend(q, out=q)


@pytest.mark.parametrize(("name", "wrong"), [("is_causal", 1), ("batch_invariant", 0)])
def test_options_that_are_equal_to_good_ones_are_still_refused(gpu, rng, name, wrong):
    cache, _ = caches(rng)
    for _ in range(3):
        cache.attend(query(rng), **{name: bool(wrong)})
    gpu.launched.clear()
    with pytest.raises(ArgumentError, match=f"^{name}"):
        cache.attend(query(rng), **{name: wrong})
    assert gpu.launched == []


def test_distances_are_refused_once_tokens_are_gone(gpu, rng, monkeypatch):
    both = caches(rng, 200, page_size=16)
    slopes = np.ones(2 * HEADS, np.float32)
    mod = cuattn.MaskMod("own - kv < 30", reference=lambda own, kv: own - kv < 30)
    monkeypatch.setitem(EXPRESSIONS, mod.text, mod)
    kinds = [{"window_size": (30, 0)}, {"alibi_slopes": slopes}, {"mask_mod": mod}]
    for _ in range(3):
        for options in kinds:
            check(both, query(rng), **options)
    for cache in both:
        cache.evict(0, [2])
    gpu.launched.clear()
    for _ in range(2):
        for options in kinds:
            with pytest.raises(UnsupportedError, match="has lost some in its middle"):
                both[0].attend(query(rng), **options)
        assert gpu.launched == []
    for _ in range(3):
        check(both, query(rng))


def test_what_could_not_be_undone_is_undone_first(rng, looked_at):
    cache, other = caches(rng)
    for _ in range(3):
        check((cache, other), query(rng))
    written = []
    cache._memory.undo = (written.append,)
    check((cache, other), query(rng))
    assert written == [cache._memory.host_state]
    assert cache._memory.undo == ()
    assert looked_at.count("q") == 2


def test_many_queries_and_those_that_are_copied_are_looked_at(rng, looked_at):
    both = caches(rng)
    wide = np.zeros((*query(rng).shape, 2), np.float16)
    for calls in range(1, 4):
        wide[..., 0] = query(rng)
        check(both, wide[..., 0])
        assert looked_at.count("q") == calls
    assert len(both[0]._memory.repetitions) == 0


def test_more_counters_are_others(gpu, rng, monkeypatch):
    """What was remembered goes on with those that it had, as graphs do."""
    monkeypatch.setattr("cuattn.kv.device._COUNTERS", 2)
    both = caches(rng)
    for _ in range(2):
        for queries in (1, 20, 1, 40):
            check(both, query(rng, queries))
    assert len(both[0]._memory._counters) > 1
