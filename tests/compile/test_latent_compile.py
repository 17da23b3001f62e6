"""Kernels of the latent cache, compiled, and their specs beside the structs that they mirror."""

import re
from itertools import product

import pytest
from helpers.compile_check import complaints
from helpers.spec_structs import begins_with_its_fields

from cuattn.arrays.device import TARGETS, target
from cuattn.compile.params import record
from cuattn.compile.sources import sources
from cuattn.errors import UnsupportedError
from cuattn.latent.format import LatentFormat
from cuattn.latent.listing import latent_specs
from cuattn.latent.spec import (
    LatentAppendSpec,
    LatentDecodeSpec,
    LatentMergeSpec,
    latent_decode_spec,
)
from cuattn.specs.attention import Type

pytest.importorskip("cupy")

ROPES = (Type.bf16, Type.fp16)
SPECS = (
    LatentDecodeSpec(Type.bf16, Type.bf16, 64, 2),
    LatentAppendSpec(Type.fp16, Type.bf16, True),
    LatentMergeSpec(Type.bf16, 64),
)


def all_kernels(arch):
    """Return every kernel of the latent cache, but for some of the pairs of types."""
    facts = target(arch)
    pairs = [(Type.fp16, Type.bf16), (Type.bf16, Type.bf16), (Type.fp32, Type.fp16)]
    decode = [latent_decode_spec(*x, rows, facts) for x, rows in product(pairs, (1, 17, 128))]
    append = [LatentAppendSpec(*x, a) for x, a in product(pairs, (True, False))]
    append.append(LatentAppendSpec(*pairs[0], aligned=True, packed=True))
    merge = [LatentMergeSpec(spec.input, spec.rows) for spec in decode]
    return list(dict.fromkeys([*decode, *append, *merge]))


def bounds(spec):
    """With 64 rows, O takes half of the registers: what is not of the products may be spilled."""
    if not isinstance(spec, LatentDecodeSpec):
        return {"max_spill": 0}
    products = ("IMMA.16832.S8.S8", "IMMA.16832.U8.S8", "HMMA.16816")
    if spec.warpgroups:
        products = ("IGMMA.64x64x32.S8.S8", "IGMMA.64x64x32.S8.U8", "HGMMA.64x64x16")
    return {
        "require": (*products, "LDSM"),
        "max_spill": 0 if spec.rows <= 32 else 128,
    }


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("arch", ["80", "89", "90a"])
def test_kernels_compile(arch):
    assert complaints(all_kernels(arch), arch, bounds) == ""


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.entry)
def test_specs_mirror_structs(spec):
    begins_with_its_fields(spec, "kv/latent_spec.cuh")
    assert record(spec.params, spec.params_file).itemsize % 8 == 0
    assert re.search(rf"\b{spec.function}\(const {spec.params}& ", sources()[spec.source])


@pytest.mark.parametrize("arch", TARGETS)
def test_kernels_fit_the_shared_memory(arch):
    facts = target(arch)
    for rows in (1, 16, 17, 32, 33, 128, 1000):
        spec = latent_decode_spec(Type.bf16, Type.bf16, rows, facts)
        assert spec.rows <= 16 or rows > spec.rows // 2
        assert spec.smem_bytes <= facts.max_smem_per_cta
        assert spec.smem_bytes + 1024 <= facts.max_smem_per_sm


def test_too_little_shared_memory_is_refused():
    from dataclasses import replace

    few = replace(target("89"), max_smem_per_cta=64 * 1024)
    with pytest.raises(UnsupportedError, match="shared memory"):
        latent_decode_spec(Type.bf16, Type.bf16, 16, few)


@pytest.mark.parametrize("arch", TARGETS)
def test_every_kernel_is_listed(arch):
    facts = target(arch)
    listed = latent_specs(["bfloat16", "float32"], facts)
    assert len(set(listed)) == len(listed)
    for element, rope, rows in product((Type.bf16, Type.fp32), ROPES, (1, 16, 40, 128, 5000)):
        spec = latent_decode_spec(element, rope, rows, facts)
        assert {spec, LatentMergeSpec(element, spec.rows)} <= {*listed}
        assert {LatentAppendSpec(element, rope, x) for x in (True, False)} <= {*listed}


def test_units_are_whole_sectors():
    assert LatentFormat.whole_bytes == 64 * 644
    assert LatentFormat.whole_bytes % 32 == 0
    assert LatentFormat().unit_bytes * 4 == LatentFormat.whole_bytes
