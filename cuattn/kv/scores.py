"""What `KVCache.attend` is told of logits: the options besides `is_causal`, each for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from ..arrays.view import Array
from ..errors import ArgumentError
from ..operands.operand import DTYPES, check_alignment
from ..operands.score_arrays import SCORE_NAMES, ScoreName
from ..specs.mods import ModSource

__all__ = [
    "NO_ARRAYS",
    "PLAIN",
    "SCORE_AXES",
    "Extra",
    "Features",
    "ScoreArrays",
    "Strided",
    "checked_mask",
    "checked_sinks",
    "checked_slopes",
]

# What they have one element or more for, as kernels name it.
SCORE_AXES: dict[ScoreName, tuple[str, ...]] = {
    "sinks": ("head",),
    "alibi_slopes": ("batch", "head"),
    "attn_mask": ("batch", "head", "row", "column"),
}


class Extra(Enum):
    """Elements of an array of the caller's that a kernel reads if there is one."""

    none = "none"
    boolean = "boolean"
    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


_EXTRAS = {
    "bool": Extra.boolean,
    "float16": Extra.fp16,
    "bfloat16": Extra.bf16,
    "float32": Extra.fp32,
}


class Features(NamedTuple):
    """What a kernel is made for besides a causal mask; nothing by default.

    Attributes
    ----------
    window : bool
        Rows see a part of the tokens beside their own.
    softcap : bool
    sinks, alibi_slopes, attn_mask : Extra
    batch_invariant : bool
        Not of logits, but of the order of sums: a head's parts depend on its own length only.
    rope : bool
        Not of logits either: queries turn by their positions first.
    score_mod, mask_mod : ModSource or None
        The caller's own expressions.
    """

    window: bool = False
    softcap: bool = False
    sinks: Extra = Extra.none
    alibi_slopes: Extra = Extra.none
    attn_mask: Extra = Extra.none
    batch_invariant: bool = False
    rope: bool = False
    score_mod: ModSource | None = None
    mask_mod: ModSource | None = None


PLAIN = Features()


class ScoreArrays(NamedTuple):
    """What the arrays among a call's options are; None of those that it has not.

    `mods` are those of expressions, in the order of `Mods.labels`.
    """

    sinks: Array | None = None
    alibi_slopes: Array | None = None
    attn_mask: Array | None = None
    mods: tuple[Array, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Array]) -> ScoreArrays:
        """Take arrays by their names, or, of expressions, labels."""
        named: dict[str, Any] = {name: given[name] for name in SCORE_NAMES if name in given}
        return cls(**named, mods=tuple(x for name, x in given.items() if name not in SCORE_NAMES))

    def given(self, labels: tuple[str, ...]) -> dict[str, Array]:
        """Return those that there are, as `of` takes them."""
        of_options = zip(SCORE_NAMES, self, strict=False)
        found = {name: x for name, x in of_options if isinstance(x, Array)}
        return found | dict(zip(labels, self.mods, strict=True))


NO_ARRAYS = ScoreArrays()


@dataclass(frozen=True)
class Strided:
    """How a kernel reads one of them.

    Attributes
    ----------
    dtype : Extra
    strides : tuple of int
        In elements, along `SCORE_AXES`; 0 where it has one element for all.
    """

    dtype: Extra
    strides: tuple[int, ...]


def checked_sinks(x: Array, heads: int) -> Strided:
    """Return how sinks [num_q_heads] are read.

    Raises
    ------
    ArgumentError
        For another shape, or a type that no kernel reads.
    """
    if x.shape != (heads,):
        raise ArgumentError("sinks.shape", x.shape, f"({heads},), one for each query head")
    return _strided("sinks", x)


def checked_slopes(x: Array, batch: int, heads: int) -> Strided:
    """Return how slopes [num_q_heads] or [batch, num_q_heads] are read.

    Raises
    ------
    ArgumentError
        As `checked_sinks`.
    """
    shape = (batch, heads)
    if x.shape not in ((heads,), shape):
        expected = f"({heads},) or {shape}: [num_q_heads] or [batch, num_q_heads]"
        raise ArgumentError("alibi_slopes.shape", x.shape, expected)
    return _strided("alibi_slopes", x)


def checked_mask(x: Array, shape: tuple[int, int, int], capacity: int) -> Strided:
    """Return how a mask is read that broadcasts to [batch, num_q_heads, seqlen_q, column].

    Parameters
    ----------
    x : Array
        Its last axis is of a sequence's last tokens.
    shape : tuple of int
        [batch, num_q_heads, seqlen_q]
    capacity : int
        Most tokens of a sequence.

    Raises
    ------
    ArgumentError
        As `checked_sinks`.
    """
    *axes, columns = x.shape or (capacity + 1,)
    pairs = zip(reversed(axes), reversed(shape), strict=False)
    fits = len(axes) <= len(shape) and all(n in (1, wanted) for n, wanted in pairs)
    if not fits or columns > capacity:
        expected = (
            f"one that broadcasts to ({', '.join(map(str, shape))}, n), which is [batch, "
            f"num_q_heads, seqlen_q, last n tokens]; n is at most {capacity}, the capacity"
        )
        raise ArgumentError("attn_mask.shape", x.shape, expected)
    return _strided("attn_mask", x)


def _strided(name: ScoreName, x: Array) -> Strided:
    allowed = [*DTYPES, "bool"] if name == "attn_mask" else [*DTYPES]
    if x.dtype not in allowed:
        raise ArgumentError(f"{name}.dtype", x.dtype, f"one of {allowed}")
    if x.dtype in DTYPES:
        check_alignment(name, x)
    steps = [step if n > 1 else 0 for n, step in zip(x.shape, x.strides, strict=True)]
    missing = len(SCORE_AXES[name]) - len(steps)
    return Strided(_EXTRAS[x.dtype], (*[0] * missing, *steps))
