"""Many queries to a KV cache on the GPU: its tokens become operands of `attention`, in parts.

A launch reads the units of some sequences, or heads of one, and writes codes of sorted keys to a
workspace; the launches of `attention` follow, of operands that are quantized already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..arrays.device import current_device
from ..arrays.view import Array
from ..compile.chain import Chain
from ..compile.launch import NULL, Buffers, Launch
from ..operands.layout import CodeLayout
from ..operands.problem import Problem
from ..operands.score_arrays import MOD_NAMES, SCORE_NAMES
from ..operands.scores import UNLIMITED
from ..plan import pipeline as plan
from ..plan.operand_buffers import stored_shape
from ..plan.user_code import check_user_code
from ..reference.sorting import SORTED_BLOCK
from .attend_call import AttendCall, spans
from .device import STORE, DeviceMemory, store_values
from .device_rope import ROPE
from .geometry import KVGeometry
from .operands_spec import OperandsSpec
from .prefill_parts import Part, offsets_of
from .prefill_queries import codes_of_queries, needs_own_codes
from .query import QueryOptions
from .rope import RopeSizes
from .rows import Packed, in_codes, longest, prefill_problem, with_tokens
from .scores import ScoreArrays

__all__ = ["WORKSPACE", "Parts", "PrefillCall", "prepare_prefill", "prepared_prefill"]

# Bytes of codes of K and V at most that a call has at a time; more only if those of a single head
# of a sequence are. Of 128 channels they are 256 to a token.
WORKSPACE = 2**28

# The addresses that a call has from outside, before those of its expressions' arrays: of a decoding
# call, then of lengths.
_GIVEN = (*STORE, "arrivals", "q", "o", "lse", *SCORE_NAMES, *ROPE, "cu_seqlens_q", "ends")

_WORD = 4


class Parts:
    """The launches of all parts, one part after the other, with one workspace for them.

    Parameters
    ----------
    chains : list of (Chain, dict of str to int)
        Of each part, and by how much its addresses are above those of the call.
    names : tuple of str
        Of the addresses.
    """

    def __init__(
        self, chains: list[tuple[Chain, dict[str, int]]], names: tuple[str, ...] = _GIVEN
    ) -> None:
        self._chains = [
            (chain, tuple(offsets.get(name, 0) for name in names)) for chain, offsets in chains
        ]

    def __call__(self, given: tuple[int, ...], stream: int) -> None:
        """Enqueue all launches; as a `Chain`."""
        for chain, offsets in self._chains:
            addresses = zip(given, offsets, strict=True)
            chain(tuple(x + offset if x else 0 for x, offset in addresses), stream)


@dataclass(frozen=True, eq=False, kw_only=True)
class PrefillCall(AttendCall):
    """A call of many rows: its K and V have the tokens that the cache may have."""

    problem: Problem


def prepared_prefill(
    memory: DeviceMemory,
    q: Array,
    out: Array | None,
    options: QueryOptions,
    arrays: ScoreArrays,
    packed: Packed | None,
    rope: RopeSizes | None = None,
) -> PrefillCall:
    """Return what `prepare_prefill` makes for the lengths that a cache has now; remembered.

    They are those that the host knows. A graph is made for the capacity, as lengths may grow before
    it is replayed.
    """
    capacity, state = memory.geometry.capacity, memory.host_state
    known = state.is_known and not state.is_replayed and not memory.is_captured()
    tokens = longest(int(state.lengths.max()) if known else capacity, capacity)
    smoothed = memory.k_offset is not None
    made: PrefillCall = memory.prepared(
        prepare_prefill, q, out, options, arrays, packed, rope, smoothed, tokens
    )
    return made


def prepare_prefill(
    geometry: KVGeometry,
    q: Array,
    out: Array | None,
    options: QueryOptions,
    arrays: ScoreArrays,
    packed: Packed | None,
    rope: RopeSizes | None,
    smoothed: bool,
    tokens: int,
) -> PrefillCall:
    """Check a call on CuPy's current device, plan it and load its kernels.

    Parameters
    ----------
    rope : RopeSizes, optional
        Of tables that queries turn by.
    smoothed, tokens
        As for `prefill_problem`.

    Raises
    ------
    ArgumentError, UnsupportedError, CompileError
        As `cuattn.KVCache.attend`.
    """
    problem = prefill_problem(geometry, q, options, arrays, packed, smoothed, tokens)
    for mod in (problem.scores.score_mod, problem.scores.mask_mod):
        check_user_code(mod, current_device().arch)
    o_strides, writes_out = problem.output_strides(out)
    bounds = None if packed is None else packed.bounds
    all_arrays = {"q": q, "out": out, "cu_seqlens_q": bounds, **arrays.given(options.labels)}
    given: dict[str, Array] = {name: x for name, x in all_arrays.items() if x is not None}
    extents, sizes = spans(given)
    strides = problem.by_axes(o_strides)
    names = (*_GIVEN, *MOD_NAMES[: len(arrays.mods)])
    chains: list[tuple[Chain, dict[str, int]]] = []
    made: dict[tuple[int, ...], Chain] = {}
    for part in _parts(geometry, tokens) if problem.has_rows and problem.q.tokens else ():
        # Only expressions are told which part it is.
        kind: tuple[int, ...] = part
        if options.mods is None:
            kind = part.sequences, part.heads
        if kind not in made:
            of_part = with_tokens(problem, part, tokens)
            made[kind] = _chain(geometry, of_part, strides, rope, names)
        chains.append((made[kind], offsets_of(geometry, problem, strides, part)))
    return PrefillCall(
        problem=problem,
        writes_out=writes_out,
        extents=extents,
        sizes=sizes,
        arrivals=0,
        launches=Parts(chains, names),
    )


def _parts(geometry: KVGeometry, tokens: int) -> Iterator[Part]:
    """Split a call so that the codes of each part fit the workspace."""
    batch, heads = geometry.batch, geometry.num_kv_heads
    of_head = 2 * tokens * geometry.kv_format.padded
    sequences = min(WORKSPACE // (heads * of_head), batch)
    if sequences:
        for first in range(0, batch, sequences):
            yield Part(first, min(sequences, batch - first), 0, heads)
        return
    some = max(WORKSPACE // of_head, 1)
    for sequence in range(batch):
        for head in range(0, heads, some):
            yield Part(sequence, 1, head, min(some, heads - head))


def _chain(
    geometry: KVGeometry,
    given: Problem,
    o_strides: tuple[int, ...],
    rope: RopeSizes | None,
    names: tuple[str, ...],
) -> Chain:
    """Return the launches of a part, whose workspace has all that is made of it."""
    own_codes = needs_own_codes(geometry, rope)
    problem = in_codes(given, geometry.kv_format, own_codes)
    buffers = Buffers(*names)
    buffers.name(**{name: NULL for name in plan.GIVEN if name not in names})
    buffers.name(seqused_k=buffers["lengths"], k_vector=buffers["k_offset"])
    layouts = {
        "k": CodeLayout.of(problem.scheme, "k", stored_shape("k", problem)),
        "v": CodeLayout.of(problem.scheme, "v", stored_shape("v", problem)),
    }
    for name, layout in layouts.items():
        scales = 1
        for n in layout.scale:
            scales *= n
        buffers.name(**{name: buffers.take(layout.nbytes)})
        buffers.name(**{f"{name}_scale": buffers.take(_WORD * scales)})
    batch, heads, blocks, _ = layouts["k"].order
    buffers.name(order=buffers.take(batch * heads * blocks * SORTED_BLOCK))
    if problem.is_packed:
        buffers.name(cu_seqlens_k=buffers.take(_WORD * (problem.batch + 1)))
    launches = [_operands(geometry, problem, buffers, blocks)]
    if own_codes:
        device = current_device()
        launches.append(codes_of_queries(geometry, device, given, problem, rope, buffers))
    channels = geometry.kv_format.head_dim
    launches += plan.pipeline(problem, o_strides, buffers, channels)
    return Chain(launches, buffers)


def _operands(geometry: KVGeometry, problem: Problem, buffers: Buffers, blocks: int) -> Launch:
    """Return the launch that makes codes of a cache's tokens."""
    assert problem.lengths is not None
    heads, tokens = problem.k.shape[1], problem.seqlen_kv
    of_head = tokens // SORTED_BLOCK
    left = problem.scores.window_size[0]
    # Blocks of a sequence do not straddle those of the next one: see Lengths.key_pitch.
    packed = problem.is_packed
    values: dict[str, Any] = {
        "store": store_values(geometry, buffers) | {"batch": problem.batch, "num_kv_heads": heads},
        "k_codes": buffers["k"],
        "k_scale": buffers["k_scale"],
        "v_codes": buffers["v"],
        "v_scale": buffers["v_scale"],
        "order": buffers["order"],
        "places_of_sequence": of_head + 1 if packed else heads * blocks,
        "places_of_head": blocks,
        "bounds": buffers["cu_seqlens_k"] if packed else NULL,
        "bound_step": tokens,
        "blocks": of_head,
        "window": tokens if left == UNLIMITED else min(left + problem.seqlen_q, tokens),
    }
    spec = OperandsSpec.of(geometry.kv_format)
    return Launch(spec, current_device(), (problem.batch * heads * of_head,), values)
