"""Tables of decoding in the documents and at the end of a run, from rows made up."""

from dataclasses import asdict, replace

from benchmarks import tables
from benchmarks.append import EMPTY, TOKEN
from benchmarks.decode import NARROW, PAGED, RAGGED, RAGGED_LENGTHS, SHORT
from benchmarks.decode_errors import SHORT as ERRORS_SHORT
from benchmarks.decode_rows import DecodeRows
from cuattn.bench.cases import DECODE
from cuattn.records.record import Accuracy, Record, Timing
from tools.tables import decode as decode_tables
from tools.tables.record_figures import Figures


def row(kind, case, name, ms=None, host_ms=None, gbps=None):
    ours = name.startswith("kv-")
    return Timing(
        **asdict(case),
        case=kind,
        implementation="cuattn" if ours else name,
        scheme=name if ours else "fp16" if name.startswith("pytorch") else "",
        family="any",
        kernel_ms=ms,
        end_to_end_ms=host_ms,
        gbps=gbps,
    )


TIMINGS = [
    row("decode", DECODE[0], "kv-int8", 0.1, gbps=3400.0),
    row("decode", DECODE[0], "kv-int4", 0.08, gbps=2600.0),
    row("decode", DECODE[0], "pytorch-flash", 0.3, gbps=1200.0),
    row("decode", DECODE[0], "pytorch-cudnn", 0.2, gbps=1800.0),
    row("copy-decode", DECODE[0], "cudaMemcpyAsync", 0.5, gbps=4000.0),
    row("decode", PAGED, "kv-int8", 0.1, gbps=3000.0),
    row("decode-paged", PAGED, "kv-int8", 0.11, gbps=2700.0),
    row("decode-ragged", RAGGED, "kv-int8", 1.0, gbps=3300.0),
    row("decode-even", RAGGED, "kv-int8", 1.0, gbps=3400.0),
    row("decode-short", SHORT, "kv-int8", 0.0101, gbps=200.0),
    row("decode-host", SHORT, "kv-int8", host_ms=0.035),
    row("decode-graph", SHORT, "kv-int8", host_ms=0.004),
    row("decode-host", SHORT, "kv-int4", host_ms=0.035),
    row("decode-graph", SHORT, "kv-int4", host_ms=0.006),
    row("append", TOKEN, "kv-int4", 0.0062),
    row("append", TOKEN, EMPTY, 0.0027),
    row("append-graph", TOKEN, "kv-int4", 0.0031),
    row("decode", NARROW, "kv-int8", 0.05, gbps=2900.0),
    row("copy-decode", NARROW, "cudaMemcpyAsync", 0.5, gbps=4000.0),
]
ERRORS = [
    Accuracy(
        **asdict(ERRORS_SHORT),
        scheme="kv-int4-g32-zero",
        family="decode",
        distribution="k-bias",
        metrics={"relative_l1": 0.0512, "cosine": 1.0},
    )
]
RECORD = Record("0", "NVIDIA Test", {}, accuracy=ERRORS, timings=TIMINGS)


