"""Every kernel that the planner can choose, compiled: nothing spilled, the intended instructions.

Every target gets every scheme, head_dim and mask of the attention kernels, and every scheme and
head_dim of the quantizing ones; input types take turns. All of everything runs with --slow.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, product

import pytest
from compile_check import problems

from cuattn.device import TARGETS, target
from cuattn.plan import attention_spec, attention_specs, quantizer_specs, supported
from cuattn.quantize_spec import QuantizeSpec
from cuattn.reference.layout import HEAD_DIMS
from cuattn.scheme import PRESETS
from cuattn.spec import AttentionSpec, Scope, Type
from cuattn.wgmma_spec import WgmmaSpec

pytest.importorskip("cupy")
from cuattn.compiler import checked_arch
from cuattn.jit import compile_cubin

pytestmark = pytest.mark.usefixtures("compiled_anew")

DTYPES = {"float16": Type.fp16, "bfloat16": Type.bf16, "float32": Type.fp32}


def combinations(arch):
    return list(product(supported(target(arch)), HEAD_DIMS, (False, True)))


# The mma.sync of each type of operands, A unsigned for P.
PRODUCTS = {
    Type.int8: ("IMMA.16832.S8.S8", "IMMA.16832.U8.S8"),
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


# By whether keys have scales of their own, which take registers beside O and S, and head_dim. Small
# ones are the producer's, which has what the others leave.
WGMMA_SPILL = {
    False: {32: 24, 64: 80, 96: 24, 128: 160, 256: 100},
    True: {32: 220, 64: 600, 96: 200, 128: 600, 192: 24, 256: 580},
}


def allowed_spill(spec):
    """Bytes a thread may spill: none, but for kernels whose O and S fill the registers.

    There ptxas keeps a few values of the loop's surroundings in local memory, and no tile that was
    tried spills nothing on every target (docs/performance.md, section 5).
    """
    if isinstance(spec, WgmmaSpec):
        return WGMMA_SPILL[has_token_scales(spec)].get(spec.head_dim, 0)
    if not isinstance(spec, AttentionSpec):
        return 0
    widest = 192 if spec.pv is Type.int8 else 128
    return 400 if spec.head_dim >= widest else 100 if spec.head_dim >= 64 else 0


def required(spec):
    if isinstance(spec, WgmmaSpec):
        scores, values = WGMMA_PRODUCTS[spec.qk][0], WGMMA_PRODUCTS[spec.pv][1]
        # Tiles come by TMA, scales of tokens by bulk copies; warpgroups trade registers.
        names = [scores.format(spec.block_kv), values.format("*"), "UTMALDG", "USETMAXREG"]
        return [*names, "UBLKCP"] if has_token_scales(spec) else names
    if not isinstance(spec, AttentionSpec):
        coded = isinstance(spec, QuantizeSpec) and Type.e4m3 in (spec.q, spec.v)
        return ("F2FP.SATFINITE.E4M3",) if coded else ()
    return PRODUCTS[spec.qk][0], PRODUCTS[spec.pv][1]


def has_token_scales(spec):
    return spec.qk is Type.int8 and spec.k_scope is Scope.token


def forbidden(spec):
    """Products of single warps have no place among those of warpgroups."""
    return ("IMMA", "HMMA", "QMMA") if isinstance(spec, WgmmaSpec) else ()


def attention_kernels(arch):
    """Yield a spec for each of `combinations`."""
    turn = list(TARGETS).index(arch)
    for i, (scheme, head_dim, is_causal) in enumerate(combinations(arch), turn):
        dtype = list(DTYPES.values())[i % len(DTYPES)]
        yield attention_spec(scheme, head_dim, dtype, is_causal, target(arch))


def long_kernels(arch):
    """Yield the kernels that only sequences of very many keys need."""
    for scheme, head_dim, is_causal in combinations(arch):
        kind = scheme, head_dim, Type.fp16, is_causal, target(arch)
        spec = attention_spec(*kind, long_kv=True)
        if spec != attention_spec(*kind):
            yield spec


def other_kernels(arch):
    turn = list(TARGETS).index(arch)
    able = [s for s in PRESETS.values() if "fp8" not in (s.qk, s.pv) or arch in E4M3_TARGETS]
    for i, (scheme, head_dim) in enumerate(product(able, HEAD_DIMS), turn):
        specs = list(quantizer_specs(scheme, head_dim, list(DTYPES.values())[i % len(DTYPES)]))
        # Aligned and unaligned inputs come in turn.
        yield from specs[(i + i // len(HEAD_DIMS)) % 2 :: 2]


def complaints(specs, arch):
    """Compile and check kernels, some at a time; say in lines what is wrong with which."""

    def check(spec):
        found = problems(
            compile_cubin(spec.source, spec, arch),
            require=required(spec),
            forbid=forbidden(spec),
            max_spill=allowed_spill(spec),
        )
        return [f"{spec}: {problem}" for problem in found]

    # Loads the compiler, which several threads must not do at the same time.
    checked_arch(arch)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lines = chain.from_iterable(pool.map(check, dict.fromkeys(specs)))
    return "\n".join(lines)


@pytest.mark.parametrize("arch", TARGETS)
def test_attention_kernels(arch):
    assert complaints(attention_kernels(arch), arch) == ""


def test_kernels_for_very_many_keys():
    arch = "90a"
    kernels = list(long_kernels(arch))
    assert len(kernels) == 2 * len(HEAD_DIMS)
    assert complaints(kernels, arch) == ""


@pytest.mark.parametrize("arch", TARGETS)
def test_quantizing_kernels(arch):
    assert complaints(other_kernels(arch), arch) == ""


@pytest.mark.slow
@pytest.mark.parametrize("arch", TARGETS)
def test_all_kernels(arch):
    assert (
        complaints(attention_specs(supported(target(arch)), HEAD_DIMS, DTYPES, target(arch)), arch)
        == ""
    )


def test_every_combination_meets_every_type():
    types = {}
    for arch in TARGETS:
        for combination, spec in zip(combinations(arch), attention_kernels(arch), strict=True):
            types.setdefault(combination, set()).add(spec.out)
    everywhere = set.intersection(*(set(combinations(arch)) for arch in TARGETS))
    assert all(types[combination] == set(DTYPES.values()) for combination in everywhere)
