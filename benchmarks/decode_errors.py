"""Errors of decoding from a cache of 8 and 4 bits against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cuattn.bench import errors
from cuattn.bench.caches import SCHEMES
from cuattn.bench.cases import decoding
from cuattn.records.record import Accuracy

# Heads enough to average over; a query of each is one row.
SHORT, LONG = (decoding(1, 4, tokens, num_q_heads=16) for tokens in (8192, 131072))
# What is drawn, and the case: only the plain one at the length that takes long to draw.
POINTS = ((SHORT, "normal"), (SHORT, "k-bias"), (SHORT, "peaked"), (LONG, "normal"))

OPTIONS: dict[str, dict[str, Any]] = {
    **SCHEMES,
    "kv-int4-g32-zero": {"bits": 4, "group": 32, "v_zero": True},
}


def accuracy() -> Iterator[Accuracy]:
    """Yield the errors of every format on every input."""
    for point in POINTS:
        yield from errors.of_caches(point, OPTIONS)
