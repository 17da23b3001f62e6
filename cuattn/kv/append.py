"""Appending tokens to a KV cache on the GPU, with everything settled but addresses."""

from __future__ import annotations

from dataclasses import dataclass

from ..arrays.device import current_device
from ..arrays.view import Array
from ..compile.launch import Buffers, Launch, loaded
from ..operands.operand import Operand
from .attend import store_values
from .geometry import KVGeometry
from .operands import token_operands
from .spec import AppendSpec, OffsetSpec

__all__ = ["GIVEN", "AppendCall", "prepare_append"]

# The addresses of a call, in this order. Null are "pages" of a cache without them, "k_offset" of
# one that does not smooth K, and "counts" if all tokens of all sequences are appended.
GIVEN = (
    "units",
    "pages",
    "lengths",
    "limits",
    "k_offset",
    "arrivals",
    "refused",
    "k",
    "v",
    "counts",
)


@dataclass(frozen=True, eq=False)
class AppendCall:
    """What all calls on arrays of the same kinds have in common.

    Attributes
    ----------
    tokens : int
        Of each sequence in the arrays.
    launches : list of Launch
        Empty if there are no tokens.
    buffers : Buffers
        Without a workspace.
    """

    tokens: int
    launches: list[Launch]
    buffers: Buffers


def prepare_append(
    geometry: KVGeometry, k: Array, v: Array, layout: str, fixes_offsets: bool
) -> AppendCall:
    """Check an append on CuPy's current device, plan it and load its kernels.

    Parameters
    ----------
    geometry : KVGeometry
    k, v : Array
        Axes [batch, num_kv_heads, token, head_dim] or as the layout says; the last one contiguous.
    layout : {"HND", "NHD"}
    fixes_offsets : bool
        Whether some sequences may be empty, whose keys get their offsets first. False if K is not
        smoothed.

    Raises
    ------
    ArgumentError
        As `token_operands`.
    NoGPUError, UnsupportedError, CompileError
        As `cuattn.attention`.
    """
    of_k, of_v = token_operands(geometry, k, v, layout)
    tokens = of_k.tokens
    buffers = Buffers(*GIVEN)
    if not tokens:
        return AppendCall(tokens, [], buffers)
    device = current_device()
    values = {
        "store": store_values(geometry, buffers),
        **{name: buffers[name] for name in ("k", "v", "counts", "limits", "arrivals", "refused")},
        **_strides("k", of_k),
        **_strides("v", of_v),
        "seqlen": tokens,
    }
    launches = []
    if fixes_offsets:
        offsets = OffsetSpec(of_k.dtype, geometry.kv_format.head_dim, of_k.aligned)
        launches.append(Launch(offsets, device, (of_k.heads,), values))
    aligned = of_k.aligned and of_v.aligned
    append = AppendSpec.of(geometry.kv_format, of_k.dtype, aligned=aligned)
    grid = (of_k.heads * append.pieces(tokens),)
    launches.append(Launch(append, device, grid, values))
    return AppendCall(tokens, loaded(launches), buffers)


def _strides(name: str, x: Operand) -> dict[str, int]:
    batch, head, token, _ = x.strides
    return {
        f"{name}_stride_batch": batch,
        f"{name}_stride_head": head,
        f"{name}_stride_token": token,
    }
