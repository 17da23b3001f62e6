"""Kernels that the planner can choose, compiled: nothing spilled, the intended instructions.

All of them, for six targets, are about 11 500 and take hours: --slow. Otherwise there are

- for sm_80 and sm_90a, the oldest target of each family of attention kernels, every one of those of
  the schemes that are there for speed, with all head_dims and masks, input types taking turns, and
  of all others so many that any two properties meet with every pair of values;
- for sm_86, sm_89, sm_100a and sm_120a, which have the sources of sm_80, so many of these, each for
  one of the four;
- of the kernels around attention, whose sources are the same for all, so many, each for one of six,
  and at least one of each kind for every target.
"""

from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from helpers.compile_check import complaints
from helpers.kernel_choice import dealt, pairwise

from cuattn.arrays.device import TARGETS, target
from cuattn.plan.kernels import attention_spec, supported
from cuattn.plan.listing import attention_specs
from cuattn.presets import PRESETS
from cuattn.reference.layout import HEAD_DIMS
from cuattn.specs.attention import AttentionSpec, Scope, Type
from cuattn.specs.quantize import QuantizeSpec
from cuattn.specs.smoothing import DeltaSpec
from cuattn.specs.wgmma import WgmmaSpec

pytest.importorskip("cupy")

pytestmark = pytest.mark.usefixtures("compiled_anew")

DTYPES = {"float16": Type.fp16, "bfloat16": Type.bf16, "float32": Type.fp32}


# Besides the presets: groups of channels, what is rotated back, and what is not rotated.
SCHEMES = (
    *PRESETS.values(),
    replace(PRESETS["int4"], name="g32", q_scope="group", k_scope="group", qk_group=32),
    replace(PRESETS["int4"], name="g64", q_scope="group", k_scope="group", qk_group=64),
    replace(PRESETS["int8-fast"], name="rotated", rotate="qkv"),
    replace(PRESETS["int8"], name="plain", rotate="none"),
    replace(PRESETS["int8-token"], name="turned", rotate="qk"),
    replace(PRESETS["int4"], name="plain4", rotate="none"),
)

# Compiled for the targets in WHOLE with every head_dim and mask.
CORE = ("int8", "int8-token", "int8-block", "int8-fast", "int8-fp8", "int4", "fp16")
WHOLE = ("80", "90a")

# Tests that the kernels of a target are spread over: processes share them, and one says now and
# then that it goes on.
PARTS = 8

ATTENDING = (AttentionSpec, WgmmaSpec)


def all_kernels(arch):
    """Return every kernel that calls under SCHEMES can need on a target."""
    specs = {}
    for scheme in supported(target(arch), SCHEMES):
        # Channels come in whole groups.
        group = scheme.qk_group if scheme.k_scope == "group" else 1
        head_dims = [head_dim for head_dim in HEAD_DIMS if head_dim % group == 0]
        specs |= dict.fromkeys(attention_specs([scheme], head_dims, DTYPES, target(arch)))
    return list(specs)


def core_kernels(arch):
    """Return the attention kernels of CORE, types in turn."""
    schemes = supported(target(arch), [PRESETS[name] for name in CORE])
    return list(
        dict.fromkeys(
            attention_spec(scheme, head_dim, list(DTYPES.values())[i % 3], is_causal, target(arch))
            for i, scheme in enumerate(schemes, WHOLE.index(arch))
            for i, (head_dim, is_causal) in enumerate(product(HEAD_DIMS, (False, True)), i)
        )
    )


@cache
def chosen():
    """Return the kernels that are compiled for each target."""
    attending, others = {}, {}
    for arch in TARGETS:
        specs = all_kernels(arch)
        attending[arch] = [spec for spec in specs if isinstance(spec, ATTENDING)]
        others[arch] = [spec for spec in specs if not isinstance(spec, ATTENDING)]
    found = dealt(others)
    for arch in WHOLE:
        core = core_kernels(arch)
        found[arch] += [*core, *pairwise(attending.pop(arch), core)]
    for arch, specs in dealt(attending).items():
        found[arch] += specs
    return found


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


