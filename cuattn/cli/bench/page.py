"""``cuattn bench --html``: what one run found, as a page with pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ...bench.comparison import Comparison
from ...bench.results import Results
from ..pages.figures import style
from ..pages.page import render
from ..table import Table
from . import changes, decode, pareto, roofline, speed, tables
from .findings import findings

__all__ = ["page"]

# Longer tables of changes are to be opened.
OPEN = 12


@dataclass(frozen=True)
class _Changes:
    """What the page says of an earlier run."""

    sentences: list[str]
    tables: list[_Folded]


@dataclass(frozen=True)
class _Folded:
    """A table that opens by a click.

    Attributes
    ----------
    title, note : str
    kind : str
        By which the template has a text for it.
    table : Table
    is_open : bool
    """

    title: str
    note: str
    kind: str
    table: Table
    is_open: bool = False

    @property
    def count(self) -> int:
        """Return the number of rows."""
        return sum(len(group.rows) for group in self.table.groups)


def page(results: Results, comparison: Comparison | None) -> str:
    """Return the page.

    Parameters
    ----------
    results : Results
        Of a whole run or a part; what is not there is left out.
    comparison : Comparison or None
        Of these results with earlier ones.
    """
    with style():
        # By the anchors of the sections; one that is empty is left out.
        parts: dict[str, Any] = {
            "changes": comparison and _changes(comparison),
            "ceilings": results.ceilings and tables.ceilings(results.ceilings),
            "speed": list(speed.draw(results, "speed")),
            "errors": list(pareto.draw(results, "pareto")),
            "roofline": list(roofline.draw(results, "roof")),
            "decode": list(decode.draw(results, "decode")),
            "figures": list(_figures(results)),
            "left-out": results.left_out,
        }
    return render(
        "bench.html.jinja",
        subtitle=_subtitle(results),
        findings=list(findings(results)),
        parts=parts,
    )


def _subtitle(results: Results) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    when = results.measured_at.replace("T", " ")[:16]
    code, rounds = results.digest[:12], results.rounds
    return [f"{results.gpu}, {when} UTC, code {code}, medians of {rounds} rounds", versions]


def _changes(comparison: Comparison) -> _Changes:
    sentences = [
        changes.summary(comparison),
        *comparison.notes,
        *changes.drifts(comparison),
        *changes.lacking(comparison),
    ]
    folded = []
    for shown in changes.tables(comparison):
        kind = "changed errors" if shown.title == changes.ERRORS else "changed times"
        title = shown.title[:1].upper() + shown.title[1:]
        found = _Folded(title, "", kind, replace(shown, title=""))
        folded.append(replace(found, is_open=found.count <= OPEN))
    return _Changes(sentences, folded)


def _figures(results: Results) -> Iterator[_Folded]:
    for shown in tables.speeds(results):
        yield _Folded("Speed", shown.title, "speeds", shown)
    for title, kind, shown in (
        ("Errors", "errors", tables.errors(results)),
        ("Decoding", "decoding", tables.decoding(results)),
    ):
        if shown.groups:
            yield _Folded(title, "", kind, shown)
