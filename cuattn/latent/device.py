"""Calls on a latent cache on the GPU: what is checked, launched and noted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..arrays.caller import Caller, device_of
from ..arrays.device import current_device, target
from ..arrays.overlap import check_output
from ..arrays.view import Array, View
from ..common.sizes import ceil_div
from ..compile.chain import Chain
from ..compile.launch import NULL, Buffers, Launch
from ..compile.params import record
from ..errors import ArgumentError
from ..kv.append import store
from ..kv.append_call import PACKED, AppendCall, packed_values
from ..kv.attend_call import AttendCall, spans
from ..kv.device import STORE, DeviceMemory, direct, store_values
from ..kv.device_tokens import fresh_tokens, views_of
from ..kv.packed_tokens import GivenTokens
from ..kv.plans import appended, unplanned
from ..kv.shares import share_values
from ..kv.spec import KV_BLOCK
from ..operands.operand import (
    DTYPES,
    compact_strides,
    in_order,
    takes_pairs,
)
from ..specs.attention import Type
from .format import LatentGeometry
from .query import LatentOptions, LatentQuery, token_operands
from .spec import LatentAppendSpec, LatentMergeSpec, latent_decode_spec

__all__ = [
    "APPEND_GIVEN",
    "ATTEND_GIVEN",
    "append_on_device",
    "attend_on_device",
    "prepare_append",
    "prepare_attend",
]

# The addresses that calls have from outside: see `Buffers`.
_ARRAYS = ("limits", "fixed", "arrivals", "refused", "latent", "rope", "counts")
APPEND_GIVEN = (*STORE, *_ARRAYS, *PACKED)
ATTEND_GIVEN = (*STORE, "arrivals", "q", "o", "lse")

# Blocks of all tiles of rows are counted in 32-bit integers.
_MAX_BLOCKS = 2**30

# Bytes of a head's parts that one CTA merges at the end of the kernel: about as long as another
# kernel takes that merges with all CTAs.
_MERGED_BYTES = 400_000


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentAttendCall(AttendCall):
    """A call of a latent cache; `launches` is of the addresses `ATTEND_GIVEN`."""

    query: LatentQuery


def append_on_device(
    memory: DeviceMemory, latent: Any, rope: Any, given: GivenTokens, stream: Any
) -> None:
    """Do what `LatentKVCache.append` says, of arrays on the GPU."""
    memory.check_device(latent, "latent", device_of(latent, "latent"))
    with memory.on_device():
        caller = Caller(latent, stream)
        views = memory.look(caller, latent, "latent"), memory.look(caller, rope, "rope")
        with caller:
            of_latent, of_rope = map(direct, views)
            sequences = given.checked_sequences(memory.geometry.batch)
            parts = None if sequences is None else len(sequences)
            call = memory.prepared(prepare_append, of_latent.signature, of_rope.signature, parts)
            fresh = fresh_tokens(memory, caller, given, sequences, call.tokens)
            host_state, is_captured = memory.host_state, memory.is_captured()
            if host_state.is_known and not isinstance(fresh.counts, View) and not is_captured:
                count = call.tokens if fresh.counts is None else fresh.counts
                plan = appended(host_state, count, of_latent.shape, "latent")
            else:
                plan = unplanned(host_state, call.tokens, captured=is_captured)
            token_views = views_of(memory, fresh, call.tokens)
            addresses = (
                *memory.append_addresses,
                memory.counters(1),
                memory.refused_address,
                of_latent.ptr,
                of_rope.ptr,
                *token_views.addresses,
            )
            store(memory, plan, call, addresses, caller.stream, is_captured=is_captured)


def prepare_append(
    geometry: LatentGeometry, latent: Array, rope: Array, parts: int | None = None
) -> AppendCall:
    """Check an append on CuPy's current device, plan it and load its kernel.

    Parameters
    ----------
    geometry : LatentGeometry
    latent, rope : Array
    parts : int, optional
        Of sequences whose tokens lie end to end, how many these are.

    Raises
    ------
    ArgumentError, NoGPUError, UnsupportedError, CompileError
        As `LatentKVCache.append`.
    """
    is_packed = parts is not None
    operands = token_operands(geometry, latent, rope, is_packed)
    tokens = operands[0].tokens
    buffers = Buffers(*APPEND_GIVEN)
    if not tokens:
        return AppendCall(tokens, Chain([], buffers))
    aligned = all(x.aligned for x in operands)
    spec = LatentAppendSpec(operands[0].dtype, _rope_type(geometry), aligned, is_packed)
    values: dict[str, Any] = {
        "store": store_values(geometry, buffers),
        **{name: buffers[name] for name in ("limits", "arrivals", "refused", "counts")},
        "k": buffers["latent"],
        "v": buffers["rope"],
        "seqlen": tokens,
        "rope": None,
        "packed": packed_values(buffers) if is_packed else None,
    }
    for name, x in zip("kv", operands, strict=True):
        for axis, step in zip(("batch", "head", "token"), x.strides[:3], strict=True):
            values[f"{name}_stride_{axis}"] = step
    grid = (operands[0].shape[0] * ceil_div(tokens, spec.tokens),)
    launch = Launch(spec, current_device(), grid, values)
    return AppendCall(tokens, Chain([launch], buffers))


def attend_on_device(
    memory: DeviceMemory, q: Any, options: LatentOptions, out: Any, stream: Any
) -> Any:
    """Do what `LatentKVCache.attend` says, of arrays on the GPU."""
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
            query = call.query
            if out_view is not None:
                sizes = call.sizes
                check_output(out, out_view, {"q": q_view}, call.extents, sizes["out"], sizes)
            o = caller.empty(query.output_shape, q_view.dtype) if out_view is None else out_view
            lse = caller.empty(query.q.shape[:3], "float32") if query.return_lse else None
            call.launch(memory, caller, q_view, o, lse)
            result = caller.deliver(o) if out is None else out
            return (result, caller.deliver(lse)) if query.return_lse else result


def prepare_attend(
    geometry: LatentGeometry,
    q: Array,
    out: Array | None,
    scale: float,
    is_causal: bool,
    return_lse: bool,
    layout: str,
) -> LatentAttendCall:
    """Check a call on CuPy's current device, plan it and load its kernel.

    Raises
    ------
    ArgumentError, UnsupportedError, CompileError
        As `LatentKVCache.attend`.
    """
    query = LatentQuery.of(geometry, q, LatentOptions(scale, is_causal, return_lse, layout))
    operand = query.q
    batch, heads, seqlen_q, _ = operand.shape
    writes_out = out is None or takes_pairs(query.output(out), out.misalignment)
    o_strides = compact_strides(query.output_shape)
    if out is not None and writes_out:
        o_strides = out.strides
    given: dict[str, Array] = {"q": q} if out is None else {"q": q, "out": out}
    extents, sizes = spans(given)
    rows = heads * seqlen_q
    buffers = Buffers(*ATTEND_GIVEN)
    launches: list[Launch] = []
    arrivals = 0
    if batch * rows:
        device = current_device()
        spec = latent_decode_spec(operand.dtype, _rope_type(geometry), rows, target(device.arch))
        row_tiles = ceil_div(rows, spec.rows)
        arrivals = batch * row_tiles
        if arrivals * ceil_div(geometry.capacity, KV_BLOCK) > _MAX_BLOCKS:
            expected = f"of fewer queries, so that {_MAX_BLOCKS} blocks suffice"
            raise ArgumentError("q.shape", q.shape, expected)
        # As many parts of a head as there are if sequences are about as long as each other.
        parts = ceil_div(device.num_sms, arrivals) + 1
        merges_apart = parts * spec.partial_bytes > _MERGED_BYTES
        # Of what is for other caches there is nothing.
        members = record(spec.params, spec.params_file).names or ()
        values: dict[str, Any] = dict.fromkeys(members, NULL) | {
            "rope": None,
            "user": (),
            "store": store_values(geometry, buffers),
            **{name: buffers[name] for name in ("arrivals", "q", "o", "lse")},
            "partials": buffers.take(2 * device.num_sms * spec.partial_bytes),
            **share_values(
                heads_per_kv=heads,
                row_tiles=row_tiles,
                num_kv_heads=1,
                batch=batch,
                ctas=device.num_sms,
            ),
            "seqlen_q": seqlen_q,
            "parts": device.num_sms if merges_apart else 0,
            "is_causal": int(query.is_causal),
            "q_aligned": int(operand.aligned),
            "softmax_scale": query.softmax_scale,
        }
        for name, steps in (("q", operand.strides), ("o", in_order(o_strides, layout))):
            for axis, step in zip(("batch", "head", "row"), steps[:3], strict=True):
                values[f"{name}_stride_{axis}"] = step
        launches.append(Launch(spec, device, (device.num_sms,), values))
        if merges_apart:
            merging = LatentMergeSpec(spec.input, spec.rows)
            launches.append(Launch(merging, device, (arrivals * spec.rows,), values))
    return LatentAttendCall(
        query=query,
        writes_out=writes_out,
        extents=extents,
        sizes=sizes,
        arrivals=arrivals,
        launches=Chain(launches, buffers),
    )


def _rope_type(geometry: LatentGeometry) -> Type:
    return DTYPES[geometry.kv_format.rope_dtype]
