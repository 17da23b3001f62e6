"""Tables of chunks of a prompt against a KV cache: times of both ways, and the goals."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.chunks import CASES, CHUNK, DECODED, KIND, MASK, PAGED, ROPE, SCHEME, SDPA
from cuattn.bench.caches import SCHEMES
from cuattn.bench.series import Series
from cuattn.records.rows import shape_of
from tools.tables.record_figures import NOTHING, Figures, at_least, show, table

__all__ = ["chunks", "goal_rows", "goals"]

# TOPS over those of attention to operands that are there, of 8 and of 4 bits; those with pages over
# those without; times as fast as float16.
OF_ATTENTION = (0.85, 0.75)
OF_ONE_PIECE = 0.95
FASTER = 1.3

_TITLES = {
    None: "",
    PAGED: ", pages of 16 tokens",
    DECODED: ", decoded",
    MASK: ", a mask of booleans",
    f"{MASK}-{DECODED}": ", a mask of booleans, decoded",
    ROPE: ", queries that turn",
    f"{ROPE}-{DECODED}": ", queries that turn, decoded",
}
# Who is timed, and how.
_NAMES = [
    (SCHEME, None),
    *((name, feature) for name in SCHEMES for feature in _TITLES),
    (SDPA.name, None),
]

# Milliseconds by who, how and how many queries.
Times = dict[tuple[str, str | None, int], float | None]


def chunks(f: Figures) -> str:
    """Return the times of calls, a column for each number of queries."""
    found = _times(f)
    if not found:
        return NOTHING
    rows = []
    for name, feature in _NAMES:
        ms = [found.get((name, feature, case.seqlen_q)) for case in CASES]
        if any(ms):
            rows.append([f"`{name}`{_TITLES[feature]}", *(show(x, ".0f", 1e3) for x in ms)])
    return table(["µs, queries", *(str(case.seqlen_q) for case in CASES)], rows)


def goals(f: Figures) -> str:
    """Return the table of goals."""
    header = [f"goal of chunks of {CHUNK.seqlen_q} queries", "wanted", "measured", "reached"]
    return table(header, list(goal_rows(f)))


def goal_rows(f: Figures) -> Iterator[list[str]]:
    """Yield its rows."""
    found = _times(f)

    def faster(over: tuple[str, str | None], under: tuple[str, str | None]) -> float | None:
        mine, theirs = (found.get((*who, CHUNK.seqlen_q)) for who in (over, under))
        return theirs / mine if mine and theirs else None

    for name, least in zip(SCHEMES, OF_ATTENTION, strict=True):
        what = f"`{name}`, speed over that of `{SCHEME}` from operands that are there"
        yield at_least(what, least, faster((name, None), (SCHEME, None)))
    for name in SCHEMES:
        what = f"`{name}`, speed with pages of 16 tokens over that without"
        yield at_least(what, OF_ONE_PIECE, faster((name, PAGED), (name, None)))
    for name in SCHEMES:
        what = f"`{name}` over PyTorch's attention in float16"
        yield at_least(what, FASTER, faster((name, None), (SDPA.name, None)))


def _times(f: Figures) -> Times:
    shapes = [shape_of(case) for case in CASES]
    return {
        (Series.of(t).name, t.feature, t.seqlen_q): t.kernel_ms
        for t in f.record.timings
        if t.case == KIND and shape_of(t) in shapes
    }
