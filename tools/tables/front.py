"""Speed beside error: the presets that matter, and who is on the front."""

from __future__ import annotations

from tools.tables.names import ABOUT, BASELINES, EVERYTHING, NAMES, SHORT, SUMMARY
from tools.tables.record_figures import NONE, Figures, pair, percent, show, table

# Where speed is set against error: D, and these N.
PARETO = (128, (16384, 4096))
# Errors that differ by less are as good as each other.
SAME = 1.01


def summary(f: Figures) -> str:
    """Return README.md's table: when to take which scheme, its errors, and its speed.

    A baseline has a row if there are figures of it.
    """
    head_dim, lengths = PARETO
    rows = []
    for name, use in SUMMARY.items():
        errors = [f.error(name, distribution) for distribution in ("normal", "sinks")]
        speeds = [f.tops(name, head_dim, seqlen) for seqlen in reversed(lengths)]
        figures = [*map(percent, errors), *map(pair, speeds)]
        if name in ABOUT or any(figure != NONE for figure in figures):
            rows.append([SHORT.get(name, NAMES[name]), use, *figures])
    speeds = [f"TOPS, N = {seqlen}" for seqlen in reversed(lengths)]
    return table(["", "when", "error %, N(0,1)", "sinks", *speeds], rows, left=2)


def presets(f: Figures) -> str:
    """Return a row for each of the main presets, and for each baseline of which there are figures.

    A row says what it is, its errors and its speed.
    """
    rows = [[NAMES[name], about, *_figures(f, name)] for name, about in ABOUT.items()]
    for name, title in BASELINES.items():
        figures = _figures(f, name)
        if any(figure != NONE for figure in figures):
            library, _, what = title.partition(", ")
            rows.append([library, what, *figures])
    header = ["preset or library", "method", "error %, N(0,1)", "outliers", "TOPS, D 64", "D 128"]
    return table(header, rows, left=2)


def _figures(f: Figures, name: str) -> list[str]:
    errors = (f.error(name, distribution) for distribution in ("normal", "outliers"))
    speeds = (f.tops(name, head_dim) for head_dim in (64, 128))
    return [*map(percent, errors), *map(pair, speeds)]


def pareto(f: Figures) -> str:
    """Return speed beside error, and what is beaten in both: one table for each length."""
    head_dim, lengths = PARETO
    return "\n\n".join(_pareto(f, head_dim, seqlen) for seqlen in lengths)


def _pareto(f: Figures, head_dim: int, seqlen: int) -> str:
    tops: dict[str, float] = {}
    errors: dict[str, tuple[float, float]] = {}
    for name in EVERYTHING:
        speed = f.tops(name, head_dim, seqlen)[0]
        normal, sharp = (f.error(name, x, head_dim, seqlen) for x in ("normal", "sharp"))
        if speed is not None and normal is not None and sharp is not None:
            tops[name], errors[name] = speed, (normal, sharp)
    rows = []
    for name in sorted(tops, key=lambda name: -tops[name]):
        better = [
            other
            for other in tops
            if tops[other] > tops[name]
            and all(a <= SAME * b for a, b in zip(errors[other], errors[name], strict=True))
        ]
        fastest = max(better, key=lambda other: tops[other], default=None)
        front = "on the front" if fastest is None else f"beaten by {EVERYTHING[fastest]}"
        rows.append([EVERYTHING[name], front, show(tops[name]), *map(percent, errors[name])])
    header = [f"D {head_dim}, N {seqlen}", "speed and errors", "TOPS, kernel", "error %, N(0,1)"]
    return table([*header, "sharp"], rows, left=2)
