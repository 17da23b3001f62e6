"""The launch of a call of `KVCache.attend`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..arrays.device import current_device, target
from ..arrays.overlap import extent
from ..arrays.view import Array
from ..common.sizes import ceil_div
from ..compile.launch import Buffers, Launch, loaded
from ..errors import ArgumentError
from ..operands.operand import in_order
from ..operands.problem import Problem
from .decode_kernel import decode_spec
from .geometry import KVGeometry
from .operands import QueryOptions, query_problem
from .spec import KV_BLOCK

__all__ = ["GIVEN", "AttendCall", "prepare_attend", "store_values"]

# The addresses that a call has from outside: see `Buffers`.
GIVEN = ("units", "pages", "lengths", "k_offset", "arrivals", "q", "o", "lse")

# Blocks of all heads and tiles of rows are counted in 32-bit integers.
_MAX_BLOCKS = 2**30


@dataclass(frozen=True, eq=False)
class AttendCall:
    """What all calls with arrays of the same kinds have in common.

    Attributes
    ----------
    problem : Problem
        K and V of it have no tokens.
    writes_out : bool
        Whether the kernel can write to where the caller wants the output.
    extents : dict of str to tuple of int
        Bytes that the caller's arrays span, from their element 0 on.
    arrivals : int
        Counters of 32 bits that have to be 0, and will be again.
    launches : list of Launch
        Empty if there is no output.
    buffers : Buffers
        Of the addresses `GIVEN`; without smoothing "k_offset" is 0, in a cache of one piece for
        each sequence "pages".
    """

    problem: Problem
    writes_out: bool
    extents: dict[str, tuple[int, int]]
    arrivals: int
    launches: list[Launch]
    buffers: Buffers


def prepare_attend(
    geometry: KVGeometry,
    q: Array,
    out: Array | None,
    scale: float | None,
    is_causal: bool,
    return_lse: bool,
    layout: str,
) -> AttendCall:
    """Check a call on CuPy's current device, plan it and load its kernel.

    Raises
    ------
    ArgumentError, UnsupportedError, CompileError
        As `cuattn.KVCache.attend`.
    """
    problem = query_problem(geometry, q, QueryOptions(scale, is_causal, return_lse, layout))
    operand = problem.q
    batch, _, seqlen_q, _ = operand.shape
    o_strides, writes_out = problem.output_strides(out)
    arrays = {"q": q} if out is None else {"q": q, "out": out}
    rows = problem.group * seqlen_q
    buffers = Buffers(*GIVEN)
    launches: list[Launch] = []
    arrivals = 0
    if batch * rows:
        device = current_device()
        spec = decode_spec(geometry.kv_format, operand.dtype, rows, target(device.arch))
        row_tiles = ceil_div(rows, spec.rows)
        arrivals = batch * geometry.num_kv_heads * row_tiles
        if arrivals * ceil_div(geometry.capacity, KV_BLOCK) > _MAX_BLOCKS:
            expected = (
                f"of fewer queries, so that {_MAX_BLOCKS} blocks of {KV_BLOCK} tokens suffice"
            )
            raise ArgumentError("q.shape", q.shape, expected)
        ctas = device.num_sms * spec.min_ctas
        # Partial in kernels_cu/kv/partials.cuh: O, and three numbers of each row.
        partial = 4 * spec.rows * (spec.head_dim + 3)
        values: dict[str, Any] = {
            "store": store_values(geometry, buffers),
            "q": buffers["q"],
            "o": buffers["o"],
            "lse": buffers["lse"],
            "partials": buffers.take(2 * ctas * partial),
            "arrivals": buffers["arrivals"],
            "heads_per_kv": problem.group,
            "seqlen_q": seqlen_q,
            "row_tiles": row_tiles,
            "is_causal": int(problem.is_causal),
            "q_aligned": int(operand.aligned),
            "softmax_scale": problem.softmax_scale,
        }
        strides = {"q": operand.strides, "o": in_order(o_strides, problem.layout)}
        for name, steps in strides.items():
            for axis, step in zip(("batch", "head", "row"), steps[:3], strict=True):
                values[f"{name}_stride_{axis}"] = step
        launches.append(Launch(spec, device, (ctas,), values))
    return AttendCall(
        problem=problem,
        writes_out=writes_out,
        extents={
            name: extent(x.shape, x.strides, operand.dtype.nbytes) for name, x in arrays.items()
        },
        arrivals=arrivals,
        launches=loaded(launches),
        buffers=buffers,
    )


def store_values(geometry: KVGeometry, buffers: Buffers) -> dict[str, int]:
    """Return the members of KvStore in kernels_cu/kv/kv_params.cuh."""
    addresses = ("units", "pages", "lengths", "k_offset")
    return {
        **{name: buffers[name] for name in addresses},
        "page_stride": geometry.page_stride,
        "head_stride": geometry.head_stride,
        "page_units": geometry.page_units,
        "pages_per_sequence": geometry.pages_per_sequence,
        "batch": geometry.batch,
        "num_kv_heads": geometry.num_kv_heads,
    }
