"""Kernels that a GPU check compiles beforehand: those that its phases then load."""

from types import SimpleNamespace

import pytest

from benchmarks import kernels
from benchmarks.call_kernels import attention_kernels
from benchmarks.mma_family import mma_family
from cuattn.arrays.device import target
from cuattn.auto.table import CANDIDATES
from cuattn.bench import auto_table, cases
from cuattn.bench.models import MODELS
from cuattn.plan.kernels import supported
from cuattn.plan.listing import rate_specs
from cuattn.specs.attention import AttentionSpec


@pytest.fixture
def measured():
    return {*kernels.measured(target("90a"))}


@pytest.mark.parametrize("head_dim", [64, 128])
def test_what_is_measured_is_compiled(measured, head_dim):
    for scheme in supported(target("90a")):
        assert {*attention_kernels(scheme.name, head_dim, "90a")} <= measured, scheme.name


def test_shapes_of_models_are_among_them(measured):
    for head_dim in {model.head_dim for model in MODELS}:
        for scheme in cases.COMPARED:
            assert {*attention_kernels(scheme, head_dim, "90a")} <= measured, (head_dim, scheme)


def test_kernels_of_mma_and_what_auto_may_be_are_among_them(measured):
    for scheme in CANDIDATES:
        for head_dim in auto_table.HEAD_DIMS:
            assert {*attention_kernels(scheme, head_dim, "90a")} <= measured, (head_dim, scheme)
        for head_dim in (64, 128):
            with mma_family():
                kernels_of_mma = attention_kernels(scheme, head_dim, "90a")
            assert any(isinstance(spec, AttentionSpec) for spec in kernels_of_mma)
            assert {*kernels_of_mma} <= measured, (head_dim, scheme)


def test_ceilings_and_caches_are_among_them(measured):
    assert {*rate_specs(target("90a"))} <= measured
    assert {"decode.cu", "append.cu", "offsets.cu"} <= {spec.source for spec in measured}


def test_processes_fill_the_cache_once(monkeypatch, tmp_path):
    pytest.importorskip("cupy")
    facts = target("80")
    specs = rate_specs(facts)[:2]
    monkeypatch.setenv("CUATTN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernels, "current_device", lambda: SimpleNamespace(arch="80"))
    monkeypatch.setattr(kernels, "measured", lambda facts: iter(specs))
    monkeypatch.setattr(kernels, "tested", lambda facts: iter(specs[:1]))
    assert kernels.compile_all() == 2
    assert kernels.compile_all() == 0
    assert [*tmp_path.rglob("*.cubin")]
