"""The products of compiled attention kernels: instructions that must be there, or must not."""

from cuattn.specs.attention import AttentionSpec, Scope, Type
from cuattn.specs.quantize import QuantizeSpec
from cuattn.specs.smoothing import DeltaSpec
from cuattn.specs.wgmma import WgmmaSpec

__all__ = ["forbidden", "has_token_scales", "required"]

# The mma.sync of each type of operands, A unsigned for P.
PRODUCTS = {
    Type.int8: ("IMMA.16832.S8.S8", "IMMA.16832.U8.S8"),
    Type.int4: ("IMMA.16864.S4.S4", ""),
    Type.e4m3: ("QMMA.16832.F32.E4M3.E4M3", "QMMA.16832.F32.E4M3.E4M3"),
    Type.fp16: ("HMMA.16816.F32", "HMMA.16816.F32"),
    Type.bf16: ("HMMA.16816.F32.BF16", "HMMA.16816.F32.BF16"),
}

# The same of wgmma: 64 rows of a warpgroup, a number of columns, 32 bytes of a row.
WGMMA_PRODUCTS = {
    Type.int8: ("IGMMA.64x{}x32.S8.S8", "IGMMA.64x{}x32.U8.S8"),
    Type.e4m3: ("QGMMA.64x{}x32.F32.E4M3.E4M3", "QGMMA.64x{}x32.F32.E4M3.E4M3"),
    Type.fp16: ("HGMMA.64x{}x16.F32", "HGMMA.64x{}x16.F32"),
    Type.bf16: ("HGMMA.64x{}x16.F32.BF16", "HGMMA.64x{}x16.F32.BF16"),
}


def required(spec, native_fp8):
    """Return the instructions that a kernel must have; of those in FP8 only if there are such."""
    if isinstance(spec, WgmmaSpec):
        scores, values = WGMMA_PRODUCTS[spec.qk][0], WGMMA_PRODUCTS[spec.pv][1]
        # Tiles come by TMA, scales of tokens and sections by bulk copies; warpgroups trade
        # registers.
        names = [scores.format(spec.block_kv), values.format("*"), "UTMALDG", "USETMAXREG"]
        bulk = has_token_scales(spec) or spec.k_scope is Scope.sorted
        return [*names, "UBLKCP"] if bulk else names
    if isinstance(spec, DeltaSpec):
        return PRODUCTS[Type.fp16 if spec.input is Type.fp16 else Type.bf16][:1]
    if not isinstance(spec, AttentionSpec):
        coded = isinstance(spec, QuantizeSpec) and Type.e4m3 in (spec.q, spec.v)
        return ("F2FP.SATFINITE.E4M3",) if coded else ()
    # Of those in FP8 Hopper and its successors make others.
    return [
        product
        for kind, product in ((spec.qk, PRODUCTS[spec.qk][0]), (spec.pv, PRODUCTS[spec.pv][1]))
        if kind is not Type.e4m3 or native_fp8
    ]


def has_token_scales(spec):
    """Whether keys have scales of their own, in a kernel of integers."""
    return spec.qk.integer and spec.k_scope in (Scope.token, Scope.thread)


def forbidden(spec):
    """Products of single warps have no place among those of warpgroups."""
    return ("IMMA", "HMMA", "QMMA") if isinstance(spec, WgmmaSpec) else ()
