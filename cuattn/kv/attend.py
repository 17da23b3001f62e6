"""Attending to a KV cache on the GPU: what is checked and launched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..arrays.caller import Caller, device_of
from ..arrays.device import current_device, target
from ..arrays.overlap import check_output
from ..arrays.view import Array, View
from ..common.sizes import ceil_div
from ..compile.chain import Chain
from ..compile.launch import Buffers, Launch
from ..errors import ArgumentError
from ..operands.mods import Mods
from ..operands.operand import dtype_name, in_order
from ..operands.problem import Problem
from ..operands.score_arrays import MOD_NAMES, SCORE_NAMES
from ..operands.scores import ALL_KEYS
from ..plan.repeated import Made
from ..plan.score_rules import user_values
from ..plan.user_code import check_user_code
from ..reference.partition import most_parts
from .attend_call import AttendCall, spans
from .device import STORE, DeviceMemory, direct, store_values
from .device_rope import (
    ROPE,
    packed_positions,
    positions_on_device,
    rope_values,
    tables_on_device,
)
from .geometry import KVGeometry
from .prefill import PrefillCall, prepared_prefill
from .query import Query, QueryOptions
from .rope import GivenRope, RopeSizes
from .rows import Packed, are_many, check_limit
from .scores import NO_ARRAYS, ScoreArrays
from .shares import share_values
from .spec import KV_BLOCK, decode_spec

__all__ = ["GIVEN", "DecodeCall", "attend_on_device", "prepare_attend"]

# The addresses that a call has from outside, before those of its expressions' arrays: see
# `Buffers`.
GIVEN = (*STORE, "arrivals", "q", "o", "lse", *SCORE_NAMES, *ROPE)

# Blocks of all heads and tiles of rows are counted in 32-bit integers.
_MAX_BLOCKS = 2**30


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodeCall(AttendCall):
    """A call that decodes; `launches` is of the addresses `GIVEN`, and of arrays of expressions.

    Without smoothing "k_offset" is 0, in a cache of one piece for each sequence "pages", and what a
    call has not.

    Attributes
    ----------
    problem : Problem
        K and V of it have no tokens.
    """

    problem: Problem
    launches: Chain

    @property
    def output(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of the output in the caller's layout."""
        return self.problem.output_shape, dtype_name(self.problem.q.dtype)

    @property
    def lse(self) -> tuple[tuple[int, ...], str] | None:
        """The same of the log-sum-exp, if it is wanted."""
        return (self.problem.lse_shape, "float32") if self.problem.return_lse else None

    def constants(self, memory: DeviceMemory) -> dict[str, int]:
        """Return the addresses that are the same in all calls on a cache, by their names."""
        names = (*STORE, "arrivals")
        addresses = (*memory.attend_addresses, memory.counters(self.arrivals))
        return dict(zip(names, addresses, strict=True))


def attend_on_device(
    memory: DeviceMemory,
    q: Any,
    options: QueryOptions,
    scores: Mapping[str, Any],
    out: Any,
    stream: Any,
    cu_seqlens_q: Any = None,
    max_seqlen_q: int | None = None,
    rope: GivenRope | None = None,
    out_lse: Any = None,
) -> Any:
    """Do what `KVCache.attend` says, of arrays on the GPU; a `Made` if it may be done again.

    Parameters
    ----------
    out_lse : array, optional
        Where the log-sum-exps are written: of the shape and type that they have, contiguous, and
        apart from all else. They have to be wanted.
    """
    memory.check_device(q, "q", device_of(q, "q"))
    check_limit(cu_seqlens_q, max_seqlen_q)
    with memory.on_device():
        caller = Caller(q, stream)
        q_view = memory.look(caller, q, "q")
        out_view = None if out is None else memory.look(caller, out, "out")
        looked: dict[str, View] = {name: memory.look(caller, x, name) for name, x in scores.items()}
        bounds = None if cu_seqlens_q is None else memory.look(caller, cu_seqlens_q, "cu_seqlens_q")
        with caller:
            memory.settle()
            given_view, q_view = q_view, direct(q_view)
            of_out = None if out_view is None else out_view.signature
            arrays = NO_ARRAYS
            if looked:
                arrays = ScoreArrays.of({name: x.signature for name, x in looked.items()})
            of_q = q_view.signature
            packed = None if bounds is None else Packed(bounds.signature, max_seqlen_q)
            call: DecodeCall | PrefillCall
            tables = turns = positions = ends = None
            if rope is not None:
                tables = tables_on_device(memory, caller, rope, q_view.dtype)
                turns = tables.sizes
            if are_many(memory.geometry, of_q, options.layout, packed):
                call = prepared_prefill(memory, of_q, of_out, options, arrays, packed, turns)
            else:
                call = memory.prepared(prepare_attend, of_q, of_out, *options, arrays, turns)
            if rope is not None and turns is not None:
                rows = call.problem.q.tokens
                where = memory, caller, rope, turns, rows
                if packed is not None:
                    positions, ends = packed_positions(*where)
                else:
                    is_shifted = memory.host_state.evicted is not None
                    positions = positions_on_device(
                        *where, None, behind=rows, is_shifted=is_shifted
                    )
            return_lse = call.problem.return_lse
            if out_view is not None:
                inputs, sizes = {"q": q_view, **looked}, call.sizes
                if bounds is not None:
                    inputs["cu_seqlens_q"] = bounds
                check_output(out, out_view, inputs, call.extents, sizes["out"], sizes)
            o = caller.empty(q_view.shape, q_view.dtype) if out_view is None else out_view
            lse = None
            if return_lse and out_lse is None:
                lse = caller.empty(call.problem.lse_shape, "float32")
            elif return_lse:
                lse = memory.look(caller, out_lse, "lse")
            behind = [looked.get(name) for name in SCORE_NAMES]
            behind += [None, None] if tables is None else [tables.cos, tables.sin]
            behind += [positions]
            if isinstance(call, PrefillCall):
                behind += [bounds, ends]
            behind += [looked[name] for name in options.labels]
            others = [0 if x is None else x.ptr for x in behind]
            # What lies behind the last sequence stays.
            keeps = call.problem.is_packed
            call.launch(memory, caller, q_view, o, lse, *others, keeps=keeps)
            result = caller.deliver(o) if out is None else out
            if return_lse:
                result = result, caller.deliver(lse) if out_lse is None else out_lse
            # Distances are checked each time once tokens have been evicted.
            counts = options.window_size[0] >= 0 or options.mods or "alibi_slopes" in scores
            if (
                q_view is given_view
                and rope is stream is out_lse is None
                and not (counts and memory.host_state.evicted is not None)
                and isinstance(call, DecodeCall)
                and call.launches
                and call.writes_out
            ):
                return Made(result, call, call.constants(memory))
            return result


