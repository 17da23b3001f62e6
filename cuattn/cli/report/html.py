"""``cuattn report --html``: what was measured, as a page with pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ... import __version__
from ...reference.arrays import Progress
from ...reference.p_rounding import PRounding, look_at_p
from ..page import cards, details, heading, links_to, page, paragraph, section, table
from ..table import Group, Table, number
from . import overview, picture_codes, picture_p, picture_rows
from .measured import Measured, tables
from .sample import Sample
from .sweep import Sweep

__all__ = ["write"]

TEXTS = {
    "error": "L1 and L2: the sum of absolute differences, or the root of the sum of squares, "
    "relative to the same of the exact output. Mean: of the elements' relative errors, which those "
    "near zero dominate. Cosine: of the angle between the outputs. SNR: signal-to-noise ratio.",
    "relative L1 error with": "What is left of the error, in percent, if only Q, only K, only P "
    "or only V is rounded. The largest of the four is the one to improve.",
    "time": "Median time of one call, quantization of Q, K and V included.",
    "relative L1 error, %, against": "The same error for each size, in percent.",
}
OVERVIEW = "Relative L1 error of each scheme (rows) on each input (columns), in percent."
INTRODUCTION = (
    "Attention multiplies queries Q by keys K, turns the products of a row into weights P by the "
    "softmax, and adds up the values V by these weights. A scheme says which of the four are "
    "rounded to 8 or 4 bits, and how. This page shows how much each scheme gets wrong, and where. "
    "Everything is compared with attention in float64 on the same inputs."
)
# So many schemes of inputs are drawn one by one if nothing is said: half a minute, 4 MB.
CLOSE_UPS = 42
LOST = (
    "Weights that round to zero add nothing to the output. What counts is not how many they are "
    "but what share of a row's weight is in them."
)


def write(
    path: Path,
    measured: list[Measured],
    swept: list[Sweep],
    options: dict[str, Any],
    headline: str,
    close_ups: int | None,
    task: Callable[[str], Progress],
) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
    measured : list of Measured
    swept : list of Sweep
    options : dict
        The attention's, as from `setting.keywords`.
    headline : str
        Which attention, and where.
    close_ups : int or None
        Of the first so many inputs each scheme is drawn by itself; None: as many as make
        `CLOSE_UPS` schemes, at least one.
    task : callable
        From a name to a callback of progress.
    """
    body = [paragraph(INTRODUCTION), _contents(measured, swept)]
    if len(measured) > 1:
        body.append(section("overview", "All inputs", [table(tables(measured)[0], OVERVIEW)]))
    if close_ups is None:
        schemes = max((len(m.reports) for m in measured), default=0)
        close_ups = max(CLOSE_UPS // max(schemes, 1), 1)
    for i, m in enumerate(measured):
        inside = _whole(m, f"i{i}")
        inside += _closer(m, f"i{i}", options, task) if i < close_ups else [_not_closer(close_ups)]
        body.append(section(f"input-{i}", m.input.title, inside))
    for i, sweep in enumerate(swept):
        pictures = cards(overview.of_sweep(sweep, f"w{i}"))
        body.append(section(f"sweep-{i}", _title(sweep), [pictures, _table(sweep.table())]))
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    foot = f"cuattn {__version__}, {now}. This file refers to nothing outside of itself."
    path.write_text(page("cuattn report", [headline], body, foot), encoding="utf-8")


def _contents(measured: list[Measured], swept: list[Sweep]) -> str:
    links = [(f"input-{i}", m.input.name) for i, m in enumerate(measured)]
    links += [(f"sweep-{i}", _title(sweep)) for i, sweep in enumerate(swept)]
    if len(links) == 1:
        return ""
    return links_to(links)


def _title(sweep: Sweep) -> str:
    return f"Error against {sweep.axis.label}"


def _table(shown: Table) -> str:
    text = next(text for start, text in TEXTS.items() if shown.title.startswith(start))
    return table(shown, text)


def _untitled(shown: Table) -> Table:
    """Leave out the title of the input, which is that of the section."""
    return replace(shown, groups=[replace(group, title="") for group in shown.groups])


def _whole(m: Measured, prefix: str) -> list[str]:
    """Return what compares the schemes on an input."""
    pictures = cards(overview.of_input(m, prefix)) if m.reports else ""
    return [pictures, *(_table(_untitled(shown)) for shown in tables([m]))]


def _not_closer(close_ups: int) -> str:
    who = {0: "No input has", 1: "Only the first input has"}
    have = who.get(close_ups, f"Only the first {close_ups} inputs have")
    return paragraph(f"{have} pictures of each scheme by itself; --close-ups says how many have.")


def _closer(
    m: Measured, prefix: str, options: dict[str, Any], task: Callable[[str], Progress]
) -> Iterator[str]:
    """Yield what shows each scheme on an input by itself."""
    sample = Sample.of(m.input)
    if not sample:
        yield paragraph("There are no rows to look at closely.")
        return
    closer = [_scheme(m, i, sample, f"{prefix}s{i}", options, task) for i in range(len(m.reports))]
    rows = [(r.scheme.name, _p_row(p)) for r, (p, _) in zip(m.reports, closer, strict=True)]
    lost = Table(["zeros %", "weight in them %"], [Group("", rows)], "P that rounds to zero")
    yield table(lost, f"{LOST} Emulated, of {sample}.")
    yield heading("Scheme by scheme")
    yield from (body for _, body in closer)


def _p_row(p: PRounding) -> list[float | None]:
    return [100 * p.zero_share, 100 * p.lost]


def _scheme(
    m: Measured,
    i: int,
    sample: Sample,
    prefix: str,
    options: dict[str, Any],
    task: Callable[[str], Progress],
) -> tuple[PRounding, str]:
    report = m.reports[i]
    scheme = report.scheme
    progress = task(f"{m.input.name}, {scheme.name}, pictures")
    ops = sample.operands(scheme)
    p = look_at_p(ops, scheme, sample.rows, **options, progress=progress)
    shown = [picture_codes.draw(ops, scheme, sample, f"{prefix}-qkv")]
    if report.by_row is not None:
        shown.insert(0, picture_rows.draw(report.by_row, f"{prefix}-rows"))
    shown += picture_p.draw(p, scheme, ops.compute, sample, f"{prefix}-p")
    note = f"relative L1 error {number(100 * report.metrics['relative_l1'])} %"
    body = cards(card for card in shown if card is not None)
    return p, details(scheme.name, note, body, is_open=i == 0)
