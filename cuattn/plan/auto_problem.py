"""The checked problem of a call, in which "auto" has given way to one of its candidates."""

from __future__ import annotations

import warnings

from ..arrays.device import current_device
from ..arrays.view import Array
from ..auto.choose import choose
from ..auto.tables import ANEW, table_for
from ..errors import ArgumentError
from ..operands.lengths import NO_LENGTHS, LengthArrays
from ..operands.operand import Coded
from ..operands.problem import Options, Problem
from ..operands.score_arrays import NO_ARRAYS, ScoreArrays
from ..presets import AUTO
from ..records.rows import Shape

__all__ = ["problem_on_gpu", "problem_on_host"]


def problem_on_gpu(
    q: Array | Coded,
    k: Array | Coded,
    v: Array | Coded,
    options: Options,
    arrays: ScoreArrays = NO_ARRAYS,
    lengths: LengthArrays = NO_LENGTHS,
) -> Problem:
    """Check a call on CuPy's current device, and choose its scheme by the table of that GPU.

    Raises
    ------
    ArgumentError
        As `Problem.of`, or if an operand is quantized already where a scheme is to be chosen.

    Warns
    -----
    RuntimeWarning
        If one is to be chosen and there is no table.
    """
    name = options.scheme
    if not isinstance(name, str) or name not in AUTO:
        return Problem.of(q, k, v, options, arrays, lengths)
    # Sizes are looked at once they have been checked, which any candidate will do for.
    checked = _of(name, AUTO[name][0], q, k, v, options, arrays, lengths)
    call = Shape(
        batch=checked.batch,
        num_q_heads=checked.q.shape[1],
        num_kv_heads=checked.k.shape[1],
        seqlen_q=checked.seqlen_q,
        seqlen_kv=checked.seqlen_kv,
        head_dim=checked.q.shape[3],
        # A window whose rows end at their own keys is the nearest to a causal mask.
        is_causal=checked.scores.window_size[1] == 0,
    )
    device = current_device()
    found = table_for(device)
    if found is None:
        warnings.warn(
            f"scheme={name!r} is {AUTO[name][0]!r}, as there is no table of {device.name}: "
            f"run {ANEW}",
            RuntimeWarning,
            stacklevel=2,
        )
    return _of(name, choose(call, name, found).scheme, q, k, v, options, arrays, lengths)


def problem_on_host(
    q: Array | Coded,
    k: Array | Coded,
    v: Array | Coded,
    options: Options,
    arrays: ScoreArrays = NO_ARRAYS,
    lengths: LengthArrays = NO_LENGTHS,
) -> Problem:
    """Check a call on host memory.

    No speed matters there, so the scheme is that of the class of accuracy: who looks at errors in
    the emulation sees those that a GPU may make.

    Raises
    ------
    ArgumentError
        As `problem_on_gpu`.
    """
    name = options.scheme
    if not isinstance(name, str) or name not in AUTO:
        return Problem.of(q, k, v, options, arrays, lengths)
    return _of(name, AUTO[name][-1], q, k, v, options, arrays, lengths)


def _of(
    name: str,
    chosen: str,
    q: Array | Coded,
    k: Array | Coded,
    v: Array | Coded,
    options: Options,
    arrays: ScoreArrays,
    lengths: LengthArrays,
) -> Problem:
    """Check a call with the scheme that has been chosen."""
    for operand, x in (("q", q), ("k", k), ("v", v)):
        if isinstance(x, Coded):
            expected = (
                f"a scheme by its own name, such as {x.scheme!r}, for which {operand} was "
                "quantized: what is chosen might not fit it"
            )
            raise ArgumentError("scheme", name, expected)
    return Problem.of(q, k, v, options._replace(scheme=chosen), arrays, lengths)