def cells(text):
    """Return the rows of a table by their first column."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows[2:]}


def test_rows_are_compared_with_those_that_took_turns():
    rows = DecodeRows(TIMINGS)
    assert rows.share("kv-int8", DECODE[0]) == 0.85
    assert rows.faster("kv-int8", DECODE[0]) == 2.0
    assert rows.faster("kv-int4", DECODE[0]) == 0.2 / 0.08
    assert rows.share("kv-int8", PAGED) is None  # the copy was that of half the channels
    assert rows.share("kv-int8", NARROW) == 0.725
    assert rows.faster("kv-int8", PAGED) is None
    assert rows.beside("decode-paged", "decode", "kv-int8", PAGED) == 0.9
    assert rows.names(DECODE[0]) == ["kv-int8", "kv-int4", "pytorch-flash", "pytorch-cudnn"]


def test_goals_say_what_was_missed():
    found = cells(decode_tables.goals(Figures(RECORD)))
    where = "1 × 8 × 131072"
    assert found[f"`kv-int8`, % of a copy's bandwidth, {where}"] == ["≥ 80", "85", "yes"]
    assert found[f"`kv-int4`, % of a copy's bandwidth, {where}"] == ["≥ 70", "65", "**no**"]
    assert found[f"`kv-int8` over the best float16, {where}"] == ["≥ 1.90", "2.00", "yes"]
    assert found[f"`kv-int4` over the best float16, {where}"] == ["≥ 3.20", "2.50", "**no**"]
    what = "`kv-int8`, bandwidth with random lengths over that with equal ones"
    assert found[what] == ["≥ 0.90", "0.97", "yes"]
    what = "`kv-int8`, bandwidth with pages in random order over that without"
    assert found[what] == ["≥ 0.95", "0.90", "**no**"]
    assert found["`kv-int8`, µs, 1 × 8 × 1024"] == ["≤ 12.0", "10.1", "yes"]
    host = "µs of the host, 1 × 8 × 1024: a call / a graph's launch, one of them"
    assert found[f"`kv-int8`, {host}"] == ["≤ 30 / 5", "35.0 / 4.0", "yes"]
    assert found[f"`kv-int4`, {host}"] == ["≤ 30 / 5", "35.0 / 6.0", "**no**"]
    what = "`kv-int4`, µs, one token appended to 16 × 8"
    assert found[what] == ["≤ 5.0", "6.2", "**no**"]
    assert found[f"{what}, in a graph"] == ["≤ 5.0", "3.1", "yes"]
    assert found["`kv-int4`, µs, 1 × 8 × 1024"] == ["≤ 12.0", "–", "–"]


def test_every_row_of_a_record_is_shown():
    lines = decode_tables.decode(Figures(RECORD)).splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["1 × 8 × 131072", "`kv-int8`", "100.0", "3400", "85", "2.00"]
    assert rows[2] == ["1 × 8 × 131072", "`pytorch-flash`", "300.0", "1200", "30", "0.67"]
    assert ["16 × 8 × 8192, D 64", "`kv-int8`", "50.0", "2900", "72", "–"] in rows
    assert rows[-2][0].endswith("one token appended")
    assert rows[-2][1:3] == ["`empty-kernel`", "2.7"]
    assert rows[-1][0].endswith("one of 64 tokens appended in a graph")
    about = {row[0].partition(", ")[2] for row in rows}
    assert about >= {"pages of 16 tokens", "random lengths", "alone", "one token appended"}


def test_summary_has_a_row_for_each_shape():
    found = cells(decode_tables.summary(Figures(RECORD)))
    assert found["1 × 8 × 131072"] == ["3400 (85 %)", "2.00", "2600 (65 %)", "2.50"]
    assert len(found) == len(DECODE)
    assert found["64 × 8 × 4096"] == ["– (– %)", "–", "– (– %)", "–"]


def test_errors_are_found_by_format():
    found = cells(decode_tables.errors(Figures(RECORD)))
    assert found["`kv-int4-g32-zero`"] == ["–", "5.12", "–", "–"]


def test_decoding_is_apart_from_the_quantizers():
    copy = replace(TIMINGS[4], case="copy", gbps=4200.0)
    shown = tables.show(replace(RECORD, timings=[*TIMINGS, copy]))
    about, _, table = shown.partition("the KV cache: ")
    assert "copy : 0.500 ms, 4200 GB/s" in about
    assert "kv-int8" not in about
    (line,) = [x for x in table.splitlines() if x.startswith("decode 1x8x131072x128 kv-int8")]
    assert line.split()[3:] == ["100.0", "-", "3400", "85", "2.00"]
    (line,) = [x for x in table.splitlines() if x.startswith("decode-graph") and "int8" in x]
    assert line.split()[3:] == ["-", "4.0", "-", "-", "-"]


def test_random_lengths_are_the_same_every_time():
    assert len(RAGGED_LENGTHS) == RAGGED.batch
    assert min(RAGGED_LENGTHS) >= 1
    assert max(RAGGED_LENGTHS) <= 32768
    assert abs(sum(RAGGED_LENGTHS) - RAGGED.batch * RAGGED.seqlen_kv) <= RAGGED.batch // 2
