"""Tables of errors against float64: by distribution, by length, and in a real model."""

from __future__ import annotations

from cuattn.reference.distributions import DISTRIBUTIONS
from tools.tables.names import ABOUT, NAMES
from tools.tables.record_figures import (
    NOTHING,
    Figures,
    percent,
    shape_titles,
    show,
    table,
)


def accuracy(f: Figures) -> str:
    """Return the errors of the main presets and of baselines by distribution."""
    rows = []
    for name, title in NAMES.items():
        errors = [f.error(name, distribution) for distribution in DISTRIBUTIONS]
        if any(errors):
            rows.append([title, *map(percent, errors)])
    return table(["relative L1, %", *DISTRIBUTIONS], rows)


def lengths(f: Figures) -> str:
    """Return the errors of the main presets by length."""
    shapes = [(head_dim, seqlen) for head_dim in (64, 128) for seqlen in (1024, 4096, 16384)]
    rows = [
        [NAMES[name], *(percent(f.error(name, "normal", *shape)) for shape in shapes)]
        for name in ABOUT
    ]
    return table(["relative L1, %", *shape_titles(shapes)], rows)


def minilm(f: Figures) -> str:
    """Return the errors of the main presets inside MiniLM."""
    if not any(f.embedding(name) for name in ABOUT):
        return NOTHING
    rows = []
    for name in ABOUT:
        errors = [percent(f.layer(name, layer)) for layer in range(6)]
        rows.append([NAMES[name], *errors, show(f.embedding(name), ".1e")])
    layers = [f"layer {layer}" for layer in range(6)]
    return table(["relative L1, %", *layers, "embedding, 1 − cosine"], rows)
