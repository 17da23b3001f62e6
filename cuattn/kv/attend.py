"""Attending to a KV cache on the GPU: what is checked and launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..arrays.caller import Caller, device_of
from ..arrays.device import current_device, target
from ..arrays.overlap import check_output, extent
from ..arrays.view import Array, as_cupy, cupy_module, view_cupy
from ..common.sizes import ceil_div
from ..compile.chain import Chain
from ..compile.launch import Buffers, Launch
from ..errors import ArgumentError
from ..operands.operand import in_order, operand_of
from ..operands.problem import Options, Problem
from .device import SCHEME, DeviceMemory, direct, store_values
from .geometry import KVGeometry
from .spec import KV_BLOCK, decode_spec

__all__ = [
    "GIVEN",
    "AttendCall",
    "QueryOptions",
    "attend_on_device",
    "prepare_attend",
    "query_problem",
]

# The addresses that a call has from outside: see `Buffers`.
GIVEN = ("units", "pages", "lengths", "k_offset", "arrivals", "q", "o", "lse")

# Blocks of all heads and tiles of rows are counted in 32-bit integers.
_MAX_BLOCKS = 2**30


class QueryOptions(NamedTuple):
    """The arguments of `KVCache.attend` that are not arrays, as the caller gave them."""

    scale: float | None
    is_causal: bool
    return_lse: bool
    layout: str


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
    launches : Chain
        Of the addresses `GIVEN`; without smoothing "k_offset" is 0, in a cache of one piece for
        each sequence "pages". Empty if there is no output.
    """

    problem: Problem
    writes_out: bool
    extents: dict[str, tuple[int, int]]
    arrivals: int
    launches: Chain


def attend_on_device(
    memory: DeviceMemory, q: Any, options: QueryOptions, out: Any, stream: Any
) -> Any:
    """Do what `KVCache.attend` says, of arrays on the GPU."""
    memory.check_device(q, "q", device_of(q, "q"))
    with memory.on_device():
        caller = Caller(q, stream)
        q_view = memory.look(caller, q, "q")
        out_view = None if out is None else memory.look(caller, out, "out")
        with caller:
            memory.settle()
            q_view = direct(q_view)
            of_out = None if out_view is None else out_view.signature
            call = memory.prepared(prepare_attend, q_view.signature, of_out, *options)
            of_q, return_lse = call.problem.q, call.problem.return_lse
            if out_view is not None:
                check_output(out, out_view, {"q": q_view}, call.extents, of_q.dtype.nbytes)
            o = caller.empty(q_view.shape, q_view.dtype) if out_view is None else out_view
            lse = caller.empty(of_q.shape[:3], "float32") if return_lse else None
            written = o
            if not call.writes_out:
                written = view_cupy(cupy_module().empty_like(as_cupy(o), order="C"))
            given = (
                *memory.attend_addresses,
                memory.counters(call.arrivals),
                q_view.ptr,
                written.ptr,
                0 if lse is None else lse.ptr,
            )
            call.launches(given, caller.stream)
            if written is not o:
                as_cupy(o)[...] = written.owner
            result = caller.deliver(o) if out is None else out
            return (result, caller.deliver(lse)) if return_lse else result


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
        launches=Chain(launches, buffers),
    )


def query_problem(geometry: KVGeometry, q: Array, options: QueryOptions) -> Problem:
    """Check a query and its options: a problem whose K and V have no tokens, which nobody knows.

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
    return Problem.of(q, stand_in, stand_in, Options(SCHEME, *options))
