"""Attention on the GPU with everything settled that does not depend on addresses."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..arrays.device import current_device
from ..arrays.overlap import extent
from ..arrays.view import Array
from ..common.remember import remember
from ..compile.chain import Chain
from ..compile.launch import Buffers, Launch
from ..operands.lengths import NO_LENGTHS, LengthArrays
from ..operands.masks import MaskBlocks
from ..operands.mods import Mods
from ..operands.operand import Coded, dtype_name, itemsize
from ..operands.problem import Options, Problem
from ..operands.score_arrays import NO_ARRAYS, OPTION_NAMES, ScoreArrays
from ..operands.scores import ALL_KEYS
from ..scheme import Scheme
from .auto_problem import problem_on_gpu
from .pipeline import GIVEN, pipeline
from .repeated import Repetitions
from .score_rules import needs_lse_shift
from .user_code import check_user_code

__all__ = ["CALLS", "AttentionCall", "forget_plans", "prepare"]

# Kinds of calls that a process remembers, at a few kilobytes each.
_REMEMBERED = 1024

# Of `cuattn.attention`.
CALLS = Repetitions()


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What all calls on arrays of the same kinds have in common.

    Attributes
    ----------
    problem : Problem
    copied : tuple of {"q", "k", "v"}
        Arrays that have to be made contiguous first; until then nothing else is prepared.
    output, lse : (tuple of int, str)
        Shape and dtype of the output in the caller's layout, and of the log-sum-exp; None for the
        latter if it is not wanted.
    writes_out : bool
        Whether the kernel can write to where the caller wants the output.
    extents : dict of str to tuple of int
        Bytes that the caller's arrays span, from their element 0 on, by the names of arguments.
    needs_shift : bool
        Whether the caller has to compute what K's smoothing takes from the logits: Q is quantized
        already.
    needs_keys : bool
        Whether the caller has to bring K to float32 again, for its products with what smoothing
        takes from Q: K is quantized already.
    launches : Chain
        Of the addresses `GIVEN`. Empty if there is no output, or if it is all zeros because there
        are no keys.
    """

    problem: Problem
    copied: tuple[str, ...]
    output: tuple[tuple[int, ...], str]
    lse: tuple[tuple[int, ...], str] | None
    writes_out: bool
    extents: dict[str, tuple[int, int]]
    needs_shift: bool
    needs_keys: bool
    launches: Chain


@remember(_REMEMBERED)
def prepare(
    q: Array | Coded,
    k: Array | Coded,
    v: Array | Coded,
    out: Array | None,
    scheme: str | Scheme,
    scale: float | None,
    is_causal: bool,
    return_lse: bool,
    layout: str,
    window_size: tuple[int, int] = ALL_KEYS,
    softcap: float = 0.0,
    mods: Mods | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    arrays: ScoreArrays = NO_ARRAYS,
    lengths: LengthArrays = NO_LENGTHS,
) -> AttentionCall:
    """Check a call on CuPy's current device, plan it and load its kernels.

    Raises
    ------
    ArgumentError, UnsupportedError, CompileError
        As `cuattn.attention`.
    """
    options = Options(
        scheme,
        scale,
        is_causal,
        return_lse,
        layout,
        window_size,
        softcap,
        mods,
        max_seqlen_q,
        max_seqlen_k,
    )
    problem = problem_on_gpu(q, k, v, options, arrays, lengths)
    operands = {name: x for name, x in (("q", q), ("k", k), ("v", v)) if isinstance(x, Array)}
    copied = tuple(name for name, x in operands.items() if x.strides[-1] != 1 and all(x.shape))
    o_strides, writes_out = problem.output_strides(out)
    if mods is not None:
        arch = current_device().arch
        check_user_code(problem.scores.score_mod, arch)
        check_user_code(problem.scores.mask_mod, arch)
    others = arrays._asdict() | lengths._asdict()
    seen: dict[str, Array | MaskBlocks] = {**operands}
    seen |= {name: x for name in OPTION_NAMES if (x := others[name]) is not None}
    seen |= dict(zip(() if mods is None else mods.labels, arrays.mods, strict=True))
    if out is not None:
        seen["out"] = out
    buffers = Buffers(*GIVEN)
    launches: list[Launch] = []
    if math.prod(problem.q.shape) and problem.has_rows and problem.seqlen_kv and not copied:
        launches = pipeline(problem, problem.by_axes(o_strides), buffers)
    return AttentionCall(
        problem=problem,
        copied=copied,
        output=(problem.output_shape, dtype_name(problem.q.dtype)),
        lse=(problem.lse_shape, "float32") if problem.return_lse else None,
        writes_out=writes_out,
        extents={name: _extent(x) for name, x in seen.items()},
        needs_shift=needs_lse_shift(problem) and problem.q.coded,
        needs_keys=problem.k.coded and problem.scheme.smooth_q != "none",
        launches=Chain(launches, buffers),
    )


def forget_plans() -> None:
    """Have calls planned anew, for measurements and tests of kernels that no table chooses."""
    prepare.cache_clear()
    CALLS.clear()


def _extent(x: Array | MaskBlocks) -> tuple[int, int]:
    if isinstance(x, MaskBlocks):
        return x.extent
    return extent(x.shape, x.strides, itemsize(x.dtype))
