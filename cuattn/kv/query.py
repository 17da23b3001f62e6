"""A query to a KV cache and the options of the call, checked before anything is planned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..arrays.view import Array
from ..errors import ArgumentError
from ..operands.mods import Mods, Number, mod_sources
from ..operands.operand import in_order, operand_of
from ..operands.problem import Options, Problem
from ..operands.scores import ALL_KEYS, UNLIMITED, checked_softcap
from ..specs.mods import ModSource
from .device import SCHEME
from .geometry import KVGeometry
from .scores import (
    NO_ARRAYS,
    SCORE_AXES,
    Extra,
    Features,
    ScoreArrays,
    Strided,
    checked_mask,
    checked_sinks,
    checked_slopes,
)

__all__ = ["Query", "QueryOptions", "Scores"]


class QueryOptions(NamedTuple):
    """The arguments of `KVCache.attend` that are not arrays, as the caller gave them.

    A window is an `operands.scores.checked_window`; `mods` are of expressions but their arrays.
    """

    scale: float | None
    is_causal: bool
    return_lse: bool
    layout: str
    window_size: tuple[int, int] = ALL_KEYS
    softcap: float = 0.0
    batch_invariant: bool = False
    mods: Mods | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """What errors call the arrays of expressions, in their order."""
        return () if self.mods is None else self.mods.labels


@dataclass(frozen=True)
class Scores:
    """What a call does to logits, and which tokens rows see.

    Attributes
    ----------
    window_size : tuple of int (left, right)
        -1 is no bound. A side that hides nothing, whatever the lengths of sequences, is -1, but for
        a right side of 0, which is that of `is_causal`.
    softcap : float
        0 if there is none.
    sinks, alibi_slopes, attn_mask : Strided, optional
    mask_columns : int
        Of a mask; the last one is of the last token of each sequence.
    score_mod, mask_mod : ModSource, optional
    mod_numbers : tuple of Number
        Of both.
    """

    window_size: tuple[int, int] = ALL_KEYS
    softcap: float = 0.0
    sinks: Strided | None = None
    alibi_slopes: Strided | None = None
    attn_mask: Strided | None = None
    mask_columns: int = 0
    score_mod: ModSource | None = None
    mask_mod: ModSource | None = None
    mod_numbers: tuple[Number, ...] = ()

    @property
    def is_causal(self) -> bool:
        """Whether no row sees tokens behind its own."""
        return self.window_size[1] == 0

    @property
    def features(self) -> Features:
        """What a kernel has to be made for."""
        arrays = (self.sinks, self.alibi_slopes, self.attn_mask)
        sinks, slopes, mask = (Extra.none if x is None else x.dtype for x in arrays)
        window = self.window_size not in (ALL_KEYS, (UNLIMITED, 0))
        return Features(
            window,
            self.softcap != 0,
            sinks,
            slopes,
            mask,
            score_mod=self.score_mod,
            mask_mod=self.mask_mod,
        )


@dataclass(frozen=True)
class Query:
    """A call of `KVCache.attend` whose arguments have been checked.

    Attributes
    ----------
    problem : Problem
        K and V of it have no tokens: nobody knows how many there are.
    scores : Scores
    capacity : int
        Most tokens of a sequence.
    """

    problem: Problem
    scores: Scores
    capacity: int

    @classmethod
    def of(
        cls,
        geometry: KVGeometry,
        q: Array,
        options: QueryOptions,
        arrays: ScoreArrays = NO_ARRAYS,
    ) -> Query:
        """Check everything but the output.

        Raises
        ------
        ArgumentError
            For a query that does not fit the cache, or options that make no sense.
        """
        operand = operand_of("q", q, SCHEME, options.layout)
        batch, heads, head_dim = geometry.batch, geometry.num_kv_heads, geometry.kv_format.head_dim
        if (operand.shape[0], operand.shape[3]) != (batch, head_dim):
            expected = f"of batch {batch} and head_dim {head_dim}, as the cache has it"
            raise ArgumentError("q.shape", q.shape, expected)
        cached = in_order((batch, heads, 0, head_dim), options.layout)
        stand_in = Array(cached, (0, 0, 0, 1), q.dtype, q.device)
        scale, is_causal, return_lse, layout = options[:4]
        of_problem = Options(SCHEME, scale, is_causal, return_lse, layout)
        problem = Problem.of(q, stand_in, stand_in, of_problem)
        scores = _scores(problem, geometry.capacity, options, arrays, q.device)
        return cls(problem, scores, geometry.capacity)

    def score_values(self) -> dict[str, Any]:
        """Return what DecodeParams in kernels_cu/kv/kv_params.cuh has of `scores`, no addresses.

        But what expressions name: `plan.score_rules.user_values`.
        """
        scores, seqlen_q = self.scores, self.problem.q.tokens
        left, right = scores.window_size
        values: dict[str, Any] = {
            "is_causal": int(scores.is_causal),
            # So many are all that there are.
            "window_left": self.capacity if left == UNLIMITED else left,
            "window_right": seqlen_q - 1 if right == UNLIMITED else right,
            "softcap": scores.softcap,
            "mask_columns": scores.mask_columns,
        }
        for name, axes in SCORE_AXES.items():
            x: Strided | None = getattr(scores, name)
            steps = (0,) * len(axes) if x is None else x.strides
            for axis, step in zip(axes, steps, strict=True):
                values[f"{name}_stride_{axis}"] = step
        return values


def _scores(
    problem: Problem,
    capacity: int,
    options: QueryOptions,
    arrays: ScoreArrays,
    device: tuple[int, int],
) -> Scores:
    batch, heads, seqlen_q, _ = problem.q.shape
    left, right = options.window_size
    if problem.is_causal:
        right = 0
    # The last row, at the last token, has the most before it; the first one, which is seqlen_q - 1
    # further ahead, has the most behind it.
    if left >= capacity - 1:
        left = UNLIMITED
    if right and right >= seqlen_q - 1:
        right = UNLIMITED
    sinks, slopes, mask, of_mods = arrays
    read = None if mask is None else checked_mask(mask, (batch, heads, seqlen_q), capacity)
    columns = 0 if mask is None else mask.shape[-1]
    score_mod, mask_mod = mod_sources(options.mods, of_mods, device)
    return Scores(
        window_size=(left, right),
        softcap=checked_softcap(options.softcap, problem.softmax_scale),
        sinks=None if sinks is None else checked_sinks(sinks, heads),
        alibi_slopes=None if slopes is None else checked_slopes(slopes, batch, heads),
        attn_mask=read if columns else None,  # one without columns hides nothing
        mask_columns=columns,
        score_mod=score_mod,
        mask_mod=mask_mod,
        mod_numbers=() if options.mods is None else options.mods.numbers,
    )
