"""Every kernel that the planner can choose, compiled: nothing spilled, the intended instructions.

Every target gets all head_dims and masks of the attention kernels of the schemes that are there for
speed; of the others Hopper gets a half and every other target a sixth, and of the quantizing
kernels each target gets an eighth. Input types take turns. All of everything runs with --slow.
"""

from dataclasses import replace
from itertools import product

import pytest
from helpers.compile_check import complaints

from cuattn.arrays.device import TARGETS, target
from cuattn.plan.kernels import attention_spec, supported
from cuattn.plan.listing import attention_specs, quantizer_specs
from cuattn.presets import PRESETS
from cuattn.reference.layout import HEAD_DIMS
from cuattn.specs.attention import AttentionSpec, Scope, Type
from cuattn.specs.quantize import QuantizeSpec
from cuattn.specs.smoothing import DeltaSpec
from cuattn.specs.wgmma import WgmmaSpec

pytest.importorskip("cupy")

pytestmark = pytest.mark.usefixtures("compiled_anew")

DTYPES = {"float16": Type.fp16, "bfloat16": Type.bf16, "float32": Type.fp32}


# Besides the presets: groups of channels, and what is rotated back.
SCHEMES = (
    *PRESETS.values(),
    replace(PRESETS["int4"], name="g32", q_scope="group", k_scope="group", qk_group=32),
    replace(PRESETS["int4"], name="g64", q_scope="group", k_scope="group", qk_group=64),
    replace(PRESETS["int8-fast"], name="rotated", rotate=True),
)

# Compiled for every target, with every head_dim and mask; the others take turns.
CORE = ("int8", "int8-block", "int8-fast", "int8-fp8", "int4", "fp16")


def combinations(arch):
    """Return a scheme, head_dim and mask for each kernel, many of which several schemes share.

    Each has its place in all combinations before it.
    """
    found, turn = {}, list(TARGETS).index(arch)
    for i, kind in enumerate(product(SCHEMES, HEAD_DIMS, (False, True))):
        scheme, head_dim, is_causal = kind
        if not supported(target(arch), [scheme]) or not takes(scheme, head_dim):
            continue
        spec = attention_spec(scheme, head_dim, Type.fp16, is_causal, target(arch))
        if scheme.name in CORE or (i // 2 + turn) % (2 if arch == "90a" else 6) == 0:
            found.setdefault(spec, (i, *kind))
    return list(found.values())


def takes(scheme, head_dim):
    """Whether channels come in whole groups."""
    return scheme.k_scope != "group" or head_dim % scheme.qk_group == 0


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


# Those that convert to e4m3, whether or not they have kernels that multiply it.
E4M3_TARGETS = ("89", "90a", "100a", "120a")


# By head_dim, and whether keys have scales of their own, which take registers beside O and S, or O
# is rotated back. Small
# ones are the producer's, which has what the others leave.
WGMMA_SPILL = {
    False: {32: 24, 64: 80, 96: 24, 128: 160, 256: 100},
    True: {32: 280, 64: 750, 96: 280, 128: 800, 192: 300, 256: 1000},
}

# Of the other family, by head_dim.
MMA_SPILL = {32: 0, 64: 200, 96: 200, 128: 200, 192: 640, 256: 1050}


def allowed_spill(spec):
    """Bytes a thread may spill: none, but for kernels whose O and S fill the registers.

    There ptxas keeps a few values of the loop's surroundings in local memory, and no tile that was
    tried spills nothing on every target, or it is slower (docs/lab-notebook.md, sections 5 and 10).
    """
    if isinstance(spec, WgmmaSpec):
        return WGMMA_SPILL[has_token_scales(spec) or spec.v_rotated].get(spec.head_dim, 0)
    if isinstance(spec, AttentionSpec):
        return MMA_SPILL[spec.head_dim]
    # A few of the quantizer's many kernels spill two to four values, on one target each.
    return 16 if isinstance(spec, QuantizeSpec) else 0


def required(spec, native_fp8):
    if isinstance(spec, WgmmaSpec):
        scores, values = WGMMA_PRODUCTS[spec.qk][0], WGMMA_PRODUCTS[spec.pv][1]
        # Tiles come by TMA, scales of tokens by bulk copies; warpgroups trade registers.
        names = [scores.format(spec.block_kv), values.format("*"), "UTMALDG", "USETMAXREG"]
        return [*names, "UBLKCP"] if has_token_scales(spec) else names
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
    return spec.qk.integer and spec.k_scope in (Scope.token, Scope.thread)


def forbidden(spec):
    """Products of single warps have no place among those of warpgroups."""
    return ("IMMA", "HMMA", "QMMA") if isinstance(spec, WgmmaSpec) else ()


def attention_kernels(arch):
    """Yield a spec for each of `combinations`."""
    turn = list(TARGETS).index(arch)
    for i, scheme, head_dim, is_causal in combinations(arch):
        dtype = list(DTYPES.values())[(i + turn // 2) % len(DTYPES)]
        yield attention_spec(scheme, head_dim, dtype, is_causal, target(arch))


def long_kernels(arch):
    """Yield the kernels that only sequences of very many keys need."""
    for _, scheme, head_dim, is_causal in combinations(arch):
        kind = scheme, head_dim, Type.fp16, is_causal, target(arch)
        spec = attention_spec(*kind, long_kv=True)
        if spec != attention_spec(*kind):
            yield spec


def other_kernels(arch):
    turn = list(TARGETS).index(arch)
    able = [s for s in SCHEMES if "fp8" not in (s.qk, s.pv) or arch in E4M3_TARGETS]
    found = {}
    for i, (scheme, head_dim) in enumerate(product(able, HEAD_DIMS), turn):
        if not takes(scheme, head_dim):
            continue
        dtype = list(DTYPES.values())[i % len(DTYPES)]
        found |= dict.fromkeys(quantizer_specs(scheme, head_dim, dtype))
    return list(found)[turn::8]


def bounds(arch):
    """Return what to require of the kernel of a spec, and what to allow it."""
    native_fp8 = target(arch).native_e4m3_mma
    return lambda spec: {
        "require": required(spec, native_fp8),
        "forbid": forbidden(spec),
        "max_spill": allowed_spill(spec),
    }


@pytest.mark.parametrize("arch", TARGETS)
def test_attention_kernels(arch):
    assert complaints(attention_kernels(arch), arch, bounds(arch)) == ""


def test_kernels_for_very_many_keys():
    arch = "90a"
    kernels = list(long_kernels(arch))
    # Of int8-fast with and without a mask, and half of the same, rotated.
    assert len(kernels) == 3 * len(HEAD_DIMS)
    assert complaints(kernels, arch, bounds(arch)) == ""


@pytest.mark.parametrize("arch", TARGETS)
def test_quantizing_kernels(arch):
    assert complaints(other_kernels(arch), arch, bounds(arch)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("arch", TARGETS)
def test_all_kernels(arch):
    specs = attention_specs(supported(target(arch)), HEAD_DIMS, DTYPES, target(arch))
    assert complaints(specs, arch, bounds(arch)) == ""


def test_every_combination_meets_every_type():
    types = {}
    for arch in TARGETS:
        for combination, spec in zip(combinations(arch), attention_kernels(arch), strict=True):
            types.setdefault(combination, set()).add(spec.out)
    everywhere = set.intersection(*(set(combinations(arch)) for arch in TARGETS))
    assert everywhere
    assert all(types[combination] == set(DTYPES.values()) for combination in everywhere)