def prepare_attend(
    geometry: KVGeometry,
    q: Array,
    out: Array | None,
    scale: float | None,
    is_causal: bool,
    return_lse: bool,
    layout: str,
    window_size: tuple[int, int] = ALL_KEYS,
    softcap: float = 0.0,
    batch_invariant: bool = False,
    mods: Mods | None = None,
    arrays: ScoreArrays = NO_ARRAYS,
    rope: RopeSizes | None = None,
) -> DecodeCall:
    """Check a call on CuPy's current device, plan it and load its kernel.

    Raises
    ------
    ArgumentError, UnsupportedError, CompileError
        As `cuattn.KVCache.attend`.
    """
    options = QueryOptions(
        scale, is_causal, return_lse, layout, window_size, softcap, batch_invariant, mods
    )
    query = Query.of(geometry, q, options, arrays)
    problem, scores = query.problem, query.scores
    operand = problem.q
    batch, _, seqlen_q, _ = operand.shape
    o_strides, writes_out = problem.output_strides(out)
    given = {"q": q, **arrays.given(options.labels)}
    extents, sizes = spans(given if out is None else {**given, "out": out})
    rows = problem.group * seqlen_q
    buffers = Buffers(*GIVEN, *MOD_NAMES[: len(arrays.mods)])
    launches: list[Launch] = []
    arrivals = 0
    if batch * rows:
        device = current_device()
        facts = target(device.arch)
        for mod in (scores.score_mod, scores.mask_mod):
            check_user_code(mod, device.arch)
        features = scores.features._replace(batch_invariant=batch_invariant, rope=rope is not None)
        spec = decode_spec(geometry.kv_format, operand.dtype, rows, facts, features)
        row_tiles = ceil_div(rows, spec.rows)
        arrivals = batch * geometry.num_kv_heads * row_tiles
        if arrivals * ceil_div(geometry.capacity, KV_BLOCK) > _MAX_BLOCKS:
            expected = (
                f"of fewer queries, so that {_MAX_BLOCKS} blocks of {KV_BLOCK} tokens suffice"
            )
            raise ArgumentError("q.shape", q.shape, expected)
        ctas = device.num_sms * spec.min_ctas
        partials, parts = 2 * ctas, 1
        if batch_invariant:
            blocks = ceil_div(geometry.capacity, KV_BLOCK)
            parts = most_parts(ctas, geometry.num_kv_heads * row_tiles, blocks)
            partials = ctas = arrivals * parts
        # Partial in kernels_cu/kv/partials.cuh: O, and three numbers of each row.
        partial = 4 * spec.rows * (spec.head_dim + 3)
        values: dict[str, Any] = {
            "store": store_values(geometry, buffers),
            "q": buffers["q"],
            "o": buffers["o"],
            "lse": buffers["lse"],
            "partials": buffers.take(partials * partial),
            "arrivals": buffers["arrivals"],
            **share_values(
                heads_per_kv=problem.group,
                row_tiles=row_tiles,
                num_kv_heads=geometry.num_kv_heads,
                batch=batch,
                ctas=ctas,
            ),
            "seqlen_q": seqlen_q,
            "parts": parts,
            "q_aligned": int(operand.aligned),
            "softmax_scale": problem.softmax_scale,
            **{name: buffers[name] for name in SCORE_NAMES},
            **query.score_values(),
            "rope": rope_values(rope, buffers),
            "user": user_values(scores, buffers),
        }
        strides = {"q": operand.strides, "o": in_order(o_strides, problem.layout)}
        for name, steps in strides.items():
            for axis, step in zip(("batch", "head", "row"), steps[:3], strict=True):
                values[f"{name}_stride_{axis}"] = step
        launches.append(Launch(spec, device, (ctas,), values))
    return DecodeCall(
        problem=problem,
        writes_out=writes_out,
        extents=extents,
        sizes=sizes,
        arrivals=arrivals,
        launches=Chain(launches, buffers),
    )
