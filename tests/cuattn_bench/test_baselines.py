"""Other libraries, stand-ins here, are called as they want to be: layouts, masks, scales."""

import sys

import numpy as np
import pytest
import stand_ins as libraries

from cuattn.bench.baselines import flash_infer, fp8
from cuattn.bench.baselines import registry as baselines
from cuattn.bench.baselines.registry import BASELINES
from cuattn.bench.cases import Case
from cuattn.reference import exact, metrics
from tools.tables import names

BY_NAME = {baseline.name: baseline for baseline in BASELINES}
LIBRARIES = {
    "pytorch-flash": dict,
    "pytorch-cudnn": dict,
    "flash-attention-2": libraries.flash_attention_2,
    "flash-attention-3": libraries.flash_attention_3,
    "flash-attention-3-fp8": libraries.flash_attention_3,
    "flash-attention-4": libraries.flash_attention_4,
    "flashinfer": libraries.flashinfer,
    "cudnn-fp8": libraries.cudnn,
    "sageattention-1": libraries.sageattention_1,
    "sageattention-2-fp16": lambda: libraries.sageattention_2([]),
    "sageattention-2-fp8": lambda: libraries.sageattention_2([]),
    "comfy-kitchen": libraries.comfy_kitchen,
}
# Relative L1 on normal noise: that of rounding the output to float16, of codes of 8 bits with one
# scale for all, and of E4M3 in and out.
LARGEST = {"fp16": 1e-3, "int8": 1e-3, "int8-fp16": 0.03, "int8-fp8": 0.03, "fp8": 0.08}

SQUARE = Case.square(2, 4, 40, 64, False)


def case(**sizes):
    given = {"batch": 2, "num_q_heads": 4, "num_kv_heads": 4, "seqlen_q": 40, "seqlen_kv": 40}
    return Case(**{**given, "head_dim": 64, "is_causal": False, **sizes})


CASES = {
    "square": SQUARE,
    "causal": Case.square(2, 4, 40, 64, True),
    "grouped": case(num_kv_heads=2, is_causal=True),
    "more keys": case(seqlen_kv=56),
    "causal, more keys": case(seqlen_kv=56, is_causal=True),
    "one sequence": case(batch=1),
}
DECODING = {
    "whole pages": case(seqlen_q=1, seqlen_kv=48),
    "a page in part": case(seqlen_q=1, num_kv_heads=1, seqlen_kv=37),
    "one token": case(seqlen_q=1, num_kv_heads=2, seqlen_kv=1),
}


def install(monkeypatch, modules):
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(autouse=True)
def pytorch(monkeypatch):
    install(monkeypatch, libraries.pytorch())
    for kept in (flash_infer._workspace, fp8._graph, fp8._handle):
        kept.cache_clear()
    yield
    for kept in (flash_infer._workspace, fp8._graph, fp8._handle):
        kept.cache_clear()


@pytest.fixture
def bound(monkeypatch, rng):
    """Return a function that binds a baseline to noise, and gives the run and what is right."""

    def bind(name, of, modules=None):
        install(monkeypatch, LIBRARIES[name]() if modules is None else modules)
        rows = (of.num_q_heads, of.seqlen_q), *[(of.num_kv_heads, of.seqlen_kv)] * 2
        qkv = [rng.standard_normal((of.batch, *x, of.head_dim)).astype("float16") for x in rows]
        before = [x.copy() for x in qkv]
        assert BY_NAME[name].unavailable() is None
        run = BY_NAME[name].bind(*qkv, of)
        for x, unchanged in zip(qkv, before, strict=True):
            np.testing.assert_array_equal(x, unchanged)
        wide = (x.astype("float64") for x in qkv)
        return run, exact.attention(*wide, is_causal=of.is_causal)[0]

    return bind


def check(name, run, wanted):
    for call in (run.end_to_end, run.kernel):
        if call is None or (call is run.kernel and BY_NAME[name].scheme == "fp8"):
            continue
        o = call()
        assert (o.dtype, o.shape) == (np.float16, wanted.shape)
        found = metrics.metrics(np.asarray(o, "float64"), wanted)
        assert found["relative_l1"] < LARGEST[BY_NAME[name].scheme]


def test_every_baseline_has_a_stand_in_and_a_title():
    assert list(LIBRARIES) == list(BY_NAME) == list(names.BASELINES)


