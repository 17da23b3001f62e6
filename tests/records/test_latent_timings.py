"""Rows of attention to latent caches that a run yields, and their table, with times made up."""

from contextlib import nullcontext
from dataclasses import replace

import pytest

from benchmarks import latent, phases, tables
from cuattn.bench import decode, ours
from cuattn.choice.timing import Median
from cuattn.records.record import Record

MS = 0.25


@pytest.fixture
def rows(monkeypatch):
    """Yield the rows of a run in which every call takes `MS`."""

    def call(case, *others):
        moved = case.batch * case.seqlen_kv * 644
        return decode.Call(latent.KIND, ours.NAME, latent.SCHEME, lambda: None, moved)

    def matmul(case, *others):
        return replace(call(case), implementation=latent.MATMUL, scheme=decode.FP16)

    copy = decode.Call(decode.COPY_KIND, decode.COPY, "", lambda: None, 2 << 30)
    monkeypatch.setattr(latent, "room_for", lambda case, needed, left_out: nullcontext(True))
    monkeypatch.setattr(latent, "noise", lambda case, seed: None)
    monkeypatch.setattr(latent, "token_noise", lambda case, tokens, seed: _Array())
    monkeypatch.setattr(latent, "_cached", call)
    monkeypatch.setattr(latent, "_matmul", matmul)
    monkeypatch.setattr(latent.decode, "copy", lambda: copy)
    time = lambda functions, **options: dict.fromkeys(functions, Median(MS, 0.0))  # noqa: E731
    monkeypatch.setattr(decode, "time_gpu", time)
    return list(latent.timings(lambda what, why: pytest.fail(why)))


class _Array:
    def __getitem__(self, index):
        return self


def test_every_case_has_a_cache_a_baseline_and_a_copy(rows):
    assert len(rows) == 3 * len(latent.CASES)
    found = {(t.case, t.implementation, t.scheme) for t in rows}
    assert found == {
        ("mla-decode", ours.NAME, "kv-int8"),
        ("mla-decode", "pytorch-matmul", "fp16"),
        ("copy-mla-decode", decode.COPY, ""),
    }
    assert {phases.of_timing(t) for t in rows} == {"decode"}


def test_speeds_are_of_all_products_and_of_the_tokens_bytes(rows):
    large = next(
        t for t in rows if t.scheme == "kv-int8" and t.num_q_heads == 128 and t.batch == 64
    )
    assert large.tops == pytest.approx(2 * 64 * 128 * 8192 * 1088 / (MS * 1e9))
    assert large.gbps == pytest.approx(64 * 8192 * 644 / (MS * 1e6))
    assert all(t.tops is None for t in rows if t.case == latent.COPY_KIND)


def test_the_table_has_them_beside_the_copy(rows):
    shown = tables.show(Record(digest="", gpu="", versions={}, timings=rows))
    line = next(x for x in shown.splitlines() if x.startswith("64x128x8192 kv-int8"))
    of_copy = 64 * 8192 * 644 / (2 << 30)
    assert line.split()[2:] == ["250.0", "584", "1351", f"{100 * of_copy:.0f}"]
