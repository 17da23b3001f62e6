"""Every kernel that the planner can choose, compiled: nothing spilled, the intended instructions.

Two targets stand for the two sizes of shared memory that plans differ by, and get every combination
of scheme, head_dim and mask; the others get every pair. Input types take turns. All of everything
runs with --slow.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, product

import pytest
from compile_check import problems

from cuattn.device import TARGETS, target
from cuattn.plan import attention_spec, attention_specs
from cuattn.reference.layout import HEAD_DIMS
from cuattn.scheme import PRESETS
from cuattn.spec import AttentionSpec, Type

pytest.importorskip("cupy")
from cuattn.jit import compile_cubin

DTYPES = {"float16": Type.fp16, "bfloat16": Type.bf16, "float32": Type.fp32}

# One of each group of targets with the same shared memory and the same kinds of instructions.
IN_FULL = ("86", "90a")

# The mma.sync of each type of operands, A unsigned for P.
PRODUCTS = {
    Type.int8: ("IMMA.16832.S8.S8", "IMMA.16832.U8.S8"),
    Type.fp16: ("HMMA.16816.F32", "HMMA.16816.F32"),
    Type.bf16: ("HMMA.16816.F32.BF16", "HMMA.16816.F32.BF16"),
}


def required(spec):
    if not isinstance(spec, AttentionSpec):
        return ()
    return PRODUCTS[spec.qk][0], PRODUCTS[spec.pv][1]


def attention_kernels(arch):
    """Yield specs: dtype, and where not all are asked for the mask, follow from the other two."""
    combinations = product(enumerate(PRESETS.values()), enumerate(HEAD_DIMS), (False, True))
    for (i, scheme), (j, head_dim), is_causal in combinations:
        if arch in IN_FULL or is_causal == (i + j) % 2:
            dtype = list(DTYPES.values())[(i + j + is_causal) % len(DTYPES)]
            yield attention_spec(scheme, head_dim, dtype, is_causal, target(arch))


def other_kernels(arch):
    for (i, scheme), (j, head_dim) in product(enumerate(PRESETS), enumerate(HEAD_DIMS)):
        dtype = list(DTYPES)[(i + j) % len(DTYPES)]
        specs = attention_specs([scheme], [head_dim], [dtype], target(arch))
        specs = [spec for spec in specs if not isinstance(spec, AttentionSpec)]
        # Aligned and unaligned inputs come in turn.
        yield from specs[(i + j) % 2 :: 2]


def complaints(specs, arch):
    """Compile and check kernels, some at a time; say in lines what is wrong with which."""

    def check(spec):
        cubin = compile_cubin(spec.source, spec, arch)
        return [f"{spec}: {problem}" for problem in problems(cubin, require=required(spec))]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lines = chain.from_iterable(pool.map(check, dict.fromkeys(specs)))
    return "\n".join(lines)


@pytest.mark.parametrize("arch", TARGETS)
def test_attention_kernels(arch):
    assert complaints(attention_kernels(arch), arch) == ""


@pytest.mark.parametrize("arch", TARGETS)
def test_quantizing_kernels(arch):
    assert complaints(other_kernels(arch), arch) == ""


@pytest.mark.slow
@pytest.mark.parametrize("arch", TARGETS)
def test_all_kernels(arch):
    assert complaints(attention_specs(PRESETS, HEAD_DIMS, DTYPES, target(arch)), arch) == ""


@pytest.mark.parametrize("arch", TARGETS)
def test_selection_has_every_combination(arch):
    """What the docstring promises, counted."""
    specs = list(attention_kernels(arch))
    mask = [spec.is_causal for spec in specs]
    assert len(specs) == len(PRESETS) * len(HEAD_DIMS) * (2 if arch in IN_FULL else 1)
    for of in (lambda s: s.head_dim, lambda s: (s.qk, s.pv), lambda s: s.out):
        kinds = {of(spec) for spec in specs}
        assert set(zip(map(of, specs), mask, strict=True)) == set(product(kinds, (False, True)))
    assert {spec.qk for spec in specs} == {Type.int8, Type.fp16, Type.bf16}
