"""Kernels of the KV cache, compiled: little or nothing spilled, the intended instructions.

Formats and types take turns from target to target; all of them run with --slow.
"""

from itertools import product

import pytest
from helpers.compile_check import complaints

from cuattn.arrays.device import TARGETS, target
from cuattn.kv.spec import AppendSpec, DecodeSpec, OffsetSpec, decode_spec
from cuattn.kv_format import KV_HEAD_DIMS, KVFormat
from cuattn.specs.attention import Type

pytest.importorskip("cupy")

pytestmark = pytest.mark.usefixtures("compiled_anew")

INPUTS = (Type.fp16, Type.bf16, Type.fp32)

# Besides groups of 64 channels, of which no head of 96 consists.
KINDS = ((8, 8, 0, False), (8, 4, 0, True), (4, 4, 32, True), (4, 8, 32, False), (4, 4, 0, False))


def append_specs():
    kinds = [*product(KV_HEAD_DIMS, KINDS), (128, (4, 4, 64, True)), (256, (4, 4, 64, True))]
    for (head_dim, kind), element, aligned in product(kinds, INPUTS, (True, False)):
        yield AppendSpec.of(KVFormat(head_dim, *kind), element, aligned=aligned)


def offset_specs():
    for head_dim, element, aligned in product(KV_HEAD_DIMS, INPUTS, (True, False)):
        yield OffsetSpec(element, head_dim, aligned)


def decode_specs(arch):
    kinds = list(product(KV_HEAD_DIMS, KINDS, (1, 9, 40)))
    specs = [
        decode_spec(KVFormat(head_dim, *kind), INPUTS[i % len(INPUTS)], rows, target(arch))
        for i, (head_dim, kind, rows) in enumerate(kinds)
    ]
    return list(dict.fromkeys(specs))


def allowed_spill(spec):
    """Bytes a thread may spill: four values at most of what decoding mostly is.

    Zero points and groups of channels have sums and probabilities of their own, and 32 rows more.
    """
    if not isinstance(spec, DecodeSpec):
        return 0
    return 16 if spec.rows <= 16 and not spec.group and not spec.v_zero else 200


def required(spec, arch):
    if not isinstance(spec, DecodeSpec):
        return ()
    copies = "UBLKCP" if int(arch.rstrip("a")) >= 90 else "LDGSTS"
    return ("IMMA.16832.S8.S8", "IMMA.16832.U8.S8", "LDSM", copies)


def bounds(arch):
    """Return what to require of the kernel of a spec, and what to allow it."""
    return lambda spec: {"require": required(spec, arch), "max_spill": allowed_spill(spec)}


@pytest.mark.parametrize("arch", TARGETS)
def test_some_kernels(arch):
    turn = list(TARGETS).index(arch)
    some = [*list(append_specs())[turn::17], *list(offset_specs())[turn::13]]
    some += decode_specs(arch)[turn % 4 :: 4]
    assert complaints(some, arch, bounds(arch)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("arch", TARGETS)
def test_all_kernels(arch):
    specs = [*append_specs(), *offset_specs(), *decode_specs(arch)]
    assert complaints(specs, arch, bounds(arch)) == ""
