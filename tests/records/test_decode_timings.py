"""Rows of decoding and appending that a run yields, with caches, graphs and times made up."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from benchmarks import append, decode
from benchmarks.append import EMPTY, IN_GRAPH
from benchmarks.decode import NARROW
from cuattn.bench import decode as bench_decode
from cuattn.bench.caches import SCHEMES
from cuattn.bench.cases import DECODE
from cuattn.choice.timing import CleanL2, Median

MS = 0.5
KV_BYTES = 1000


def nobody(what, reason):
    pytest.fail(f"{what} is left out: {reason}")


class FakeCache:
    """A cache that counts the tokens of its sequences."""

    def __init__(self, room):
        self.room = room

    def append(self, k, v, **given):
        self.room -= 1
        assert self.room >= 0

    def reset(self):
        self.room = 1

    def attend(self, q, **options):
        return q


class FakeGraph:
    """A graph that does when launched what it was made of."""

    def __init__(self, function, calls=1):
        function()
        self.launch = lambda: [function() for _ in range(calls)]


@pytest.fixture
def filled(monkeypatch):
    """Stand in for the GPU; return the caches that are made."""
    caches = []

    def make(case, scheme, *, room=0, **options):
        caches.append(FakeCache(room))
        return caches[-1]

    def time(functions, *, rounds=1, warmup=0, flush, progress=None):
        assert CleanL2 in (flush, getattr(flush, "func", None))
        for _ in range(rounds + warmup):
            for function in functions.values():
                function()
        return {name: Median(MS, 0.0) for name in functions}

    nothing = SimpleNamespace(nbytes=KV_BYTES)
    for module in (append, decode):
        monkeypatch.setattr(module, "room_for", lambda case, needed, left_out: nullcontext(True))
        monkeypatch.setattr(module, "Graph", FakeGraph)
    for module in (append, bench_decode):
        monkeypatch.setattr(module, "token_noise", lambda case, tokens, seed: nothing)
        monkeypatch.setattr(module, "time_gpu", time)
    for module in (decode, bench_decode):
        monkeypatch.setattr(module, "noise", lambda case, seed: nothing)
    monkeypatch.setattr(append, "end_to_end", lambda x: x)
    monkeypatch.setattr(append.caches, "filled", make)
    monkeypatch.setattr(append.caches, "bytes_read", lambda case, cache, lengths: KV_BYTES)
    monkeypatch.setattr(decode, "time_host", lambda function: Median(MS, 0.0))
    monkeypatch.setattr("cupy.empty_like", lambda x: x)
    monkeypatch.setattr("cupy.RawKernel", lambda code, name: lambda grid, block, args: None)
    monkeypatch.setattr("cupy.cuda.Stream", lambda non_blocking: nullcontext())
    copy = decode.Call("copy-decode", "cudaMemcpyAsync", "", lambda: None, KV_BYTES)
    for module in (decode, bench_decode):
        monkeypatch.setattr(module, "copy", lambda: copy)
    return caches


def test_one_token_is_timed_by_itself_and_in_a_graph_beside_nothing(filled):
    rows = {(t.case, t.scheme or t.implementation): t for t in append.timings(nobody)}
    for name in (*SCHEMES, EMPTY):
        assert rows["append", name].kernel_ms == MS
        assert rows["append-graph", name].kernel_ms == MS / IN_GRAPH
    assert rows["append", EMPTY].family == "baseline"
    assert {t.implementation for t in rows.values()} == {"cuattn", EMPTY}
    for kind in ("append-prompt", "append-packed"):
        assert rows[kind, "kv-int4"].gbps == pytest.approx(3 * KV_BYTES / MS * 1e-6)


def test_caches_have_room_for_all_that_is_appended_and_no_more(filled):
    rows = append.timings(nobody)
    next(rows)
    assert [cache.room for cache in filled] == [0, 0]
    assert any(t.case == "append-graph" for t in rows)
    assert [cache.room for cache in filled[2:4]] == [0, 0]


def test_half_the_channels_are_timed_with_what_the_others_are(filled):
    rows = [t for t in decode.timings([], nobody) if t.case in ("decode", "copy-decode")]
    names = {}
    for t in rows:
        sizes = t.batch, t.num_kv_heads, t.seqlen_kv, t.head_dim
        names.setdefault(sizes, []).append(t.scheme or t.implementation)
    assert names[16, 8, 8192, 64] == names[16, 8, 8192, 128] == [*SCHEMES, "cudaMemcpyAsync"]
    assert len(names) == len({*DECODE, NARROW})
