"""What an append on the GPU is before its arrays have addresses: checks, kernels and grids."""

from __future__ import annotations

from dataclasses import dataclass

from ..arrays.device import current_device
from ..arrays.view import Array
from ..compile.chain import Chain
from ..compile.launch import Buffers, Launch
from ..errors import ArgumentError
from ..operands.lengths import array_of_tokens
from ..operands.operand import Operand, in_order, operand_of
from .append_spec import AppendSpec, OffsetSpec
from .device import SCHEME, STORE, store_values
from .device_rope import ROPE, rope_values
from .geometry import KVGeometry
from .rope import RopeSizes

__all__ = ["GIVEN", "PACKED", "AppendCall", "packed_values", "prepare_append", "token_operands"]

# Addresses of a call of which tokens lie end to end, null of others; "parts" may be null.
PACKED = ("bounds", "parts")

_ARRAYS = ("limits", "fixed", "arrivals", "refused", "k", "v", "counts")

# The addresses of a call, in this order. Null is "counts" if all tokens of all sequences are
# appended, or they lie end to end.
GIVEN = (*STORE, *_ARRAYS, *PACKED, *ROPE)


@dataclass(frozen=True, eq=False)
class AppendCall:
    """What all calls on arrays of the same kinds have in common.

    Attributes
    ----------
    tokens : int
        Of each sequence in the arrays, or of all of them that lie end to end.
    launches : Chain
        Of the addresses `GIVEN`, without a workspace. Empty if there are no tokens.
    """

    tokens: int
    launches: Chain


def prepare_append(
    geometry: KVGeometry,
    k: Array,
    v: Array,
    layout: str,
    fixes_offsets: bool,
    rope: RopeSizes | None = None,
    parts: int | None = None,
) -> AppendCall:
    """Check an append on CuPy's current device, plan it and load its kernels.

    Parameters
    ----------
    geometry : KVGeometry
    k, v : Array
        Axes [batch, num_kv_heads, token, head_dim] or as the layout says, or [token, num_kv_heads,
        head_dim] of parts; the last one contiguous.
    layout : {"HND", "NHD"}
    fixes_offsets : bool
        Whether the offsets of some sequences may not be fixed yet, of which these keys are the mean
        first. False if K is not smoothed.
    rope : RopeSizes, optional
        Of the tables that K turns by.
    parts : int, optional
        Of sequences whose tokens lie end to end, how many these are.

    Raises
    ------
    ArgumentError
        As `token_operands`.
    NoGPUError, UnsupportedError, CompileError
        As `cuattn.attention`.
    """
    is_packed = parts is not None
    of_k, of_v = token_operands(geometry, k, v, layout, is_packed)
    tokens = of_k.tokens
    buffers = Buffers(*GIVEN)
    if not tokens or parts == 0:
        return AppendCall(tokens, Chain([], buffers))
    device = current_device()
    values = {
        "store": store_values(geometry, buffers),
        **{name: buffers[name] for name in _ARRAYS},
        **_strides("k", of_k),
        **_strides("v", of_v),
        "seqlen": tokens,
        "rope": rope_values(rope, buffers),
        "packed": None,
    }
    launches = []
    flags = {"rope": rope is not None, "packed": is_packed}
    ctas = AppendSpec.pieces(tokens)  # of a head
    if parts is not None:
        ctas = AppendSpec.shares(tokens, parts)
        values["packed"] = packed_values(buffers, ctas)
    if fixes_offsets:
        offsets = OffsetSpec(of_k.dtype, geometry.kv_format.head_dim, of_k.aligned, **flags)
        grid = (geometry.batch * geometry.num_kv_heads,)
        launches.append(Launch(offsets, device, grid, values))
    aligned = of_k.aligned and of_v.aligned
    append = AppendSpec.of(
        geometry.kv_format,
        of_k.dtype,
        aligned=aligned,
        single=tokens == 1 and not is_packed,
        **flags,
    )
    grid = (of_k.heads * ctas,)
    launches.append(Launch(append, device, grid, values))
    return AppendCall(tokens, Chain(launches, buffers))


def packed_values(buffers: Buffers, shares: int = 0) -> dict[str, int]:
    """Return the members of PackedParams in kernels_cu/kv/kv_params.cuh."""
    return {**{name: buffers[name] for name in PACKED}, "shares": shares}


def token_operands(
    geometry: KVGeometry, k: Array, v: Array, layout: str, is_packed: bool = False
) -> tuple[Operand, Operand]:
    """Check tokens that are to be appended.

    Parameters
    ----------
    is_packed : bool
        Whether those of all sequences lie end to end: then they have a batch of 1.

    Raises
    ------
    ArgumentError
        For shapes, types and devices that are not those of the cache or of each other.
    """
    arrays, batch = (k, v), geometry.batch
    if is_packed:
        bounds = "cu_seqlens_k"
        k, v = array_of_tokens("k", k, bounds), array_of_tokens("v", v, bounds)
        batch, layout = 1, "NHD" if layout == "HND" else layout
    operands = (operand_of("k", k, SCHEME, layout), operand_of("v", v, SCHEME, layout))
    tokens = operands[0].tokens
    for name, x, operand in zip("kv", arrays, operands, strict=True):
        wanted = (batch, geometry.num_kv_heads, tokens, geometry.kv_format.head_dim)
        if operand.shape != wanted:
            in_layout = in_order(wanted, layout)[is_packed:]
            raise ArgumentError(f"{name}.shape", x.shape, f"{in_layout}, as the cache has it")
    for what in ("dtype", "device"):
        if getattr(v, what) != getattr(k, what):
            raise ArgumentError(f"v.{what}", getattr(v, what), f"{getattr(k, what)}, as k has it")
    return operands


def _strides(name: str, x: Operand) -> dict[str, int]:
    batch, head, token, _ = x.strides
    return {
        f"{name}_stride_batch": batch,
        f"{name}_stride_head": head,
        f"{name}_stride_token": token,
    }
