"""The kernels that measure ceilings, without a GPU: their specs, their code, what they store."""

import pytest
from helpers.compile_check import complaints
from helpers.rate_cases import check_memory, check_products
from helpers.spec_structs import members, named
from simulated_gpu import GPU, SimulatedGPU

from cuattn.arrays.device import TARGETS, target
from cuattn.bench import ceilings, rate_kernels
from cuattn.bench.rate_kernels import RateCall
from cuattn.choice.timing import Median
from cuattn.plan.listing import rate_specs
from cuattn.specs.attention import Type
from cuattn.specs.rates import MemoryRateSpec, ProductRateSpec

pytest.importorskip("cupy")
import numpy as np
from helpers.around_quantizer_cases import Place

INSTRUCTIONS = {
    (Type.int8, True): "IGMMA.64x128x32.S8.S8",
    (Type.e4m3, True): "QGMMA.64x128x32.F32.E4M3.E4M3",
    (Type.fp16, True): "HGMMA.64x128x16.F32",
    (Type.int8, False): "IMMA.16832.S8.S8",
    (Type.e4m3, False): "QMMA.16832.F32.E4M3.E4M3",
    (Type.fp16, False): "HMMA.16816.F32",
}


def required(spec, facts):
    if isinstance(spec, MemoryRateSpec):
        return ("LDG.E.EF.128", *(["STG.E.EF.128"] if spec.writes else []))
    if spec.type is Type.e4m3 and not spec.warpgroups and not facts.native_e4m3_mma:
        return ("HMMA",)  # made of products of float16
    return (INSTRUCTIONS[spec.type, spec.warpgroups],)


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("arch", TARGETS)
def test_kernels_spill_nothing_and_multiply_as_meant(arch):
    facts = target(arch)
    bounds = {spec: {"require": required(spec, facts)} for spec in rate_specs(facts)}
    assert complaints(bounds, arch, bounds.get) == ""


def test_every_target_has_ceilings_of_the_products_that_it_has():
    kinds = {
        arch: {s.type for s in rate_specs(facts) if isinstance(s, ProductRateSpec)}
        for arch, facts in TARGETS.items()
    }
    assert {arch for arch, types in kinds.items() if Type.e4m3 in types} == {
        arch for arch, facts in TARGETS.items() if facts.has_e4m3
    }
    assert all({Type.int8, Type.fp16} <= types for types in kinds.values())
    of_warpgroups = {
        a
        for a, facts in TARGETS.items()
        if any(getattr(s, "warpgroups", False) for s in rate_specs(facts))
    }
    assert of_warpgroups == {"90a"}


@pytest.mark.parametrize("spec", rate_specs(target("90a")), ids=str)
def test_literal_names_every_member_in_order(spec):
    assert named(spec.cxx()) == members(type(spec).__name__, spec.params_file)


@pytest.mark.parametrize("writes", [True, False])
def test_memory_is_read_or_copied_whole(monkeypatch, rng, writes):
    SimulatedGPU(monkeypatch)
    check_memory(Place(GPU, np), rng, writes=writes)


@pytest.mark.parametrize(
    "spec", [s for s in rate_specs(target("90a")) if isinstance(s, ProductRateSpec)], ids=str
)
def test_products_are_added_up(monkeypatch, spec):
    SimulatedGPU(monkeypatch)
    check_products(Place(GPU, np), spec)


def test_rates_are_work_over_time(monkeypatch):
    calls = [
        RateCall("copy", "loads", lambda: None, 2**31),
        RateCall("fp8", "wgmma", lambda: None, 10**12),
    ]
    monkeypatch.setattr(ceilings, "current_device", lambda: GPU)
    monkeypatch.setattr(ceilings, "rate_calls", lambda device: iter(calls))
    times = {0: Median(ms=0.5, iqr_ms=0.05), 1: Median(ms=2.0, iqr_ms=0.0)}
    monkeypatch.setattr(ceilings, "time_gpu", lambda functions, rounds, flush: times)
    copy, fp8 = ceilings.measure()
    assert (copy.rate, copy.unit) == (pytest.approx(2**31 / 0.5e-3 * 1e-9), "GB/s")
    assert copy.iqr == pytest.approx(0.1 * copy.rate)
    assert (fp8.rate, fp8.iqr, fp8.unit) == (pytest.approx(500), 0, "TOPS")


def test_operands_are_noise_in_range():
    for spec in rate_specs(target("90a")):
        if isinstance(spec, ProductRateSpec):
            a, b = rate_kernels.product_operands(spec)
            assert a.nbytes == spec.a_rows * spec.row_bytes
            assert b.nbytes == spec.b_rows * spec.row_bytes
            assert len(np.unique(a)) > 64
