"""Shared memory of the kernels that quantize; mirrors quant/storage.cuh."""

from __future__ import annotations

from typing import Protocol

from ..common.sizes import round_up
from ..reference.layout import TOKEN_PAD
from ..reference.sorting import PLACE_SCALES
from .attention import Scope, Type

__all__ = ["LARGE_SMEM", "RESERVED", "SMEM", "storage_bytes"]

# What a CTA may have on every GPU; what a multiprocessor of those with much of it has, and what of
# that the driver keeps for itself for each CTA.
SMEM = 96 * 1024
LARGE_SMEM = 164 * 1024
RESERVED = 1024

# Of each token of a sorted block two largest magnitudes, what makes codes of K and of V, and two
# bytes; and a largest magnitude for each scale. `SortedTokens` in quant/token_ranks.cuh.
_SORTING = (4 * 4 + 2) * TOKEN_PAD + 8 * PLACE_SCALES

# What rows lie at multiples of: all banks.
_BANKS = 128


class _Stored(Protocol):
    """What `QuantizeSpec` says of what its kernel has in shared memory."""

    @property
    def input(self) -> Type: ...
    @property
    def q(self) -> Type: ...
    @property
    def v(self) -> Type: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def head_dim_v(self) -> int: ...
    @property
    def q_scope(self) -> Scope: ...
    @property
    def k_scope(self) -> Scope: ...
    @property
    def q_smooth(self) -> bool: ...
    @property
    def k_smooth(self) -> bool: ...
    @property
    def v_smooth(self) -> bool: ...
    @property
    def qk_lanes(self) -> int: ...
    @property
    def k_read_again(self) -> bool: ...
    @property
    def q_tile(self) -> int: ...
    @property
    def k_tile(self) -> int: ...
    @property
    def v_tile(self) -> int: ...
    @property
    def num_threads(self) -> int: ...


def storage_bytes(spec: _Stored, staged: bool, v_staged: bool) -> int:
    """Return the bytes of `QuantizeStorage`.

    Parameters
    ----------
    spec : QuantizeSpec
    staged, v_staged : bool
        Whether rows of Q and K, and those of V, are staged; the spec's own properties ask first.
    """
    row_bytes = spec.head_dim * spec.input.nbytes
    v_row_bytes = spec.head_dim_v * spec.input.nbytes
    is_sorted = spec.k_scope is Scope.sorted
    warps = spec.num_threads // 32
    unit = _BANKS if staged else 16

    codes = spec.v_tile * spec.head_dim_v if spec.v.coded else 16
    rows = max(spec.q_tile, spec.k_tile) * row_bytes if staged else 0
    values = max(codes, spec.v_tile * v_row_bytes if v_staged else 0)
    # Where keys are sorted there is V beside K; codes of V take its place.
    tiles = rows + values if staged and is_sorted else max(rows, values)
    sorting = _SORTING if is_sorted else 0

    # What smoothing subtracts from Q or K, if it is in shared memory, and from V: for each warp.
    shared = spec.q.coded and (staged or spec.qk_lanes > 0)
    smooth = spec.q_smooth or (spec.k_smooth and not spec.k_read_again)
    vectors = spec.head_dim if shared and smooth else 0
    vectors += spec.head_dim_v if v_staged and spec.v_smooth else 0
    maxima = max(
        warps,
        spec.q_tile // 4 if spec.q_scope is Scope.thread else 0,
        spec.k_tile // 16 if spec.k_scope is Scope.thread else 0,
    )
    floats = 2 * max(spec.head_dim, spec.head_dim_v) + warps * vectors + maxima
    return round_up(round_up(sorting, unit) + round_up(tiles, unit) + 4 * floats, unit)
