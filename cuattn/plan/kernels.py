"""Which kernels serve a call: the tuning table, and what fits a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache

from ..arrays.device import Target, current_device, gpu_status
from ..arrays.device import target as target_of
from ..errors import UnsupportedError
from ..presets import PRESETS
from ..reference.layout import HEAD_DIMS, WIDE_HEAD_DIMS
from ..scheme import Scheme
from ..specs.attention import AttentionSpec, PRange, Scope, Type
from ..specs.coding import Name, code_type, stored_scope
from ..specs.quantize import QuantizeSpec
from ..specs.rotate import RotateSpec
from ..specs.rules import PLAIN, Rules
from ..specs.smoothing import BlockMeansSpec, DeltaSpec
from ..specs.stats import FinishSpec, StatsSpec
from ..specs.unpack import UnpackSpec
from ..specs.wgmma import WgmmaSpec
from .kernels_sm90 import wgmma_serves, wgmma_spec

__all__ = [
    "SCALED_TILES",
    "TILES",
    "AnyAttentionSpec",
    "AnySpec",
    "Tile",
    "attention_spec",
    "check_supported",
    "half_type",
    "has_kernels",
    "needs_stats",
    "runnable",
    "supported",
]

AnyAttentionSpec = AttentionSpec | WgmmaSpec
AnySpec = (
    AnyAttentionSpec
    | QuantizeSpec
    | StatsSpec
    | FinishSpec
    | BlockMeansSpec
    | DeltaSpec
    | RotateSpec
    | UnpackSpec
)

# Channels of the kernels that all targets have; more are for the family of mma.sync alone.
_WIDEST = HEAD_DIMS[-1]

# Shared memory that the driver takes of every CTA.
_RESERVED_SMEM = 1024


@dataclass(frozen=True)
class Tile:
    """The fields of `AttentionSpec` that change speed and no number."""

    num_warps: int
    row_tiles: int
    stages: int
    q_in_registers: bool
    min_ctas: int


# (family, P V, padded head_dim), for every target that `kernels_sm90` does not serve. Rows were
# measured against their neighbours on an H200; docs/lab-notebook.md, sections 4 and 5. Warps drift
# apart inside a CTA, but whole CTAs do so more.
TILES: dict[tuple[str, Type, int], Tile] = {
    # S of 128 keys takes 64 registers a thread, O of 16 rows up to 64, so 255 are for two CTAs of
    # four warps. Three CTAs with 168 are 5 % faster where ptxas fits them; mostly it spills.
    ("mma", Type.int8, 32): Tile(4, 1, 2, True, 2),
    ("mma", Type.int8, 64): Tile(4, 1, 2, True, 2),
    # Q in shared memory leaves its registers to O.
    ("mma", Type.int8, 96): Tile(4, 1, 2, False, 2),
    ("mma", Type.int8, 128): Tile(4, 1, 2, False, 2),
    ("mma", Type.int8, 192): Tile(4, 1, 2, False, 2),
    # The tiles take half of the shared memory: one CTA, of twice the rows.
    ("mma", Type.int8, 256): Tile(8, 1, 2, False, 1),
    # S of 64 keys leaves room for two row tiles, which share what is read of V.
    ("mma", Type.fp16, 32): Tile(4, 2, 2, False, 2),
    ("mma", Type.fp16, 64): Tile(4, 2, 2, False, 2),
    ("mma", Type.fp16, 96): Tile(4, 1, 2, False, 2),
    ("mma", Type.fp16, 128): Tile(4, 2, 2, False, 2),
    ("mma", Type.fp16, 192): Tile(8, 1, 2, False, 1),
    ("mma", Type.fp16, 256): Tile(8, 1, 2, False, 1),
}

# Of more channels; `_smaller_and_smaller` makes it what shared memory holds.
_WIDE_TILE = Tile(8, 1, 2, False, 1)

# What differs where scores have scales, or a caller's expressions, which take registers too.
SCALED_TILES: dict[tuple[str, Type, int], Tile] = {
    ("mma", Type.fp16, 128): Tile(4, 1, 2, False, 2),
}


def half_type(scheme: Scheme, dtype: Type) -> Type:
    """Return the type of operands that are not quantized, for inputs of a type."""
    return Type.bf16 if scheme.qk == "fp16" and dtype is Type.bf16 else Type.fp16


def needs_stats(scheme: Scheme) -> tuple[Name, ...]:
    """Return the operands that must be looked at as a whole before they are quantized.

    V has a second look, after it has been rotated.
    """
    v_range = scheme.v_scope in ("channel", "tensor") and not scheme.rotates("v")
    wanted: dict[Name, bool] = {
        "q": scheme.q_scope == "tensor",
        "k": scheme.k_scope == "tensor" or scheme.smooth_k != "none",
        "v": v_range or scheme.smooth_v != "none",
    }
    return tuple(x for x, wants in wanted.items() if wants and code_type(scheme, x) is not None)


def check_supported(scheme: Scheme, target: Target) -> None:
    """Refuse a scheme whose products no kernel for the target computes.

    Raises
    ------
    UnsupportedError
    """
    if "fp8" in (scheme.qk, scheme.pv) and not target.has_e4m3:
        raise UnsupportedError(
            f"scheme {scheme.name} multiplies in FP8, which sm_{target.arch} has no instructions "
            f"for; 'int8-block' is as fast as its INT8 products, and more accurate"
        )


def supported(target: Target, schemes: Iterable[Scheme] = PRESETS.values()) -> list[Scheme]:
    """Return those of some schemes, by default the presets, that have kernels for a target."""
    found = []
    for scheme in schemes:
        try:
            check_supported(scheme, target)
        except UnsupportedError:
            continue
        found.append(scheme)
    return found


def runnable(schemes: Iterable[Scheme] = PRESETS.values()) -> list[Scheme]:
    """Return those of some schemes that can be measured here: without a GPU all are emulated."""
    if gpu_status()[0] != "ok":
        return list(schemes)
    return supported(target_of(current_device().arch), schemes)


@cache
def attention_spec(
    scheme: Scheme,
    head_dim: int,
    dtype: Type,
    is_causal: bool,
    target: Target,
    *,
    long_kv: bool = False,
    rules: Rules = PLAIN,
    head_dim_v: int | None = None,
) -> AnyAttentionSpec:
    """Return the attention kernel for inputs and output of a type and padded head dimension.

    Parameters
    ----------
    long_kv : bool
        Whether there are more than `kernels_sm90.INTEGER_O_KEYS` keys.
    rules : Rules
        What happens to scores besides.
    head_dim_v : int, optional
        That of V and the output, padded, if without padding it is another one.

    Raises
    ------
    UnsupportedError
        If the target has no kernel of the scheme's products, or none fits its shared memory, or
        head dimensions are too large for the scheme.
    """
    check_supported(scheme, target)
    _check_width(scheme, head_dim, head_dim_v)
    half = half_type(scheme, dtype)
    # Parts of V's channels, as few as leave a warp the registers of its O.
    v_parts = 1 if (head_dim_v or head_dim) <= _WIDEST else 2
    equal_rows = scheme.qk == scheme.pv == "fp16" and head_dim_v is None and v_parts == 1
    head_dim_v = head_dim if head_dim_v is None else head_dim_v
    dims = head_dim, head_dim_v
    if max(dims) <= _WIDEST and wgmma_serves(target, scheme):
        mask = is_causal, rules
        return wgmma_spec(scheme, half, dims, dtype, mask, target, long_kv=long_kv)
    codes = code_type(scheme, "v")
    # Registers are for O, and for Q or what is read of K; shared memory is for all.
    row = "mma", Type.fp16 if codes is None else Type.int8, max(dims)
    plain = scheme.qk == "fp16" and not rules.hide_anywhere
    tile = _WIDE_TILE
    if max(dims) <= _WIDEST:
        tile = TILES[row] if plain else SCALED_TILES.get(row, TILES[row])
    if scheme.k_scope == "group":
        # Q is read once for every two tiles of keys, with its scales.
        tile = replace(tile, row_tiles=1, q_in_registers=True)
    spec = AttentionSpec(
        qk=Type.int4 if _native_int4(scheme, head_dim, target) else code_type(scheme, "q") or half,
        pv=codes or half,
        out=dtype,
        head_dim=head_dim,
        head_dim_v=head_dim_v // v_parts,
        v_parts=v_parts,
        equal_rows=equal_rows,
        k_scope=stored_scope(scheme, "k") if scheme.qk != "fp16" else Scope.block,
        qk_group=scheme.qk_group if scheme.k_scope == "group" else 0,
        v_scope=stored_scope(scheme, "v") if codes else Scope.channel,
        p_range=PRange(scheme.p_range),
        p_terms=scheme.p_terms,
        q_smooth=scheme.smooth_q != "none",
        v_rotated=scheme.rotates("v"),
        is_causal=is_causal,
        rules=rules,
        block_kv=scheme.p_block,
        **asdict(tile),
    )
    for candidate in _smaller_and_smaller(spec):
        if candidate.smem_bytes <= target.max_smem_per_cta:
            of_sm = target.max_smem_per_sm // (candidate.smem_bytes + _RESERVED_SMEM)
            return replace(candidate, min_ctas=min(spec.min_ctas, of_sm))
    raise UnsupportedError(
        f"scheme {scheme.name} with head_dim {max(dims)} needs more shared memory "
        f"than the {target.max_smem_per_cta} bytes of sm_{target.arch}"
    )


def _check_width(scheme: Scheme, head_dim: int, head_dim_v: int | None) -> None:
    """Refuse more channels than kernels of a scheme have.

    Raises
    ------
    UnsupportedError
    """
    if max(head_dim, head_dim_v or 0) <= _WIDEST:
        return
    if scheme.k_scope == "group" and head_dim > _WIDEST:
        # Q would have to be in registers, all of it.
        raise UnsupportedError(
            f"scheme {scheme.name} has scales of groups of channels, of which kernels take "
            f"head_dim up to {_WIDEST}, not {head_dim}; 'int4' takes up to {WIDE_HEAD_DIMS[-1]}"
        )
    if scheme.q_scope in ("block", "thread") and head_dim > _WIDEST:
        # A CTA of the quantizer would have to hold all of them at a time.
        raise UnsupportedError(
            f"scheme {scheme.name} has scales of several queries, of which kernels take head_dim "
            f"up to {_WIDEST}, not {head_dim}; 'int8' takes up to {WIDE_HEAD_DIMS[-1]}"
        )
    if scheme.rotates("v") and (head_dim_v or head_dim) > _WIDEST:
        # No CTA has all channels of a row of O.
        raise UnsupportedError(
            f"scheme {scheme.name} rotates V, of which kernels take head_dim up to {_WIDEST}, not "
            f"{head_dim_v or head_dim}; with rotate='qk' up to {WIDE_HEAD_DIMS[-1]}"
        )


def has_kernels(scheme: Scheme, head_dim: int, target: Target) -> bool:
    """Whether a target has kernels of a scheme for a padded head dimension."""
    try:
        attention_spec(scheme, head_dim, Type.fp32, True, target)
    except UnsupportedError:
        return False
    return True


def _native_int4(scheme: Scheme, head_dim: int, target: Target) -> bool:
    """Whether Q Kᵀ is to be multiplied in 4 bits, of which one step of k has 64."""
    whole_steps = head_dim % 64 == 0 and (scheme.k_scope != "group" or scheme.qk_group == 64)
    return scheme.qk == "int4" and target.native_s4 and whole_steps


def _smaller_and_smaller(spec: AttentionSpec) -> Iterator[AttentionSpec]:
    """Give up rows first, then the overlap of copies with arithmetic.

    Of many channels also that scores are made once for 160 to 256 channels of V.
    """
    yield from _fewer_rows(spec)
    if spec.head_dim > _WIDEST and not spec.v_rotated:
        for channels in (128, 96, 64):
            parts, rest = divmod(spec.channels_v, channels)
            if not rest and parts > spec.v_parts:
                yield from _fewer_rows(replace(spec, head_dim_v=channels, v_parts=parts, stages=1))


def _fewer_rows(spec: AttentionSpec) -> Iterator[AttentionSpec]:
    for stages in range(spec.stages, 0, -1):
        # Warps of a CTA that hide anything. Of many channels, fewer than four would wait for K
        # longer than copies that no arithmetic hides take eight.
        fewest = 4 if stages > 1 and max(spec.head_dim, spec.channels_v) > _WIDEST else 2
        smaller = replace(spec, stages=stages)
        yield smaller
        while smaller.row_tiles > 1 or smaller.num_warps // 2 >= fewest:
            if smaller.row_tiles > 1:
                smaller = replace(smaller, row_tiles=smaller.row_tiles // 2)
            else:
                smaller = replace(smaller, num_warps=smaller.num_warps // 2)
            yield smaller
