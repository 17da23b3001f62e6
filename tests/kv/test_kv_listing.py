"""Kernels of KV caches, listed: whatever a call loads is among them."""

from itertools import product

import numpy as np
import pytest
from helpers.spec_structs import begins_with_its_fields
from kv_cases import FORMATS, HEADS, options, tokens

from benchmarks import call_kernels
from cuattn import KVCache
from cuattn.arrays.device import TARGETS, target
from cuattn.errors import ArgumentError
from cuattn.kv.listing import kv_formats, kv_specs
from cuattn.kv.operands_spec import OperandsSpec
from cuattn.kv.queries_spec import QueriesSpec
from cuattn.kv.rows import MANY_ROWS
from cuattn.kv.spec import DecodeSpec, decode_spec
from cuattn.kv_format import KV_BITS, KV_HEAD_DIMS, KVFormat
from cuattn.reference.layout import HEAD_DIMS
from cuattn.specs.attention import Type


def possible_formats():
    """Yield every format that can be made."""
    numbers = range(257)
    for kind in product(HEAD_DIMS, KV_BITS, KV_BITS, numbers, *[(False, True)] * 3):
        try:
            yield KVFormat(*kind)
        except ArgumentError:
            continue


def test_formats_are_all_that_can_be_made():
    assert list(kv_formats(HEAD_DIMS, KV_BITS)) == list(possible_formats())


def test_formats_have_the_bits_that_were_asked_for():
    able = [KVFormat(64), KVFormat(64, rotate=True), KVFormat(80), KVFormat(80, rotate=True)]
    assert list(kv_formats([8, 64, 72, 80, 320], [8])) == able
    assert all((f.k_bits, f.v_bits) == (4, 4) for f in kv_formats(HEAD_DIMS, [4]))


@pytest.mark.parametrize("bits", [3, 16])
def test_other_bits_are_refused(bits):
    with pytest.raises(ArgumentError, match="bits must be one of"):
        kv_specs([64], ["float16"], [bits], target("80"))


@pytest.mark.parametrize("arch", TARGETS)
def test_every_number_of_rows_has_its_kernel(arch):
    facts = target(arch)
    specs = kv_specs([96, 256], ["bfloat16"], KV_BITS, facts)
    assert len(set(specs)) == len(specs)
    for kv_format, rows in product(kv_formats([96, 256], KV_BITS), (1, 8, 9, 17, 33, 64, 1000)):
        assert decode_spec(kv_format, Type.bf16, rows, facts) in specs


@pytest.mark.parametrize("arch", TARGETS)
def test_as_many_ctas_as_planned_fit_a_multiprocessor(arch):
    # The driver takes 1 KiB of shared memory for each.
    facts = target(arch)
    for spec in kv_specs(KV_HEAD_DIMS, ["float16"], KV_BITS, facts):
        if isinstance(spec, DecodeSpec) and spec.smem_bytes <= facts.max_smem_per_cta:
            assert spec.min_ctas * (spec.smem_bytes + 1024) <= facts.max_smem_per_sm


def test_specs_of_operands_are_those_of_the_header():
    for kv_format in kv_formats(HEAD_DIMS, KV_BITS):
        spec = OperandsSpec.of(kv_format)
        begins_with_its_fields(spec, "kv/operands_spec.cuh")
        assert spec.kv_format == kv_format
        assert all(spec.smem_bytes <= facts.max_smem_per_cta for facts in TARGETS.values())


def test_specs_of_queries_are_those_of_the_header():
    spec = QueriesSpec.of(FORMATS["8-padded"], Type.fp16, rope=True)
    begins_with_its_fields(spec, "kv/queries_spec.cuh")
    assert (spec.head_dim, spec.channels, spec.tiles(33)) == (96, 80, 2)


@pytest.mark.parametrize("cache", call_kernels.CACHES)
@pytest.mark.parametrize("arch", ["80", "90a"])
def test_first_calls_of_a_cache_find_their_kernels(cache, arch):
    pytest.importorskip("cupy")
    specs = call_kernels.cache_kernels(cache, 128, arch)
    assert [spec.entry for spec in specs] == ["offsets", "append", "decode"]
    assert set(specs) <= set(kv_specs([128], ["float16"], KV_BITS, target(arch)))


@pytest.mark.parametrize("arch", ["80", "90a"])
@pytest.mark.parametrize("name", FORMATS)
def test_many_rows_find_their_kernels(monkeypatch, rng, name, arch):
    pytest.importorskip("cupy")
    from simulated_gpu import SimulatedGPU
    from simulated_gpu.device import gpu_of

    gpu, kv_format = SimulatedGPU(monkeypatch, gpu_of(arch)), FORMATS[name]
    head_dim = kv_format.head_dim
    cache = KVCache(1, HEADS, head_dim, 64, **options(kv_format))
    cache.append(*tokens(rng, 1, HEADS, 64, head_dim))
    q = rng.standard_normal((MANY_ROWS, HEADS, head_dim)).astype(np.float16)
    bounds = np.array([0, MANY_ROWS], np.int32)
    cache.attend(q, cu_seqlens_q=bounds)
    cache.attend(q[None], layout="NHD", is_causal=False)
    bits = (kv_format.k_bits, kv_format.v_bits)
    assert "cache_operands" in gpu.launched
    assert set(gpu.specs) <= set(kv_specs([head_dim], ["float16"], bits, target(arch)))
