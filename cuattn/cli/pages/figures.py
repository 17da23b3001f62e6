"""Matplotlib's figures as SVG for a page, in the page's colours."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "FAINT",
    "HEAT",
    "INK",
    "SERIES",
    "canvas",
    "color_bar",
    "plain_text",
    "scale",
    "style",
    "svg",
]

# Stand for variables of the page's style, so that a picture follows a change of theme.
INK, FAINT = "#010203", "#040506"
SERIES = [f"#0a0b{i:02x}" for i in range(8)]
VARIABLES = {INK: "ink-2", FAINT: "line", **{color: f"s{i}" for i, color in enumerate(SERIES)}}

HEAT = "viridis"  # its darkest and its lightest tone are visible on black and on white

# A logarithmic axis whose ends differ by less has too few powers of ten for all of its numbers.
SHORT = 100

# A hundredth of a point is enough.
COORDINATE = re.compile(r"(\d\.\d\d)\d+")

# Of a figure, in inches; a point is 1.3 pixels of a card that is 440 wide.
WIDTH = 4.6

STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "cuattn",
    "font.sans-serif": ["DejaVu Sans"],  # only measured with; the page has its own
    "font.size": 8.5,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.constrained_layout.use": True,
}


@contextmanager
def plain_text() -> Iterator[None]:
    """Within, names in pictures are no formulas, and may have letters that a font lacks."""
    import matplotlib as mpl

    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@contextmanager
def style() -> Iterator[None]:
    """Within, pictures are to be drawn and turned into SVG."""
    import matplotlib as mpl

    with plain_text(), mpl.rc_context(STYLE):
        yield


def canvas(height: float, *shape: int, **options: Any) -> tuple[Any, Any]:
    """Return a figure, `height` inches high, and its axes as `Figure.subplots` returns them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots(*shape, **options)


def color_bar(figure: Any, image: Any, **options: Any) -> Any:
    """Add the scale of an image's colours; options are those of `Figure.colorbar`."""
    colors = figure.colorbar(image, **options)
    colors.outline.set_visible(False)
    colors.minorticks_off()
    colors.ax.tick_params(labelsize=7.5)
    return colors


def scale(axis: Any, *, log: bool) -> None:
    """Make an axis logarithmic, if that can be, its numbers plain, and two of them at least.

    Called once all is drawn: the limits move outwards to numbers that are written.
    """
    if log:
        from matplotlib.ticker import LogLocator, NullFormatter

        axis._set_axes_scale("log")
        low, high = sorted(axis.get_view_interval())
        is_short = high < SHORT * low
        if is_short:
            low, high = _round_down(low), _round_up(high)
            axis._set_lim(low, high, auto=False)
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_short else (1,), numticks=12))
        axis.set_minor_locator(LogLocator(subs=(2, 5), numticks=12))
        axis.set_minor_formatter(NullFormatter())
        axis.grid(which="minor", color=FAINT, linewidth=0.3)
    axis.set_major_formatter("{x:g}")


def _round_down(x: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not larger."""
    power = 10.0 ** math.floor(math.log10(x))
    return next(n * power for n in (5, 2, 1) if n * power <= x * (1 + 1e-9))


def _round_up(x: float) -> float:
    """Return the least of 1, 2 and 5 times a power of ten that is not smaller."""
    power = 10.0 ** math.floor(math.log10(x))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= x * (1 - 1e-9))


def svg(figure: Any, prefix: str) -> str:
    """Return a figure as an element of HTML.

    Parameters
    ----------
    figure : Figure
    prefix : str
        Begins the names inside, which must differ from those of the page's other pictures.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # HTML needs no namespaces, and the page has a style and sizes of its own; the view box stays.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    head, _, body = text.partition(">")
    text = re.sub(r' (width|height|version)="[^"]*"', "", head) + ">" + body
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r' d="[^"]*"', lambda path: COORDINATE.sub(r"\1", path[0]), text)
    for color, name in VARIABLES.items():
        text = text.replace(color, f"var(--{name})")
    return re.sub(r"\s*\n\s*", " ", text)
