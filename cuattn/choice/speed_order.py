"""The order of the presets by speed, for where no time can be taken."""

from __future__ import annotations

from ..presets import PRESETS
from ..scheme import Scheme

__all__ = ["SPEED_ORDER", "speed_rank"]

# From fastest to slowest: calls with 4096 tokens and 128 channels on an H200, quantization
# included.
SPEED_ORDER = (
    "int8-fast",
    "int8-fp8",
    "int8-block",
    "fp8",
    "sage-vb",
    "fp16",
    "int-flash-half",
    "int8",
    "int8-fp16",
    "sage-b",
    "sage-t",
    "int4",
    "int-flash-int4",
    "int-flash",
    "sage-vt",
    "sage2-8",
    "sage2-4",
    "int-flash-rotated",
    "int4-fp16",
    "twin",
    "int8-two-term",
)
_RANKS = {PRESETS[name]: rank for rank, name in enumerate(SPEED_ORDER)}


def speed_rank(scheme: Scheme) -> int:
    """Return a preset's place, 0 for the fastest; schemes that are not presets come after all."""
    return _RANKS.get(scheme, len(_RANKS))