# By head_dim, and whether keys have scales of their own, which take registers beside O and S, or O
# is rotated back. Small ones are the producer's, which has what the others leave. The largest of 64
# channels, 88 bytes, is FP8's with a mask, of which 12 came with the saturation of its output.
WGMMA_SPILL = {
    False: {32: 24, 64: 88, 96: 24, 128: 160, 256: 100},
    True: {32: 280, 64: 750, 96: 280, 128: 800, 192: 300, 256: 1000},
}
# Of sorted keys, whose lanes and sections have scales.
SORTED_SPILL = {32: 80, 64: 140, 96: 56, 128: 60, 192: 24, 256: 400}

# Of a few of the quantizer's many kernels: addresses that loops over tiles keep, never rows.
QUANTIZER_SPILL = 64

# Of the other family, by head_dim.
MMA_SPILL = {32: 0, 64: 200, 96: 200, 128: 200, 192: 640, 256: 1050}


def allowed_spill(spec):
    """Bytes a thread may spill: none, but for kernels whose O and S fill the registers.

    There ptxas keeps a few values of the loop's surroundings in local memory, and no tile that was
    tried spills nothing on every target, or it is slower (docs/lab-notebook.md, sections 5 and 10).
    """
    if isinstance(spec, WgmmaSpec) and spec.k_scope is Scope.sorted:
        return SORTED_SPILL[spec.head_dim]
    if isinstance(spec, WgmmaSpec):
        return WGMMA_SPILL[has_token_scales(spec) or spec.v_rotated].get(spec.head_dim, 0)
    if isinstance(spec, AttentionSpec):
        return MMA_SPILL[spec.head_dim]
    return QUANTIZER_SPILL if isinstance(spec, QuantizeSpec) else 0


def required(spec, native_fp8):
    if isinstance(spec, WgmmaSpec):
        scores, values = WGMMA_PRODUCTS[spec.qk][0], WGMMA_PRODUCTS[spec.pv][1]
        # Tiles come by TMA, scales of tokens, lanes and sections by bulk copies; warpgroups trade
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
    return spec.qk.integer and spec.k_scope in (Scope.token, Scope.thread)


def forbidden(spec):
    """Products of single warps have no place among those of warpgroups."""
    return ("IMMA", "HMMA", "QMMA") if isinstance(spec, WgmmaSpec) else ()


def bounds(arch):
    """Return what to require of the kernel of a spec, and what to allow it."""
    native_fp8 = target(arch).native_e4m3_mma
    return lambda spec: {
        "require": required(spec, native_fp8),
        "forbid": forbidden(spec),
        "max_spill": allowed_spill(spec),
    }


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("arch", TARGETS)
def test_kernels(arch, part):
    assert complaints(chosen()[arch][part::PARTS], arch, bounds(arch)) == ""


@pytest.mark.parametrize("preset", ["int8", "int8-block", "int4"])
@pytest.mark.parametrize("arch", WHOLE)
def test_rotated_rows_stay_in_registers(arch, preset):
    """What a lane has of them is chosen to fill the registers: they must not spill."""
    specs = [
        QuantizeSpec.of(PRESETS[preset], list(DTYPES.values())[i % 3], head_dim, aligned=True)
        for i, head_dim in enumerate(HEAD_DIMS, len(preset))
    ]
    assert all(spec.rotate for spec in specs)
    assert complaints(specs, arch, lambda spec: {"max_spill": QUANTIZER_SPILL}) == ""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10 * PARTS))
@pytest.mark.parametrize("arch", TARGETS)
def test_all_kernels(arch, part):
    assert complaints(all_kernels(arch)[part :: 10 * PARTS], arch, bounds(arch)) == ""
