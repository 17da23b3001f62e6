"""Tables of decoding from the KV cache: speed, errors, and what it set out to reach."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.append import EMPTY, IN_GRAPH, PROMPT, TOKEN
from benchmarks.decode import NARROW, PAGED, RAGGED, SHORT
from benchmarks.decode_errors import OPTIONS, POINTS
from benchmarks.decode_rows import DecodeRows
from cuattn.bench.caches import SCHEMES
from cuattn.bench.cases import DECODE, Case
from tools.tables.record_figures import (
    MISSED,
    NONE,
    Figures,
    at_least,
    at_most,
    pair,
    percent,
    show,
    table,
)

# For each of `DECODE`, of 8 and of 4 bits: shares of the copy's speed, times as fast as float16.
SHARES = ((0.80, 0.70), (0.85, 0.75), (0.85, 0.75), (0.80, 0.70))
FASTER = ((1.9, 3.2), (1.9, 3.4), (1.8, 3.2), (1.9, 3.2))
# What different lengths, and pages of 16 tokens, may cost of the bandwidth.
RAGGED_SHARE, PAGED_SHARE = 0.90, 0.95
# Milliseconds of `SHORT`: of the GPU, of the host, of the host that launches a graph.
SHORT_GPU, SHORT_HOST, SHORT_GRAPH = 0.012, 0.030, 0.005
APPEND = 0.005

# Kinds of rows with one shape each, and what the table calls them.
KINDS = (
    ("decode-paged", PAGED, "pages of 16 tokens"),
    ("decode-even", RAGGED, "equal lengths"),
    ("decode-ragged", RAGGED, "random lengths"),
    ("decode-short", SHORT, "alone"),
    ("append-prompt", PROMPT, "appended at once"),
    ("append-packed", PROMPT, "appended at once, end to end"),
    ("append", TOKEN, "one token appended"),
    ("append-graph", TOKEN, f"one of {IN_GRAPH} tokens appended in a graph"),
)


def decode(f: Figures) -> str:
    """Return times, bandwidths and speed-ups of decoding and of appending."""
    rows = DecodeRows(f.record.timings)
    cells = []
    for case in (*DECODE, NARROW):
        for name in rows.names(case):
            share, faster = rows.share(name, case), rows.faster(name, case)
            last = [show(share, ".0f", 100), show(faster, ".2f")]
            cells.append([_shape(case), f"`{name}`", *_measured(rows, "decode", name, case), *last])
    for kind, case, title in KINDS:
        for name in (*SCHEMES, EMPTY):
            if rows.row(kind, name, case):
                about = [f"{_shape(case)}, {title}", f"`{name}`"]
                cells.append([*about, *_measured(rows, kind, name, case), NONE, NONE])
    header = [
        "batch × heads of K × tokens",
        "cache",
        "µs",
        "GB/s",
        "% of the copy",
        "times as fast",
    ]
    return table(header, cells, left=2)


def summary(f: Figures) -> str:
    """Return what decoding comes to: GB/s, its share of a copy's, and times as fast as float16."""
    rows = DecodeRows(f.record.timings)
    cells = []
    for case in DECODE:
        of_caches = []
        for name in SCHEMES:
            gbps = show(rows.gbps("decode", name, case))
            share = show(rows.share(name, case), ".0f", 100)
            of_caches += [f"{gbps} ({share} %)", show(rows.faster(name, case), ".2f")]
        cells.append([_shape(case), *of_caches])
    header = ["batch × heads of K × tokens"]
    for bits in (8, 4):
        header += [f"{bits} bits: GB/s (of a copy)", "times as fast"]
    return table(header, cells)


def errors(f: Figures) -> str:
    """Return the errors of one query's output."""
    rows = [
        [
            f"`{name}`",
            *(
                percent(f.error(name, distribution, case.head_dim, case.seqlen_kv))
                for case, distribution in POINTS
            ),
        ]
        for name in OPTIONS
    ]
    inputs = [f"{distribution}, N {case.seqlen_kv}" for case, distribution in POINTS]
    return table(["relative L1, %", *inputs], rows)


def goals(f: Figures) -> str:
    """Return the table of goals."""
    header = ["goal of decoding (batch × heads of K × tokens)", "wanted", "measured", "reached"]
    return table(header, list(goal_rows(f)))


def goal_rows(f: Figures) -> Iterator[list[str]]:
    """Yield its rows."""
    rows = DecodeRows(f.record.timings)
    yield from _large(rows)
    yield from _layouts(rows)
    yield from _small(rows)


def _large(rows: DecodeRows) -> Iterator[list[str]]:
    for case, shares, faster in zip(DECODE, SHARES, FASTER, strict=True):
        for i, name in enumerate(SCHEMES):
            what = f"`{name}`, % of a copy's bandwidth, {_shape(case)}"
            yield at_least(what, shares[i], rows.share(name, case), ".0f", 100)
        for i, name in enumerate(SCHEMES):
            what = f"`{name}` over the best float16, {_shape(case)}"
            yield at_least(what, faster[i], rows.faster(name, case))


def _layouts(rows: DecodeRows) -> Iterator[list[str]]:
    for name in SCHEMES:
        ragged = rows.beside("decode-ragged", "decode-even", name, RAGGED)
        what = f"`{name}`, bandwidth with random lengths over that with equal ones"
        yield at_least(what, RAGGED_SHARE, ragged)
        paged = rows.beside("decode-paged", "decode", name, PAGED)
        what = f"`{name}`, bandwidth with pages in random order over that without"
        yield at_least(what, PAGED_SHARE, paged)


def _small(rows: DecodeRows) -> Iterator[list[str]]:
    for name in SCHEMES:
        t = rows.row("decode-short", name, SHORT)
        ms = t.kernel_ms if t else None
        yield at_most(f"`{name}`, µs, {_shape(SHORT)}", SHORT_GPU, ms, ".1f", 1e3)
        yield _host(rows, name)
    for name in SCHEMES:
        for kind, how in (("append", ""), ("append-graph", ", in a graph")):
            t = rows.row(kind, name, TOKEN)
            ms = t.kernel_ms if t else None
            what = f"`{name}`, µs, one token appended to 16 × 8{how}"
            yield at_most(what, APPEND, ms, ".1f", 1e3)


def _host(rows: DecodeRows, name: str) -> list[str]:
    """Return the goal that either way of calling may reach."""
    found = [rows.row(kind, name, SHORT) for kind in ("decode-host", "decode-graph")]
    call, graph = (t.end_to_end_ms if t else None for t in found)
    what = f"`{name}`, µs of the host, {_shape(SHORT)}: a call / a graph's launch, one of them"
    reached = NONE
    if call and graph:
        reached = "yes" if call <= SHORT_HOST or graph <= SHORT_GRAPH else MISSED
    wanted = pair((SHORT_HOST, SHORT_GRAPH), ".0f", 1e3)
    return [what, f"≤ {wanted}", pair((call, graph), ".1f", 1e3), reached]


def _measured(rows: DecodeRows, kind: str, name: str, case: Case) -> list[str]:
    t = rows.row(kind, name, case)
    return [show(t.kernel_ms if t else None, ".1f", 1e3), show(t.gbps if t else None)]


def _shape(case: Case) -> str:
    narrow = "" if case.head_dim == DECODE[0].head_dim else f", D {case.head_dim}"
    return f"{case.batch} × {case.num_kv_heads} × {case.seqlen_kv}{narrow}"
