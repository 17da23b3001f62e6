"""Chunks of a prompt in the record, without a GPU: what takes turns, its rows, and the tables."""

import sys
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import chunks, phases, tables
from benchmarks.chunks import CASES, CHUNK, DECODED, MASK, PAGED, ROPE, SDPA
from cuattn.arrays.device import target
from cuattn.bench.ours import Run
from cuattn.choice.timing import Median
from cuattn.kv import rows
from cuattn.kv.listing import kv_specs
from cuattn.plan.repeated import Repetitions
from cuattn.records import record
from cuattn.records.rows import shape_of
from tools.tables.chunks import chunks as table_of_chunks
from tools.tables.chunks import goal_rows
from tools.tables.record_figures import Figures


class Cache:
    """Stands in for a cache; notes from how many rows on calls were of many."""

    seen = ()

    def __init__(self, case, scheme, page_size=0):
        self.kind = case.seqlen_q, scheme, page_size
        self._memory = SimpleNamespace(repetitions=Repetitions())

    def attend(self, q, out, attn_mask=None, rope=None):
        assert attn_mask is None or attn_mask.shape == (CHUNK.seqlen_q, CHUNK.seqlen_kv)
        assert rope is None or rope.cos.shape == (CHUNK.seqlen_kv, CHUNK.head_dim // 2)
        Cache.seen += ((*self.kind, rows.MANY_ROWS),)
        return out

    def gather(self, dtype):
        return dtype, dtype


@pytest.fixture
def found(monkeypatch):
    """Return the rows of everything, each call of which took 1 ms for each of its queries."""

    @contextmanager
    def room_for(case, needed, left_out):
        yield True

    def time_gpu(functions, *, rounds, warmup, flush, order_seed):
        for function in functions.values():
            function()
        return {name: Median(2.0 + name, 0.1) for name in functions}

    monkeypatch.setattr(chunks, "room_for", room_for)
    monkeypatch.setattr(chunks, "time_gpu", time_gpu)
    monkeypatch.setattr(chunks, "noise", lambda case, seed: np.zeros(1))
    monkeypatch.setattr(chunks, "token_noise", lambda case, tokens, seed: np.zeros(1))
    monkeypatch.setattr(chunks.ours, "family", lambda scheme, case: "any")
    monkeypatch.setattr(chunks.ours, "prepare", lambda *args: Run(int, int))
    monkeypatch.setattr(chunks.caches, "filled", Cache)
    monkeypatch.setattr(chunks.baselines, "bound", lambda *args: Run(int, int))
    monkeypatch.setattr(type(SDPA), "unavailable", lambda self: None)
    monkeypatch.setitem(sys.modules, "cupy", np)
    Cache.seen = ()
    return list(chunks.timings(lambda what, why: pytest.fail(what)))


def test_every_number_of_queries_goes_both_ways(found):
    before = rows.MANY_ROWS
    for case in CASES:
        of_case = {(t.scheme, t.feature) for t in found if shape_of(t) == shape_of(case)}
        wanted = {(s, x) for s in ("kv-int8", "kv-int4") for x in (None, DECODED)}
        assert of_case >= wanted | {("int8", None)}
        for scheme in ("kv-int8", "kv-int4"):
            ways = {many for n, s, _, many in Cache.seen if (n, s) == (case.seqlen_q, scheme)}
            assert ways == {0, 2**31}
    whole = {(t.scheme, t.feature) for t in found if t.seqlen_q == CHUNK.seqlen_q}
    assert whole >= {("kv-int8", PAGED), ("kv-int4", PAGED), ("fp16", None)}
    for option in (MASK, ROPE):
        assert whole >= {("kv-int8", option), ("kv-int4", f"{option}-{DECODED}")}
    assert before == rows.MANY_ROWS
    assert {phases.of_timing(t) for t in found} == {"chunk"}
    assert all(t.tops and t.kernel_ms for t in found)


def test_tables_have_all_rows(found):
    whole = record.Record(digest="", gpu="", versions={}, timings=found)
    text = table_of_chunks(Figures(whole))
    for title in (
        "`kv-int8`, decoded",
        "`kv-int4`, pages of 16 tokens",
        "`int8`",
        f"`{SDPA.name}`",
    ):
        assert title in text
    assert text.count("\n") == len({(t.implementation, t.scheme, t.feature) for t in found}) + 1
    times = {(t.scheme, t.feature): t.kernel_ms for t in found if t.seqlen_q == CHUNK.seqlen_q}
    share, *_, beside = [row[2] for row in goal_rows(Figures(whole))]
    assert float(share) == round(times["int8", None] / times["kv-int8", None], 2)
    assert float(beside) == round(times["fp16", None] / times["kv-int4", None], 2)
    assert "kv-int4 paged-16" in tables.show(whole)


def test_what_was_not_measured_is_left_open():
    none = Figures(record.Record(digest="", gpu="", versions={}))
    assert table_of_chunks(none).startswith("*")
    assert {row[2] for row in goal_rows(none)} == {"–"}
    other = replace(CHUNK, seqlen_kv=1024)
    assert shape_of(other) not in map(shape_of, CASES)


def test_kernels_are_compiled_beforehand():
    of_options = {*chunks.kernels_of_options(target("90a"))}
    specs = {*chunks.kernels(target("90a"))}
    assert {"decode", "cache_operands", "quantize"} <= {spec.entry for spec in specs - of_options}
    assert {"decode", "mask_map", "cache_queries"} <= {spec.entry for spec in of_options}
    listed = kv_specs([128], ["float16"], [8, 4], target("90a"))
    assert specs - of_options <= {*listed}
