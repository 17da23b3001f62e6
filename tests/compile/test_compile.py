"""Kernels that the planner can choose, compiled: nothing spilled, the intended instructions.

All of them, for six targets, are about 11 500 and take hours: --slow. Otherwise there are

- for sm_80 and sm_90a, the oldest target of each family of attention kernels, those of the schemes
  that are there for speed with all head_dims, both masks at 64 and 128 channels, masks and input
  types taking turns otherwise;
- of all others of each family so many that any two properties meet with every pair of values: for
  sm_90a, and for the five targets that have the sources of sm_80, each for one of these;
- of the kernels around attention, whose sources are the same for all, so many, each for one of six,
  and at least one of each kind for every target.
"""

from dataclasses import replace
from functools import cache
from itertools import chain, product

import pytest
from helpers.attention_products import forbidden, has_token_scales, required
from helpers.compile_check import complaints
from helpers.kernel_choice import dealt, pairwise

from cuattn.arrays.device import TARGETS, target
from cuattn.plan.kernels import attention_spec, supported
from cuattn.plan.listing import attention_specs
from cuattn.presets import PRESETS
from cuattn.reference.layout import HEAD_DIMS, WIDE_HEAD_DIMS
from cuattn.specs.attention import AttentionSpec, Scope, Type
from cuattn.specs.quantize import QuantizeSpec
from cuattn.specs.stats import StatsSpec
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

# Compiled for the targets in WHOLE with every head_dim, and with both masks where most heads are.
CORE = ("int8", "int8-token", "int8-block", "int8-fast", "int8-fp8", "int4", "fp16")
WHOLE = ("80", "90a")
OF_BOTH_MASKS = (64, 128)

# With another head_dim of V.
OF_VALUE_DIMS = ("int8", "int8-block", "int8-fast", "int8-fp16", "int4", "fp8", "fp16")

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
    """Return the attention kernels of CORE; types, and masks of some head_dims, take turns."""
    specs = []
    schemes = supported(target(arch), [PRESETS[name] for name in CORE])
    for first, scheme in enumerate(schemes, WHOLE.index(arch)):
        for i, (head_dim, is_causal) in enumerate(product(HEAD_DIMS, (False, True)), first):
            if head_dim in OF_BOTH_MASKS or is_causal == (first + HEAD_DIMS.index(head_dim)) % 2:
                kind = scheme, head_dim, list(DTYPES.values())[i % 3], is_causal
                specs.append(attention_spec(*kind, target(arch)))
    return list(dict.fromkeys(specs))


@cache
def chosen():
    """Return the kernels that are compiled for each target."""
    attending, others = {}, {}
    for arch in TARGETS:
        specs = all_kernels(arch)
        attending[arch] = [spec for spec in specs if isinstance(spec, ATTENDING)]
        others[arch] = [spec for spec in specs if not isinstance(spec, ATTENDING)]
    found = dealt(others)
    core = {arch: core_kernels(arch) for arch in WHOLE}
    found["90a"] += pairwise(attending.pop("90a"), core["90a"])
    for arch, specs in chain(core.items(), dealt(attending).items()):
        found[arch] += specs
    return {arch: list(dict.fromkeys(specs)) for arch, specs in found.items()}


# By head_dim, and whether keys have scales of their own, which take registers beside O and S, or O
# is rotated back. Small ones are the producer's, which has what the others leave. The largest of 64
# channels, 88 bytes, is FP8's with a mask, of which 12 came with the saturation of its output.
WGMMA_SPILL = {
    False: {32: 24, 64: 88, 96: 24, 128: 160, 256: 100},
    True: {32: 280, 64: 750, 96: 280, 128: 800, 192: 320, 256: 1050},
}
# Of sorted keys, whose lanes and sections have scales.
SORTED_SPILL = {32: 80, 64: 140, 96: 56, 128: 60, 192: 24, 256: 400}

# Of a few of the quantizer's many kernels: addresses that loops over tiles keep, never rows.
QUANTIZER_SPILL = 64
# Lanes have 48 to 80 floats of a row that is rotated, beside what is loaded of it.
WIDE_QUANTIZER_SPILL = 368

# Of the other family, by the larger head_dim.
MMA_SPILL = {32: 0, 64: 200, 96: 200, 128: 240, 192: 640, 256: 1050} | dict.fromkeys(
    WIDE_HEAD_DIMS, 300
)


