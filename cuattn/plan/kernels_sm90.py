"""Which kernels of the Hopper family serve a call: the tuning table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from ..arrays.device import Target
from ..errors import UnsupportedError
from ..scheme import Scheme
from ..specs.attention import PRange, Scope, Type
from ..specs.coding import code_type, stored_scope
from ..specs.rules import PLAIN, Rules
from ..specs.wgmma import Order, WgmmaSpec

__all__ = ["INTEGER_O_KEYS", "wgmma_serves", "wgmma_spec"]

# Keys whose sum of products of P, up to 255, and codes of V, up to 127, int32 is sure to hold. An O
# of int32 is shifted right where the reference of P moves, which makes no number larger.
INTEGER_O_KEYS = (2**31 - 1) // (255 * 127)

# Channels of Q and K whose sums of products leave room for more than themselves in 22 bits.
_MOST_STARTED = 192


@dataclass(frozen=True)
class GroupTile:
    """The fields of `WgmmaSpec` that change speed, and of numbers no more than their rounding."""

    groups: int
    group_registers: int
    value_slice: int
    order: Order
    tied_steps: bool = False
    float_sums: bool = False
    column_starts: bool = False


def wgmma_serves(target: Target, scheme: Scheme) -> bool:
    """Whether a target has these kernels' instructions, and they a scheme's products.

    Scales of groups of channels are not among what they do: a sum over 32 or 64 channels takes its
    own registers, of which a warpgroup has none to spare.
    """
    return target.arch == "90a" and scheme.k_scope != "group"


def wgmma_spec(
    scheme: Scheme,
    half: Type,
    head_dims: tuple[int, int],
    dtype: Type,
    mask: tuple[bool, Rules],
    target: Target,
    *,
    long_kv: bool,
) -> WgmmaSpec:
    """Return the kernel for inputs and output of a type and padded head dimension.

    Parameters
    ----------
    half : Type
        Of operands that are not quantized.
    head_dims : tuple of int
        Of Q and K, and of V.
    mask : tuple
        Whether it is causal, and what happens to scores besides.
    long_kv : bool
        Whether there are more than `INTEGER_O_KEYS` keys.

    Raises
    ------
    UnsupportedError
        If the kernel's tiles do not fit the shared memory.
    """
    is_causal, rules = mask
    head_dim, head_dim_v = head_dims
    qk, pv = code_type(scheme, "q") or half, code_type(scheme, "v") or half
    p_range = PRange(scheme.p_range)
    integer_o = pv is Type.int8 and p_range is PRange.row_pow2 and not long_kv
    k_scope = stored_scope(scheme, "k") if qk.coded else Scope.block
    v_scope = stored_scope(scheme, "v") if pv.coded else Scope.channel
    tile = _tile(pv, p_range, head_dim_v, is_causal=is_causal, integer_o=integer_o)
    if (
        replace(rules, varlen=False) == PLAIN
        and scheme.p_terms == 1
        and p_range in (PRange.block, PRange.row_pow2)
    ):
        # What gains time, of what was measured with 64 and 128 channels.
        plain, is_wide = _plain(qk, pv, k_scope, v_scope), head_dim_v == 128
        if is_causal:
            tied = integer_o and plain and is_wide
            tile = replace(tile, order=Order.ahead if tied else tile.order)
        else:
            tied = (integer_o and plain) or (k_scope is Scope.sorted and is_wide)
        floats = p_range is PRange.block and plain and is_wide
        tile = replace(tile, tied_steps=tied and head_dim_v in (64, 128), float_sums=floats)
    elif rules.mapped or (rules.hide_anywhere and not (rules.score_slope and head_dim_v == 128)):
        # A visit's bits and addresses, or a caller's expressions, take registers that scores in
        # flight would need.
        ties = rules.score_mod is not None and pv is Type.int8 and head_dim_v == 128
        roomy = GroupTile(2, 224, head_dim_v, Order.in_turn, tied_steps=ties)
        is_narrow = head_dim_v <= 64 or (k_scope is Scope.sorted and head_dim_v == 128)
        is_narrow |= (rules.hide_anywhere or rules.change_scores) and head_dim_v <= 128
        tile = roomy if is_narrow else replace(tile, order=Order.in_turn)
    elif _plain(qk, pv, k_scope, v_scope) or k_scope is Scope.sorted:
        tile = _ruled(tile, rules, k_scope, p_range, head_dim_v)
    if _starts_at_columns(scheme, qk, k_scope, head_dim, mask):
        tile = replace(tile, column_starts=True)
        if tile.groups == 3 and head_dim_v in (64, 128):
            tied = k_scope is Scope.sorted or rules.score_slope is not None
            tile = replace(tile, order=Order.in_turn, tied_steps=tied)
    if scheme.smooth_q != "none" and pv.coded and head_dim_v == 128:
        tile = replace(tile, value_slice=64)
    if scheme.p_matrices == 2:
        tile = _roomy(tile, head_dim_v)
    # Nothing but rounding depends on the block: P is not quantized, and no scale is a block's.
    free = pv.nbytes == 2 and not (qk.coded and k_scope is Scope.block)
    spec = WgmmaSpec(
        qk=qk,
        pv=pv,
        out=dtype,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        k_scope=k_scope,
        v_scope=v_scope,
        p_range=p_range,
        p_terms=scheme.p_terms,
        q_smooth=scheme.smooth_q != "none",
        v_rotated=scheme.rotates("v"),
        is_causal=is_causal,
        rules=rules,
        block_kv=128 if free and max(head_dims) <= 128 else scheme.p_block,
        integer_o=integer_o,
        stages=4,
        q_buffers=2,
        **asdict(tile),
    )
    for stages, q_buffers in ((4, 2), (3, 2), (2, 2), (2, 1)):
        candidate = replace(spec, stages=stages, q_buffers=q_buffers)
        if candidate.smem_bytes <= target.max_smem_per_cta:
            return candidate
    raise UnsupportedError(
        f"scheme {scheme.name} with head_dim {max(head_dims)} needs more shared memory than the "
        f"{target.max_smem_per_cta} bytes of sm_{target.arch}"
    )


def _tile(
    pv: Type, p_range: PRange, head_dim_v: int, *, is_causal: bool, integer_o: bool
) -> GroupTile:
    """Rows were measured against their neighbours on an H200: docs/lab-notebook.md, section 10."""
    coded = pv.nbytes == 1
    if head_dim_v > 128:
        # O alone takes 96 or 128 registers a thread.
        parts = (coded and not integer_o) or head_dim_v == 192
        return GroupTile(2, 232, 64 if parts else 128, Order.ahead)
    if head_dim_v <= 64 and coded:
        if p_range is PRange.row_pow2:
            return GroupTile(3, 160, head_dim_v, Order.interleaved)
        return GroupTile(4, 112, head_dim_v, Order.in_turn)
    order = Order.in_turn if is_causal and p_range is PRange.row_pow2 else Order.ahead
    return GroupTile(3, 160, 64 if pv is Type.e4m3 and head_dim_v == 128 else head_dim_v, order)


def _ruled(
    tile: GroupTile, rules: Rules, k_scope: Scope, p_range: PRange, head_dim_v: int
) -> GroupTile:
    """Return the tile of kernels whose rules change scores, or have sinks; measured likewise."""
    is_local, is_sorted = p_range is PRange.block, k_scope is Scope.sorted
    if head_dim_v <= 64 and rules.change_scores:
        if is_local and (rules.softcap or is_sorted):
            return GroupTile(3, 160, head_dim_v, Order.in_turn)
        if is_local or rules.softcap:
            return replace(tile, order=Order.ahead if is_local else Order.in_turn)
    elif head_dim_v == 128:
        if rules.softcap:
            return replace(tile, order=Order.in_turn, tied_steps=is_local)
        if rules.alibi or rules.score_slope:
            return replace(tile, tied_steps=not is_sorted)
        if rules == Rules(sinks=True):
            return replace(tile, float_sums=is_local and not is_sorted)
    return tile


def _starts_at_columns(
    scheme: Scheme, qk: Type, k_scope: Scope, head_dim: int, mask: tuple[bool, Rules]
) -> bool:
    """Whether scores begin at what is linear in the key, for which int32 has the room."""
    is_causal, rules = mask
    of_alibi = rules.alibi and is_causal and rules.score_mod is None
    is_linear = rules.score_slope is not None or of_alibi
    if not is_linear or rules.softcap or rules.biased or scheme.smooth_q != "none":
        return False
    is_local = scheme.p_range == PRange.block.value
    shared = qk is Type.int8 and k_scope in (Scope.block, Scope.sorted)
    return is_local and shared and head_dim <= _MOST_STARTED


def _plain(qk: Type, pv: Type, k_scope: Scope, v_scope: Scope) -> bool:
    """Whether all is INT8 and no scale differs from key to key of a block."""
    scopes = k_scope is Scope.block and v_scope is Scope.channel
    return qk is Type.int8 and pv is Type.int8 and scopes


def _roomy(tile: GroupTile, head_dim_v: int) -> GroupTile:
    """Return the tile with two warpgroups, so that a thread has registers for two matrices of P."""
    value_slice = min(tile.value_slice, 32 if head_dim_v > 64 else 64)
    return GroupTile(2, 224, value_slice, Order.in_turn)
