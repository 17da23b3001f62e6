"""``cuattn bench --html``: what one run found, as a page with pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ... import __version__
from ...bench.comparison import Comparison
from ...bench.results import Results
from ..figures import style
from ..page import cards, definitions, details, links_to, page, paragraph, section, table
from . import changes as bench_changes
from . import decode as bench_decode
from . import pareto as bench_pareto
from . import roofline as bench_roofline
from . import rows as bench_rows
from . import speed as bench_speed
from .findings import findings
from .look import KEY

__all__ = ["write"]

INTRODUCTION = (
    "How fast attention with quantized operands is on this GPU, and how accurate, beside the GPU's "
    "own limits and beside implementations by others. All of them ran in turns, so that clocks and "
    "heat were the same for all. A TOPS is 10¹² multiplications and additions a second; D is the "
    "head dimension, N the tokens of a sequence, B the batch, H the heads of queries and of keys."
)
CEILINGS = (
    "The most that kernels which do nothing else got out of this GPU: a copy and a read of memory "
    "far larger than any cache, and products of the tensor cores without any memory. Every other "
    "figure is to be held against these. The spread is that between quartiles."
)
SPEED = "More is better. Operations of Q Kᵀ and P V that the mask leaves, divided by the time. "
ERRORS = (
    "The sum of all absolute differences from attention in float64, divided by the sum of all "
    "absolute values. Further right is faster, further down more accurate. Large filled marks are "
    "the Pareto front: nothing else is both faster and more accurate. Each of the others, small "
    "and hollow, lies behind the line: one of the front is faster, with less error or as good as "
    "the same. So choose the fastest on the front whose error is small enough for your model. "
    "Where many marks are close some have no name; the tables have all."
)
ROOFLINE = "What bounds attention: memory while decoding, the tensor cores otherwise."
DECODING = (
    "A model that writes text attends with one query to all keys and values so far. That takes as "
    "long as these take to read, so fewer bits mean more speed."
)
TABLE_OF_SPEEDS = (
    "Medians, and the spread between quartiles in percent of them. The ceiling is that of the "
    "scheme's two products; it is compared with the kernel alone."
)
TABLE_OF_ERRORS = "Relative L1 error in percent, a column for each kind of inputs."
TABLE_OF_DECODING = (
    "Medians, the spread between quartiles in percent of them, the cache's bytes in a second, what "
    "that is of a copy's, and how many times as fast as the fastest with a float16 cache."
)
LEFT_OUT = "What could not be measured here, and why."
CHANGES = (
    "Time is how much longer something takes now, in percent: negative is faster, also for "
    "ceilings. Unchanged code is implementations by others, copies and ceilings: how far their "
    "times drifted together is the machine's doing, and taken out. Noise is three standard "
    "deviations, made of the spread of both medians and of the spread of that drift."
)
CHANGED_ERRORS = "Kernels give the same bits in each run, so any other error is another result."
# Longer tables of changes are to be opened.
OPEN = 12


def write(path: Path, results: Results, comparison: Comparison | None) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
    results : Results
        Of a whole run or a part; what is not there is left out.
    comparison : Comparison or None
        Of these results with earlier ones.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with style():
        parts = [
            (name, title, "\n".join(body)) for name, title, body in _parts(results, comparison)
        ]
    shown = [(name, title, body) for name, title, body in parts if body]
    body = [paragraph(INTRODUCTION), *map(paragraph, findings(results))]
    body.append(links_to((name, title) for name, title, _ in shown))
    body += [section(name, title, [text]) for name, title, text in shown]
    foot = f"cuattn {__version__}. This file refers to nothing outside of itself."
    path.write_text(page("cuattn bench", _subtitle(results), body, foot), encoding="utf-8")


def _subtitle(results: Results) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    when = results.measured_at.replace("T", " ")[:16]
    code, rounds = results.digest[:12], results.rounds
    return [f"{results.gpu}, {when} UTC, code {code}, medians of {rounds} rounds", versions]


def _parts(
    results: Results, comparison: Comparison | None
) -> Iterator[tuple[str, str, Iterable[str]]]:
    """Yield anchor, title and body of each section; the body is empty if there is nothing."""
    yield "changes", "What changed", _changes(comparison)
    yield "ceilings", "What this GPU can do", _ceilings(results)
    pictures = list(bench_speed.draw(results, "speed"))
    yield (
        "speed",
        "Speed against length",
        [paragraph(SPEED + KEY), cards(pictures)] * bool(pictures),
    )
    pictures = list(bench_pareto.draw(results, "pareto"))
    yield "errors", "Error against speed", [paragraph(ERRORS), cards(pictures)] * bool(pictures)
    pictures = list(bench_roofline.draw(results, "roof"))
    yield "roofline", "Roofline", [paragraph(ROOFLINE), cards(pictures)] * bool(pictures)
    pictures = list(bench_decode.draw(results, "decode"))
    yield "decode", "Decoding", [paragraph(DECODING), cards(pictures)] * bool(pictures)
    yield "figures", "All figures", _figures(results)
    yield "left-out", "What was left out", _left_out(results)


def _changes(comparison: Comparison | None) -> Iterator[str]:
    if comparison is not None:
        yield paragraph(bench_changes.summary(comparison))
        yield from map(paragraph, comparison.notes)
        yield from map(paragraph, bench_changes.drifts(comparison))
        yield from map(paragraph, bench_changes.lacking(comparison))
        for shown in bench_changes.tables(comparison):
            count = sum(len(group.rows) for group in shown.groups)
            text = CHANGED_ERRORS if shown.title == bench_changes.ERRORS else CHANGES
            inside = table(replace(shown, title=""), text)
            title = shown.title[:1].upper() + shown.title[1:]
            yield details(title, f"{count} changed", inside, is_open=count <= OPEN)


def _ceilings(results: Results) -> Iterator[str]:
    if results.ceilings:
        yield table(bench_rows.ceilings(results.ceilings), CEILINGS)


def _figures(results: Results) -> Iterator[str]:
    for shown in bench_rows.speeds(results):
        untitled = replace(shown, title="")
        yield details("Speed", shown.title, table(untitled, TABLE_OF_SPEEDS))
    for title, shown, text in (
        ("Errors", bench_rows.errors(results), TABLE_OF_ERRORS),
        ("Decoding", bench_rows.decoding(results), TABLE_OF_DECODING),
    ):
        if shown.groups:
            yield details(title, "", table(shown, text))


def _left_out(results: Results) -> Iterator[str]:
    if results.left_out:
        yield paragraph(LEFT_OUT)
        yield definitions(results.left_out.items())
