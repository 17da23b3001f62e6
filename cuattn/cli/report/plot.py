"""The figures of a report as a picture; the only module that needs matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArgumentError, UnsupportedError
from ...reference.attribute import SOURCES
from .measured import Measured

__all__ = ["check", "draw"]

FORMATS = (".png", ".svg", ".pdf")

# Share of the room between two groups over which their dots are spread.
SPREAD = 0.5


def check(path: Path) -> None:
    """Raise what would keep `draw` from writing there, before any long work.

    Raises
    ------
    ArgumentError
        If the file's name does not end in a format.
    UnsupportedError
        If matplotlib is not installed.
    """
    if path.suffix not in FORMATS:
        raise ArgumentError("--plot", str(path), f"a file that ends in one of {FORMATS}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError("--plot needs matplotlib: pip install matplotlib")


def draw(measured: list[Measured], path: Path) -> None:
    """Draw relative L1 errors by input and scheme, and by scheme and source if there are any."""
    from matplotlib.figure import Figure

    names = [report.scheme.name for report in measured[0].reports]
    by_source = all(report.by_source for m in measured for report in m.reports)
    panels = 1 + by_source
    figure = Figure(figsize=(6.4 * panels, 4.8), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    errors = np.array([[100 * r.metrics["relative_l1"] for r in m.reports] for m in measured])
    _dots(axes[0], errors, [m.input.name for m in measured], names)
    axes[0].set_title("error against float64")
    if by_source:
        _dots(axes[1], _source_means(measured), names, [s.upper() for s in SOURCES])
        axes[1].set_title("with one step quantized" + (", mean of inputs" * (len(measured) > 1)))
    figure.savefig(path, dpi=150)


def _source_means(measured: list[Measured]) -> Any:
    """Relative L1 in percent [scheme, source]."""
    return np.mean(
        [
            [[100 * (r.by_source or {})[s]["relative_l1"] for s in SOURCES] for r in m.reports]
            for m in measured
        ],
        axis=0,
    )


def _dots(axes: Any, heights: Any, groups: list[str], series: list[str]) -> None:
    """Draw `heights` [group, series] on a logarithmic scale, which has no place for a zero."""
    from matplotlib.ticker import LogLocator

    for i, name in enumerate(series):
        offset = SPREAD * ((i + 0.5) / len(series) - 0.5)
        axes.plot(np.arange(len(groups)) + offset, heights[:, i], "o", label=name)
    if (heights > 0).any():
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("relative L1 error, %")
    axes.set_xticks(np.arange(len(groups)), groups, rotation=20)
    axes.grid(axis="y", which="both", alpha=0.3)
    axes.legend(fontsize="small")