def allowed_spill(spec):
    """Bytes a thread may spill: none, but for kernels whose O and S fill the registers.

    There ptxas keeps a few values of the loop's surroundings in local memory, and no tile that was
    tried spills nothing on every target, or it is slower (docs/lab-notebook.md, sections 5 and 10).
    """
    if isinstance(spec, WgmmaSpec) and spec.k_scope is Scope.sorted:
        return SORTED_SPILL[spec.head_dim_v]
    if isinstance(spec, WgmmaSpec):
        return WGMMA_SPILL[has_token_scales(spec) or spec.v_rotated].get(spec.head_dim_v, 0)
    if isinstance(spec, AttentionSpec):
        return MMA_SPILL[max(spec.head_dim, spec.head_dim_v)]
    if isinstance(spec, QuantizeSpec):
        return WIDE_QUANTIZER_SPILL if spec.head_dim > HEAD_DIMS[-1] else QUANTIZER_SPILL
    return 0


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


# What quantizes sorted keys, keys in their order, and to 4 bits.
QUANTIZING = ("int8", "int8-block", "int4")


@pytest.mark.parametrize("preset", QUANTIZING)
@pytest.mark.parametrize("arch", WHOLE)
def test_rotated_rows_stay_in_registers(arch, preset):
    """What a lane has of them is chosen to fill the registers: they must not spill."""
    specs = [
        QuantizeSpec.of(PRESETS[preset], list(DTYPES.values())[i % 3], head_dim, aligned=True)
        for i, head_dim in enumerate(HEAD_DIMS, len(preset))
    ]
    # The targets have the same sources: each for one of them.
    specs = specs[(WHOLE.index(arch) + QUANTIZING.index(preset)) % 2 :: 2]
    assert all(spec.rotate for spec in specs)
    assert complaints(specs, arch, lambda spec: {"max_spill": QUANTIZER_SPILL}) == ""


# Of V another one than of Q and K. Each scheme has the first, which models have, for both families,
# each of the others for one of them, and each mask with some.
VALUE_DIMS = ((192, 128), (128, 64), (64, 128), (96, 256))


@pytest.mark.parametrize("dims", VALUE_DIMS, ids=str)
@pytest.mark.parametrize("arch", WHOLE)
def test_kernels_with_a_head_dim_of_v(arch, dims):
    head_dim, head_dim_v = dims
    specs = []
    for i, scheme in enumerate(supported(target(arch), [PRESETS[x] for x in OF_VALUE_DIMS])):
        dtype, turn = list(DTYPES.values())[i % 3], (i + VALUE_DIMS.index(dims)) % 2
        if dims == VALUE_DIMS[0] or (i // 2 + WHOLE.index(arch)) % 2:
            kind = scheme, head_dim, dtype, turn == 1, target(arch)
            specs.append(attention_spec(*kind, head_dim_v=head_dim_v))
        if turn == WHOLE.index(arch):  # the targets have the same sources
            kind = scheme, dtype, head_dim, i % 2 == 0
            specs.append(QuantizeSpec.of(*kind, head_dim_v=head_dim_v))
    assert complaints(specs, arch, bounds(arch)) == ""


# Of every architecture's shared memory one, and what quantizes, whose sources are the same for all.
OF_WIDE = {
    "80": (("int8", "fp16"), ("int8", "fp16")),
    "89": (("int8-block", "int4"), ("int4",)),
    "90a": (("int8-block", "fp16"), ("int8-block",)),
    "120a": (("int8", "int8-token"), ("int8-token",)),
}


@pytest.mark.parametrize("arch", OF_WIDE)
def test_kernels_of_many_channels(arch):
    specs = []
    attending, quantizing = OF_WIDE[arch]
    for i, (name, head_dim) in enumerate(product(attending, WIDE_HEAD_DIMS)):
        scheme, dtype = PRESETS[name], list(DTYPES.values())[i % 3]
        if name != "fp16" or head_dim < 512 or arch in ("80", "90a"):
            specs.append(attention_spec(scheme, head_dim, dtype, i % 2 == 0, target(arch)))
        if name in quantizing:
            specs.append(QuantizeSpec.of(scheme, dtype, head_dim, aligned=i % 2 == 0))
        stats = StatsSpec.of(scheme, dtype, head_dim, aligned=i % 2 == 1)
        specs += [stats, stats.finish] if i % 3 == 0 else []
    assert complaints(specs, arch, bounds(arch)) == ""


@pytest.mark.parametrize("preset", QUANTIZING)
def test_quantizers_of_very_different_rows(preset):
    specs = [
        QuantizeSpec.of(PRESETS[preset], dtype, head_dim, aligned=True, head_dim_v=head_dim_v)
        for dtype, (head_dim, head_dim_v) in zip(
            (Type.fp16, Type.fp32, Type.fp32), ((256, 32), (192, 96), (32, 256)), strict=True
        )
    ]
    assert complaints(specs, "90a", bounds("90a")) == ""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10 * PARTS))
@pytest.mark.parametrize("arch", TARGETS)
def test_all_kernels(arch, part):
    assert complaints(all_kernels(arch)[part :: 10 * PARTS], arch, bounds(arch)) == ""