@pytest.mark.parametrize("of", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", LIBRARIES)
def test_output_is_that_of_attention(bound, name, of):
    baseline = BY_NAME[name]
    if of.is_causal and not baseline.causal:
        return  # not asked for it: see test_benchmarks.py
    if of.is_causal and baseline.square and of.seqlen_q != of.seqlen_kv:
        with pytest.raises(RuntimeError, match="has no causal mask that the last query"):
            bound(name, of)
        return
    check(name, *bound(name, of))


@pytest.mark.parametrize("of", DECODING.values(), ids=DECODING)
@pytest.mark.parametrize("name", [baseline.name for baseline in BASELINES if baseline.decodes])
def test_a_single_query_attends_to_its_own_keys(bound, name, of):
    check(name, *bound(name, of))


def test_only_float16_decodes():
    assert {baseline.scheme for baseline in BASELINES if baseline.decodes} == {"fp16"}


@pytest.mark.parametrize("name", ["flash-attention-3-fp8", "cudnn-fp8"])
def test_output_of_a_type_that_cupy_does_not_know_is_not_returned(bound, name):
    run, _ = bound(name, SQUARE)
    assert run.kernel() is None


def test_heads_of_fp8_have_scales_of_their_own(monkeypatch, rng):
    install(monkeypatch, libraries.flash_attention_3())
    of = case(num_kv_heads=2)
    q, k, v = (rng.standard_normal((2, heads, 40, 64)) for heads in (4, 2, 2))
    # With one scale for both the first would be below what E4M3 has.
    v *= np.array([0.1, 1e4])[:, None, None]
    qkv = [x.astype("float16") for x in (q, k, v)]
    o = np.asarray(BY_NAME["flash-attention-3-fp8"].bind(*qkv, of).end_to_end(), "float64")
    wanted, _ = exact.attention(*(x.astype("float64") for x in qkv))
    for heads in (slice(0, 2), slice(2, 4)):
        found = metrics.metrics(o[:, heads], wanted[:, heads])
        assert found["relative_l1"] < LARGEST["fp8"]


# ---- SageAttention 2


@pytest.mark.parametrize(
    ("name", "capability", "called"),
    [
        ("sageattention-2-fp16", (9, 0), "sageattn_qk_int8_pv_fp16_cuda per_thread"),
        ("sageattention-2-fp8", (8, 9), "sageattn_qk_int8_pv_fp8_cuda per_thread"),
        ("sageattention-2-fp8", (9, 0), "sageattn_qk_int8_pv_fp8_cuda_sm90 per_thread"),
        ("sageattention-2-fp8", (12, 0), "sageattn_qk_int8_pv_fp8_cuda per_warp"),
    ],
)
def test_kernel_is_the_launch_without_the_quantization(
    bound, monkeypatch, name, capability, called
):
    install(monkeypatch, libraries.pytorch(capability))
    launches = []
    modules = libraries.sageattention_2(launches)
    core = modules["sageattention.core"]
    before = dict(vars(core))
    run, wanted = bound(name, CASES["causal"], modules)
    assert vars(core) == before
    # The function is recorded, then both calls are tried.
    assert launches == [*[called, "kernel"] * 2, "kernel"]
    launches.clear()
    first = run.kernel()
    assert launches == ["kernel"]
    first.fill_(0)
    check(name, run, wanted)


def test_release_2_that_launches_otherwise_is_timed_as_a_whole(bound):
    modules = libraries.sageattention_2([])
    core = modules["sageattention.core"]
    core.sageattn_qk_int8_pv_fp16_cuda = lambda q, k, v, is_causal: libraries.attended(
        q, k, v, is_causal
    ).half()
    run, wanted = bound("sageattention-2-fp16", SQUARE, modules)
    assert run.kernel is None
    check("sageattention-2-fp16", run, wanted)


@pytest.mark.parametrize("release", [1, 2])
def test_releases_of_sageattention_are_told_apart(monkeypatch, release):
    made = libraries.sageattention_1() if release == 1 else libraries.sageattention_2([])
    install(monkeypatch, made)
    others = "sageattention.quant" if release == 1 else "sageattention.quant_per_block"
    monkeypatch.setitem(sys.modules, others, None)
    there = {
        name: BY_NAME[name].unavailable() is None for name in BY_NAME if name.startswith("sage")
    }
    assert there == {name: f"-{release}" in name for name in there}
    assert len(there) == 3


def test_why_a_baseline_is_left_out_is_one_line(monkeypatch):
    def fails(name):
        raise OSError(f"{name} lacks a library\nat line 1\nat line 2")

    monkeypatch.setattr(baselines.importlib, "import_module", fails)
    for baseline in BASELINES:
        name = baseline.module
        assert baseline.unavailable() == f"{name} does not import: {name} lacks a library"


def test_heads_of_96_channels_of_release_1_are_timed_as_a_whole(bound):
    run, wanted = bound("sageattention-1", Case.square(1, 2, 40, 96, False))
    assert run.kernel is None
    check("sageattention-1", run, wanted)


# ---- FlashAttention


def test_flash_attention_4_alone_is_not_taken_for_release_2(monkeypatch):
    install(monkeypatch, libraries.flash_attention_4())
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", None)
    assert BY_NAME["flash-attention-4"].unavailable() is None
    assert "does not import" in BY_NAME["flash-attention-2"].unavailable()
