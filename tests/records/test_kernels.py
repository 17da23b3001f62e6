"""Kernels that a GPU check compiles beforehand: those that its phases then load."""

from contextlib import nullcontext
from itertools import chain
from types import SimpleNamespace

import pytest

from benchmarks import feature_cases, kernels
from benchmarks.call_kernels import attention_kernels
from benchmarks.mma_family import mma_family
from benchmarks.sanitizer_grid import RAGGED
from benchmarks.sanitizer_scores import SCORED
from cuattn.arrays.device import target
from cuattn.arrays.view import Array
from cuattn.auto.table import CANDIDATES
from cuattn.bench import auto_table, cases
from cuattn.bench.models import MODELS
from cuattn.operands.lengths import LengthArrays
from cuattn.operands.mods import ModKey, Mods
from cuattn.operands.score_arrays import NO_ARRAYS, ScoreArrays
from cuattn.operands.scores import ALL_KEYS
from cuattn.plan.kernels import supported
from cuattn.plan.listing import rate_specs
from cuattn.specs.attention import AttentionSpec
from cuattn.specs.rules import MaskKind, Rules


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


# Options of scores of a call, as `prepare` has them, by their rules: of 32 heads and 1024 tokens.
NONE = (None,) * 3  # expressions, and what no sequence is longer than
VECTOR = Array((32,), (1,), "float32", (2, 0))
BY_DISTANCE = ("score_mod", feature_cases.BY_DISTANCE)
USED = LengthArrays(seqused_k=Array((1,), (1,), "int32", (2, 0)))
CALLS = {
    Rules(): (),
    Rules(windowed=True): (feature_cases.WINDOW,),
    Rules(softcap=True): (ALL_KEYS, 3.0),
    Rules(varlen=True): (ALL_KEYS, 0.0, *NONE, NO_ARRAYS, USED),
    feature_cases.EXPRESSED: (
        *(ALL_KEYS, 0.0, Mods(ModKey(*BY_DISTANCE, ("slope",), ())), None, None),
        ScoreArrays(mods=(VECTOR,)),
    ),
    Rules(sinks=True): (ALL_KEYS, 0.0, *NONE, ScoreArrays(sinks=VECTOR)),
    Rules(alibi=True): (ALL_KEYS, 0.0, *NONE, ScoreArrays(alibi_slopes=VECTOR)),
    **{
        Rules(attn_mask=kind): (
            ALL_KEYS,
            0.0,
            *NONE,
            ScoreArrays(attn_mask=Array((1024, 1024), (1024, 1), dtype, (2, 0))),
        )
        for kind, dtype in ((MaskKind.bits, "bool"), (MaskKind.fp32, "float32"))
    },
}


@pytest.mark.parametrize("arch", ["90a", "80"])
def test_options_of_scores_are_among_them(arch):
    found = {*kernels.measured(target(arch))}
    for feature in chain(*feature_cases.FEATURES.values()):
        about = feature.case.head_dim, arch, feature.case.is_causal, *CALLS[feature.rules]
        head_dim_v = feature_cases.HEAD_DIM_V if feature.name == "dv-128" else None
        for name in feature_cases.SCHEMES:
            # Lengths are for operands that the call quantizes.
            kernels_alone = [] if feature.rules.varlen else [feature_cases.apart(name)]
            for scheme in (name, *kernels_alone):
                wanted = attention_kernels(scheme, *about, head_dim_v=head_dim_v)
                assert {*wanted} <= found, feature.name
    for scored in SCORED:
        about = RAGGED.is_causal, *CALLS[scored.rules]
        for family in (nullcontext, mma_family):
            with family():
                wanted = attention_kernels(scored.scheme, RAGGED.head_dim, arch, *about)
            assert {*wanted} <= found, scored


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
