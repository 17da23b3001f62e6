"""``cuattn report --html``: what was measured, as a page with pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from ...reference.arrays import Progress
from ...reference.p_rounding import PRounding, look_at_p
from ..pages.figures import style
from ..pages.page import Card, render
from ..table import Group, Table
from . import codes, overview, row_errors
from .measured import Measured, across_inputs, tables
from .sample import Sample
from .sweep import Sweep

__all__ = ["page"]

# So many schemes of inputs are drawn one by one if nothing is said: half a minute, 4 MB.
CLOSE_UPS = 42

Task = Callable[[str], Progress]


@dataclass(frozen=True)
class _Scheme:
    """A scheme on an input, by itself."""

    name: str
    error: float
    cards: list[Card]
    p: PRounding


@dataclass(frozen=True)
class _Section:
    """An input on the page.

    Attributes
    ----------
    anchor, title, heading : str
        The name in links, and the line above it all.
    cards : list of Card
        Pictures that compare the schemes.
    tables : dict of str to Table
        By the names by which the template has texts for them.
    is_closer : bool
        Whether each scheme is to be shown by itself.
    closer_ones : str
        Which inputs have that, with a verb.
    schemes : list of _Scheme
    sample : str
        Which heads and rows they are of.
    """

    anchor: str
    title: str
    heading: str
    cards: list[Card]
    tables: dict[str, Table]
    is_closer: bool
    closer_ones: str
    schemes: list[_Scheme] = field(default_factory=list)
    sample: str = ""

    @property
    def lost(self) -> Table | None:
        """Return what P lost in each scheme, where that was looked at."""
        if not self.schemes:
            return None
        rows = [(x.name, [100 * x.p.zero_share, 100 * x.p.lost]) for x in self.schemes]
        return Table(["zeros %", "weight in them %"], [Group("", rows)])


@dataclass(frozen=True)
class _Swept:
    """A sweep on the page."""

    anchor: str
    title: str
    cards: list[Card]
    table: Table


def page(
    measured: Sequence[Measured],
    swept: Sequence[Sweep],
    headline: str,
    close_ups: int | None,
    task: Task,
) -> str:
    """Return the page.

    Parameters
    ----------
    measured : sequence of Measured
    swept : sequence of Sweep
    headline : str
        Which attention, and where.
    close_ups : int or None
        Of the first so many inputs each scheme is drawn by itself; None: as many as make
        `CLOSE_UPS` schemes, at least one.
    task : callable
        From a name to a callback of progress.
    """
    if close_ups is None:
        schemes = max((len(m.reports) for m in measured), default=0)
        close_ups = max(CLOSE_UPS // max(schemes, 1), 1)
    with style():
        inputs = [_section(m, i, close_ups, task) for i, m in enumerate(measured)]
        sweeps = [
            _Swept(
                f"sweep-{i}",
                f"Error against {sweep.axis.label}",
                list(overview.of_sweep(sweep, f"w{i}")),
                sweep.table(),
            )
            for i, sweep in enumerate(swept)
        ]
    return render(
        "report.html.jinja",
        subtitle=[headline],
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        overview=across_inputs(measured) if len(measured) > 1 else None,
        inputs=inputs,
        sweeps=sweeps,
    )


def _section(m: Measured, i: int, close_ups: int, task: Task) -> _Section:
    who = {0: "No input has", 1: "Only the first input has"}
    found = _Section(
        anchor=f"input-{i}",
        title=m.input.name,
        heading=m.input.title,
        cards=list(overview.of_input(m, f"i{i}")) if m.reports else [],
        tables={name: _untitled(shown) for name, shown in tables([m]).items()},
        is_closer=i < close_ups,
        closer_ones=who.get(close_ups, f"Only the first {close_ups} inputs have"),
    )
    sample = Sample.of(m.input)
    if not found.is_closer or not sample:
        return found
    schemes = [_scheme(m, j, sample, f"i{i}s{j}", task) for j in range(len(m.reports))]
    return replace(found, schemes=schemes, sample=str(sample))


def _untitled(shown: Table) -> Table:
    """Leave out the title of the input, which is that of the section."""
    return replace(shown, groups=[replace(group, title="") for group in shown.groups])


def _scheme(m: Measured, j: int, sample: Sample, prefix: str, task: Task) -> _Scheme:
    report = m.reports[j]
    scheme = report.scheme
    progress = task(f"{m.input.name}, {scheme.name}, pictures")
    ops = sample.operands(scheme)
    p = look_at_p(ops, scheme, sample.rows, **m.input.options, progress=progress)
    shown = [codes.draw_qkv(ops, scheme, sample, f"{prefix}-qkv")]
    if report.by_row is not None:
        shown.insert(0, row_errors.draw(report.by_row, f"{prefix}-rows"))
    shown += codes.draw_p(p, scheme, ops.compute, sample, f"{prefix}-p")
    cards = [card for card in shown if card is not None]
    return _Scheme(scheme.name, 100 * report.metrics["relative_l1"], cards, p)
