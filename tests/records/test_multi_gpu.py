"""The check of several GPUs without any: its parts in one process, and its record's rows."""

from types import SimpleNamespace

import numpy as np

from benchmarks import (
    multi_gpu,
    multi_gpu_clock,
    multi_gpu_decode,
    multi_gpu_ranks,
    multi_gpu_times,
    rings,
)
from cuattn.distributed import run_virtual
from cuattn.records import record
from cuattn.records.rows import Timing
from tools.tables import several
from tools.tables.record_figures import NOTHING


def ranks_of(group):
    ranks = multi_gpu_ranks.Ranks.__new__(multi_gpu_ranks.Ranks)
    ranks.group, ranks.xp, ranks.tokens, ranks.failures = group, np, 37, []
    return ranks


def test_ways_have_the_bits_of_virtual_ranks():
    def work(group):
        ranks = ranks_of(group)
        arrays = ranks.inputs()
        for one in multi_gpu_ranks.CHECKS[:2]:
            o = multi_gpu_ranks._virtually(one, arrays, group)
            assert multi_gpu_ranks._error(ranks, arrays, o, *one) < multi_gpu_ranks.MOST
        return ranks.gather(bytes([group.rank]) * (5000 * group.rank))

    assert run_virtual(2, work) == [[b"", b"\1" * 5000]] * 2


def test_rows_have_what_a_record_holds(monkeypatch):
    monkeypatch.setattr(multi_gpu_times, "WAYS", multi_gpu_times.WAYS[:1])
    monkeypatch.setattr(multi_gpu_clock, "ROUNDS", 1)
    monkeypatch.setattr(multi_gpu_clock, "WARMUP", 0)
    monkeypatch.setattr(multi_gpu_decode, "STEPS", 1)
    monkeypatch.setattr(multi_gpu_times, "HEADS", 4)
    rows = run_virtual(2, lambda group: list(multi_gpu_times.timings(group, 60, True)))[0]
    cases = [row.case for row in rows]
    decoded = ["decode-ranks-host", "decode-ranks", "decode-one"]
    assert cases == ["link", *decoded, *decoded, "ring-one", "ring", "ring", "ring"]
    ring = rows[8]
    assert (ring.ranks, ring.placement, ring.wire) == (2, "zigzag", None)
    # V's tokens are padded to 128 in each of the two chunks.
    assert 4 * (64 + 256) * 128 < ring.bytes_sent < 4 * (64 + 320) * 128
    assert ring.hidden <= 1


def test_its_record_is_not_taken_for_that_of_one_gpu(tmp_path, monkeypatch):
    for name in ("h200.json", "h200_x2.json", "h200_x8.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    (tmp_path / "committed").symlink_to(tmp_path)
    assert [path.name for path in record.records()] == ["h200.json"]


def test_a_part_says_which_rank_has_failed(tmp_path, monkeypatch):
    codes = iter([0, 3])

    def process(command, cwd, env):
        assert env["WORLD_SIZE"] == "2"
        code = next(codes)
        return SimpleNamespace(wait=lambda *_: code, kill=lambda: None)

    monkeypatch.setattr(multi_gpu.subprocess, "Popen", process)
    options = SimpleNamespace(gpus=2, rehearse=True)
    assert multi_gpu._part("check", tmp_path, options, 5) == ["check: rank 1 ended with 3"]


def test_bytes_of_merging_are_those_of_all_parts():
    assert rings.merge_bytes(rings.MERGE, 4) == 5 * 32 * 32768 * (256 + 4)


def test_tables_are_of_its_record(tmp_path, monkeypatch):
    shape = {"batch": 1, "num_q_heads": 32, "num_kv_heads": 32, "head_dim": 128, "is_causal": True}
    long = {**shape, "seqlen_q": 32768, "seqlen_kv": 32768, "ranks": 2, "family": "any"}
    ours = {"implementation": "cuattn", "scheme": "int8-block"}
    step = {**long, **ours, "scheme": "int8", "seqlen_q": 1}
    timings = [
        Timing(**long, **ours, case="ring-one", end_to_end_ms=4.5),
        Timing(**long, **ours, case="ring", end_to_end_ms=5.0, tops=880.0, bytes_sent=134 * 10**6),
        Timing(**long, implementation="other", scheme="fp16", case="ring", end_to_end_ms=9.0),
        Timing(**step, case="decode-ranks", kernel_ms=0.16, gbps=3500.0),
        Timing(**{**step, "seqlen_kv": 16384}, case="decode-one", kernel_ms=0.14),
    ]
    path = tmp_path / "test_x2.json"
    record.save(record.Record(digest="", gpu="2 of GPU", versions={}, timings=timings), path)
    monkeypatch.setattr(several, "records_of_several", lambda: [path])
    assert several.status(None).endswith("[measured](#measured) on 2 of GPU.")
    first, second = [line.split(" | ") for line in several.rings(None).splitlines()[2:]]
    assert [x.strip() for x in first[3:8]] == [
        "ring, `int8-block`",
        "codes",
        "5.00",
        "880",
        "0.900",
    ]
    assert 0.9 < float(first[8]) < 1  # predicted
    assert [x.strip() for x in second[3:9]] == ["ring, other", "float16", "9.00", "–", "–", "–"]
    assert several.decoding(None).splitlines()[2].endswith(" 0.88 |")
    assert several.links(None) == NOTHING
