"""Errors of decoding from a cache of 8 and 4 bits against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cuattn
from cuattn.record import Accuracy

from . import exact
from .caches import FAMILY, SCHEMES
from .decode import decoding
from .gpu_memory import give_back
from .inputs import inputs

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
    for case, name in POINTS:
        q, k, v = inputs(case, name)
        wanted = exact.attention(q, k, v, is_causal=case.is_causal).get()
        for scheme, options in OPTIONS.items():
            cache = cuattn.KVCache(
                case.batch, case.num_kv_heads, case.head_dim, case.seqlen_kv, **options
            )
            cache.append(k, v)
            o = cache.attend(q, is_causal=case.is_causal)
            yield exact.errors(o, wanted, case, name, scheme, FAMILY)
        give_back()
