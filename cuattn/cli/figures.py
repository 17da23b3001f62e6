"""Matplotlib's figures as SVG for a page, in the page's colours."""

from __future__ import annotations

import importlib.util
import io
import re
from contextlib import AbstractContextManager
from typing import Any

from ..errors import UnsupportedError

__all__ = [
    "FAINT",
    "HEAT",
    "INK",
    "SERIES",
    "canvas",
    "color_bar",
    "needs_matplotlib",
    "scale",
    "style",
    "svg",
]

# Stand for variables of the page's style, so that a picture follows a change of theme.
INK, FAINT = "#010203", "#040506"
SERIES = [f"#0a0b{i:02x}" for i in range(8)]
VARIABLES = {INK: "ink-2", FAINT: "line", **{color: f"s{i}" for i, color in enumerate(SERIES)}}

HEAT = "viridis"  # its darkest and its lightest tone are visible on black and on white

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


def needs_matplotlib(option: str) -> None:
    """Raise if an option's pictures cannot be drawn, before any long work.

    Raises
    ------
    UnsupportedError
        If matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError(f"{option} needs matplotlib: pip install matplotlib")


def style() -> AbstractContextManager[None]:
    """Return the context in which pictures are to be drawn and turned into SVG."""
    import matplotlib as mpl

    context: AbstractContextManager[None] = mpl.rc_context(STYLE)
    return context


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
    """Make an axis logarithmic, if that can be, and its numbers plain."""
    if log:
        from matplotlib.ticker import LogLocator, NullFormatter

        axis._set_axes_scale("log")
        axis.set_major_locator(LogLocator(subs=(1,), numticks=12))
        axis.set_minor_locator(LogLocator(subs=(2, 5), numticks=12))
        axis.set_minor_formatter(NullFormatter())
        axis.grid(which="minor", color=FAINT, linewidth=0.3)
    axis.set_major_formatter("{x:g}")


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
