"""Every kernel that calls of some kinds can need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

from ..arrays.device import Target
from ..operands.operand import DTYPES
from ..presets import resolve
from ..reference.layout import pad_head_dim
from ..scheme import Scheme
from ..specs.attention import Type
from ..specs.mask_map import MaskMapSpec
from ..specs.merge import MergeSpec
from ..specs.quantize import QuantizeSpec
from ..specs.rates import MemoryRateSpec, ProductRateSpec, RateSpec
from ..specs.rotate import RotateSpec
from ..specs.smoothing import BlockMeansSpec, DeltaSpec
from ..specs.stats import StatsSpec
from ..specs.unpack import UnpackSpec
from .kernels import AnySpec, attention_spec, half_type, needs_stats
from .mask_map import MASK_KINDS

__all__ = ["attention_specs", "mask_map_specs", "merge_specs", "quantizer_specs", "rate_specs"]


def attention_specs(
    schemes: Iterable[str | Scheme], head_dims: Iterable[int], dtypes: Iterable[str], target: Target
) -> list[AnySpec]:
    """List every kernel that calls of these kinds can need, each once.

    Parameters
    ----------
    schemes : iterable of str or Scheme
    head_dims : iterable of int
        Of the inputs; padded here.
    dtypes : iterable of {"float16", "bfloat16", "float32"}
        Of the inputs.
    target : Target
        From `cuattn.arrays.device.target`.

    Raises
    ------
    ArgumentError
        For an unknown scheme or a head_dim that has no kernel.
    UnsupportedError
        As `attention_spec`.
    """
    kinds = product(
        [resolve(scheme) for scheme in schemes],
        [pad_head_dim(head_dim) for head_dim in head_dims],
        [DTYPES[dtype] for dtype in dtypes],
    )
    specs: dict[AnySpec, None] = {}
    for scheme, head_dim, dtype in kinds:
        for is_causal, long_kv in product((False, True), repeat=2):
            spec = attention_spec(scheme, head_dim, dtype, is_causal, target, long_kv=long_kv)
            specs[spec] = None
        specs.update(dict.fromkeys(quantizer_specs(scheme, head_dim, dtype)))
    return list(specs)


def quantizer_specs(scheme: Scheme, head_dim: int, dtype: Type) -> Iterator[AnySpec]:
    """List the kernels that convert inputs of a type and padded head dimension."""
    for aligned in (True, False):
        kind = (dtype, head_dim, aligned)
        # Aligned inputs that have the products' type already are used as they are.
        if scheme.qk != "fp16" or half_type(scheme, dtype) is not dtype or not aligned:
            # Packed for native products, and for `cuattn.quantize`.
            for packed in ((False, False), (True, False), (True, True)):
                yield QuantizeSpec.of(scheme, *kind, *packed)
        if any(needs_stats(scheme)):
            stats = StatsSpec.of(scheme, *kind)
            yield stats
            yield stats.finish
        if scheme.smooth_q != "none":
            yield BlockMeansSpec(*kind)
            yield DeltaSpec(*kind)
        if scheme.rotates("v"):
            yield RotateSpec(*kind)
    if scheme.smooth_q != "none":
        yield DeltaSpec(Type.fp32, head_dim, aligned=True)  # of keys that were quantized
    if scheme.rotates("v"):
        for packed_v in (False, True):
            yield QuantizeSpec.of_rotated_values(scheme, head_dim, packed_v)
        if scheme.v_scope in ("channel", "tensor"):
            stats = StatsSpec.of_rotated_values(head_dim)
            yield stats
            yield stats.finish
    if "int4" in (scheme.qk, scheme.pv):
        yield UnpackSpec()


def merge_specs(dtypes: Iterable[str]) -> list[MergeSpec]:
    """List the kernels that merge states of these types, {"float16", "bfloat16", "float32"}."""
    kinds = product([DTYPES[dtype] for dtype in dtypes], (True, False), (True, False))
    # With more parts than a launch takes, all launches but the last leave float32.
    specs = [MergeSpec(x, x if last else Type.fp32, aligned) for x, aligned, last in kinds]
    return list(dict.fromkeys(specs))


def mask_map_specs() -> list[MaskMapSpec]:
    """List the kernels that look at masks, of every type."""
    return [MaskMapSpec(kind) for kind in MASK_KINDS.values()]


def rate_specs(target: Target) -> list[RateSpec]:
    """List the kernels that measure what GPUs of a target can do at most."""
    types = [x for x in (Type.int8, Type.e4m3, Type.fp16) if x is not Type.e4m3 or target.has_e4m3]
    kinds = (True, False) if target.arch == "90a" else (False,)
    return [
        *(MemoryRateSpec(writes) for writes in (True, False)),
        *(ProductRateSpec(x, warpgroups) for x in types for warpgroups in kinds),
    ]
