"""The arrays among a call's options: their names, and the order of their addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from ..arrays.view import Array
from ..specs.mods import MOST
from .lengths import LENGTH_NAMES
from .masks import MaskBlocks

__all__ = [
    "MOD_NAMES",
    "NO_ARRAYS",
    "OPTION_NAMES",
    "SCORE_NAMES",
    "ScoreArrays",
    "ScoreName",
    "addresses_in_order",
]

ScoreName: TypeAlias = Literal["sinks", "alibi_slopes", "attn_mask"]
SCORE_NAMES: tuple[ScoreName, ...] = get_args(ScoreName)
# The arrays among a call's options, in the order of their addresses in `GIVEN`; after them those of
# its expressions.
OPTION_NAMES: tuple[str, ...] = (*LENGTH_NAMES, *SCORE_NAMES)
MOD_NAMES = tuple(f"mod_{i}" for i in range(MOST))


class ScoreArrays(NamedTuple):
    """What the arrays of a call's options of scores are; None of those that it has not.

    `mods` are those of expressions, in the order of `Mods.labels`.
    """

    sinks: Array | None = None
    alibi_slopes: Array | None = None
    attn_mask: Array | MaskBlocks | None = None
    mods: tuple[Array, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ScoreArrays:
        """Take arrays by their names, or, of expressions, labels."""
        named: dict[str, Any] = {name: given[name] for name in SCORE_NAMES if name in given}
        return cls(**named, mods=tuple(x for name, x in given.items() if name not in OPTION_NAMES))


NO_ARRAYS = ScoreArrays()


def addresses_in_order(given: Mapping[str, int]) -> tuple[int, ...]:
    """Return addresses of a call's arrays by their names, or labels, in the order of `GIVEN`."""
    named = [given.get(name, 0) for name in OPTION_NAMES]
    of_mods = [address for name, address in given.items() if name not in OPTION_NAMES]
    return (*named, *of_mods, *[0] * (MOST - len(of_mods)))
