"""What the papers' own tables are of: schemes, inputs and shapes, all measured on the GPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from cuattn.bench.cases import Case
from cuattn.bench.errors import Point
from cuattn.presets import PRESETS
from cuattn.reference.distributions import DISTRIBUTIONS
from cuattn.scheme import Scheme


@dataclass(frozen=True)
class Table:
    """One table: every scheme on every distribution and case.

    Attributes
    ----------
    rows : dict of str to Scheme
        By what the paper calls them.
    distributions : tuple of str
    cases : tuple of Case
    """

    rows: dict[str, Scheme]
    distributions: tuple[str, ...]
    cases: tuple[Case, ...]


def _changed(preset: str, name: str, **changes: Any) -> Scheme:
    return replace(PRESETS[preset], name=f"{preset} {name}", **changes)


def _presets(*names: str) -> dict[str, Scheme]:
    return {name: PRESETS[name] for name in names}


def _case(seqlen: int, head_dim: int) -> Case:
    # Errors do not depend on the number of heads, so a few will do.
    return Case.square(1, 4, seqlen, head_dim, False)


USUAL = (_case(4096, 128),)

# The paper's heads have 64 channels (its benchmark.py), and these are its lengths.
INT_FLASH = Table(
    _presets("fp8", "int-flash-half", "int-flash", "int-flash-int4", "int-flash-rotated", "int8"),
    ("normal", "uniform"),
    tuple(_case(seqlen, 64) for seqlen in (1024, 2048, 4096, 8192, 16384)),
)

SAGE = Table(
    _presets("sage-t", "sage-b", "sage-vt", "sage-vb"),
    ("normal",),
    tuple(_case(seqlen, head_dim) for head_dim in (64, 128) for seqlen in (1024, 4096)),
)

# SageAttention2's tables of Q Kᵀ in INT4. P V is in float16, so that nothing else has an error.
_INT4 = "int4-fp16"
_WITH_OUTLIERS = ("common-mean", "channel-outliers", "outliers", "normal")

GRANULARITY = Table(
    {
        "token": PRESETS[_INT4],
        "thread": _changed(_INT4, "thread", q_scope="thread", k_scope="thread"),
        "block": _changed(_INT4, "block", q_scope="block", k_scope="block"),
        # Ranges of whole heads are those of the input: Q cannot be smoothed.
        "tensor": _changed(
            _INT4, "tensor", q_scope="tensor", k_scope="tensor", smooth_q="none", smooth_k="mean"
        ),
        "32 channels of a token": _changed(
            _INT4, "group", q_scope="group", k_scope="group", qk_group=32
        ),
    },
    _WITH_OUTLIERS,
    USUAL,
)

_PLAIN = {"smooth_q": "none", "smooth_k": "none"}
SMOOTHING = Table(
    {
        "none": _changed(_INT4, "unsmoothed", **_PLAIN),
        "Hadamard": _changed(_INT4, "rotated only", **_PLAIN, rotate="qk"),
        "K": _changed(_INT4, "smooth k", smooth_q="none"),
        "Q": _changed(_INT4, "smooth q", smooth_k="none"),
        "Q + K": PRESETS[_INT4],
        "Hadamard, Q + K": _changed(_INT4, "rotated", rotate="qk"),
    },
    _WITH_OUTLIERS,
    USUAL,
)

ROTATION = Table(
    {
        "`int8`, nothing": _changed("int8", "plain", rotate="none"),
        "`int8`, Q and K": PRESETS["int8"],
        # Keys are sorted by a V that the same launch reads, so not where V is rotated first.
        "`int8-token`, Q and K": _changed("int8-token", "scores rotated", rotate="qk"),
        "`int8-token`, V too": _changed("int8-token", "rotated", rotate="qkv"),
        "`int4`, nothing": _changed("int4", "plain", rotate="none"),
        "`int4`, Q and K": PRESETS["int4"],
        "`int4`, V too": _changed("int4", "rotated", rotate="qkv"),
    },
    tuple(DISTRIBUTIONS),
    USUAL,
)

_SPLIT = PRESETS["twin"].p_split
TWIN = Table(
    {
        **{
            f"twin, split at 2^-{m}": PRESETS["twin"]
            if m == _SPLIT
            else _changed("twin", str(m), p_split=m)
            for m in range(2, 11)
        },
        "255 steps of the running maximum": _changed("twin", "row", p_range="row"),
        "two terms (`int8-two-term`)": PRESETS["int8-two-term"],
    },
    ("normal", "sharp"),
    USUAL,
)

TABLES = (INT_FLASH, SAGE, GRANULARITY, SMOOTHING, ROTATION, TWIN)


def points(tables: Iterable[Table] = TABLES) -> dict[Point, list[Scheme]]:
    """Return the schemes of all tables by the input that they are measured on, each once."""
    found: dict[Point, dict[str, Scheme]] = {}
    for table in tables:
        for case in table.cases:
            for distribution in table.distributions:
                here = found.setdefault((case, distribution), {})
                here |= {scheme.name: scheme for scheme in table.rows.values()}
    return {point: list(schemes.values()) for point, schemes in found.items()}
