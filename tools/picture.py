"""The picture of README.md: error against speed, ours and others', drawn from the record as SVG.

The file has colours for light and for dark, each with a background of its own, so that it can be
read wherever it is shown. No plotting library draws it, because a test compares it with the
record: the same record has to give the same bytes everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from tools.tables.front import SAME
from tools.tables.names import ABOUT, SHORT
from tools.tables.record_figures import Figures

HEAD_DIM, LENGTHS = 128, (4096, 16384)
# Presets with a label; the others are small dots.
LABELLED = ("int8-fast", "int8-block", "int8", "fp16")
# Pixels: the whole, and of each of the two panels its left edge, width, top and height.
WIDTH, HEIGHT = 900, 440
LEFT, PANEL, GAP, TOP, TALL = 62, 396, 22, 84, 268
Y_TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10)
X_FROM, X_STEP = 200, 200
# Of a label: pixels of a letter, and of a line.
LETTER, LINE = 6.3, 14

STYLE = """
text { font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #24292f }
.card { fill: #ffffff; stroke: #d0d7de } .grid { stroke: #e4e8ec } .quiet { fill: #57606a }
.title { font-size: 15px; font-weight: 600 } .head { font-weight: 600 }
.ours { fill: #0969da } .theirs { fill: #ffffff; stroke: #bc4c00; stroke-width: 2 }
.named { paint-order: stroke; stroke: #ffffff; stroke-width: 4; stroke-linejoin: round }
.named-ours { fill: #0550ae; font-weight: 600 } .named-theirs { fill: #953800 }
.front { fill: none; stroke: #57606a; stroke-width: 1.3; stroke-dasharray: 5 4 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .card { fill: #0d1117; stroke: #30363d } .grid { stroke: #21262d }
.quiet { fill: #9198a1 } .ours { fill: #58a6ff } .theirs { fill: #0d1117; stroke: #f0883e }
.named { stroke: #0d1117 } .named-ours { fill: #79c0ff } .named-theirs { fill: #ffa657 }
.front { stroke: #9198a1 }
}"""


@dataclass(frozen=True)
class Point:
    """A kernel at one length: TOPS and relative L1 error in %."""

    name: str
    tops: float
    error: float

    @property
    def ours(self) -> bool:
        """Whether it is a preset."""
        return self.name in ABOUT

    @property
    def label(self) -> str:
        """Return what stands beside it; empty for presets that are small dots."""
        if self.ours:
            return self.name if self.name in LABELLED else ""
        return SHORT[self.name]


def picture(f: Figures) -> str:
    """Return the SVG: a panel for each of `LENGTHS`."""
    panels = [points(f, seqlen) for seqlen in LENGTHS]
    fastest = max((p.tops for panel in panels for p in panel), default=X_STEP)
    most = X_STEP * math.ceil((fastest + 40) / X_STEP)
    shape = f"4 sequences × 32 heads of {HEAD_DIM} channels, no mask"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>Error against speed of attention on one {escape(f.record.gpu)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
        _text(20, 28, f"Error against speed on one {f.record.gpu}", "title"),
        _text(20, 47, f"{shape}; kernel only, single calls from a cold L2 cache", "quiet"),
        *_legend(),
        _text(20, TOP - 10, "error, %", "quiet"),
    ]
    for i, panel in enumerate(panels):
        parts += _Axes(LEFT + i * (PANEL + GAP), most).drawn(panel, f"{LENGTHS[i]} tokens", i == 0)
    speed = "speed, TOPS (10¹² operations a second)"
    parts.append(_text(WIDTH / 2, TOP + TALL + 38, speed, "quiet", "middle"))
    said = "Relative L1 error against float64 on N(0,1) inputs. Best is the lower right corner."
    parts.append(_text(20, HEIGHT - 16, said, "quiet"))
    return "\n".join([*parts, "</svg>", ""])


def points(f: Figures, seqlen: int) -> list[Point]:
    """Return what was measured at a length, the labelled first."""
    found = []
    for name in (*LABELLED, *SHORT, *(name for name in ABOUT if name not in LABELLED)):
        tops, error = f.tops(name, HEAD_DIM, seqlen)[0], f.error(name, "normal", HEAD_DIM, seqlen)
        if tops and error:
            found.append(Point(name, tops, 100 * error))
    return found


def front(panel: list[Point]) -> list[Point]:
    """Return the points that nothing beats in both, the fastest first."""
    best: list[Point] = []
    for p in sorted(panel, key=lambda p: (-p.tops, p.error)):
        if not best or p.error * SAME < best[-1].error:
            best.append(p)
    return best


class _Axes:
    """One panel: where a figure lies in the picture, and what is drawn there."""

    def __init__(self, left: float, most: float) -> None:
        self.left, self.most = left, most

    def x(self, tops: float) -> float:
        return self.left + PANEL * (tops - X_FROM) / (self.most - X_FROM)

    def y(self, error: float) -> float:
        low, high = (math.log(Y_TICKS[i]) for i in (0, -1))
        return TOP + TALL * (high - math.log(error)) / (high - low)

    def drawn(self, panel: list[Point], title: str, first: bool) -> list[str]:
        right, low = self.left + PANEL, TOP + TALL
        parts = []
        for tick in Y_TICKS:
            parts.append(_line(self.left, self.y(tick), right, self.y(tick)))
            if first:
                parts.append(_text(self.left - 8, self.y(tick) + 4, f"{tick:g}", "quiet", "end"))
        for tick in range(X_FROM, round(self.most) + 1, X_STEP):
            parts.append(_line(self.x(tick), TOP, self.x(tick), low))
            if tick < self.most:  # the next panel begins there
                parts.append(_text(self.x(tick), low + 17, str(tick), "quiet", "middle"))
        parts.append(_text(right, TOP - 10, title, "head", "end"))
        parts.append(self._front(panel))
        return parts + self._marks(panel) + self._labels(panel)

    def _corners(self, panel: list[Point]) -> list[tuple[float, float]]:
        """Return the corners of the border of what something beats, from the upper edge on."""
        best = front(panel)
        if not best:
            return []
        corners = [(self.x(best[0].tops), float(TOP))]
        for p in best:
            corners += [(self.x(p.tops), corners[-1][1]), (self.x(p.tops), self.y(p.error))]
        return [*corners, (self.left, corners[-1][1])]

    def _front(self, panel: list[Point]) -> str:
        path = " L ".join(f"{x:.1f} {y:.1f}" for x, y in self._corners(panel))
        return f'<path class="front" d="M {path}"/>' if path else ""

    def _marks(self, panel: list[Point]) -> list[str]:
        marks = []
        for p in reversed(panel):
            x, y = self.x(p.tops), self.y(p.error)
            if p.ours:
                radius = 5.5 if p.label else 3
                marks.append(f'<circle class="ours" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>')
            else:
                marks.append(_square(x, y))
        return marks

    def _labels(self, panel: list[Point]) -> list[str]:
        """Put each label where it hides nothing, to the right of its point if that is free."""
        taken = [(self.x(p.tops) - 6, self.y(p.error) - 6, 12.0, 12.0) for p in panel]
        corners = self._corners(panel)
        for (x, y), (to_x, to_y) in pairwise(corners):
            taken.append((min(x, to_x), min(y, to_y), abs(x - to_x) + 1, abs(y - to_y) + 1))
        labels = []
        for p in panel:
            if not p.label:
                continue
            x, y, wide = self.x(p.tops), self.y(p.error), LETTER * len(p.label)
            places = [
                (x + 10, y - LINE / 2),
                (x - 10 - wide, y - LINE / 2),
                *((x - wide / 2, y + dy) for dy in (8, -8 - LINE, 20, -20 - LINE)),
                *((x + dx, y + dy) for dy in (10, -10 - LINE) for dx in (0, -wide)),
            ]
            inside = [a for a in places if self.left < a[0] and a[0] + wide < self.left + PANEL]
            free = [a for a in inside if not any(_meet((*a, wide, LINE), b) for b in taken)]
            at = next(iter(free or inside or places))
            taken.append((*at, wide, LINE))
            kind = "named named-ours" if p.ours else "named named-theirs"
            labels.append(_text(at[0], at[1] + LINE - 3.5, p.label, kind))
        return labels


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))


def _legend() -> list[str]:
    x = WIDTH - 282
    return [
        f'<circle class="ours" cx="{x}" cy="24" r="5.5"/>',
        f'<circle class="ours" cx="{x + 14}" cy="24" r="3"/>',
        _text(x + 24, 28, "cuattn", "named-ours"),
        _square(x + 84, 24),
        _text(x + 96, 28, "others", "named-theirs"),
        f'<path class="front" d="M {x + 148} 24 h 26"/>',
        _text(x + 180, 28, "Pareto front", "quiet"),
    ]


def _square(x: float, y: float) -> str:
    return f'<rect class="theirs" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>'


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path class="grid" d="M {x:.1f} {y:.1f} L {to_x:.1f} {to_y:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {at}>{escape(text)}</text>'
