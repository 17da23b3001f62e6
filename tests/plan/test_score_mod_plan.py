"""Expressions of a caller from the call to the kernel, by both families on the simulated GPU."""

import numpy as np
import pytest
from helpers.mod_cases import MODS, as_functions, mod_options

import cuattn
from cuattn import MaskMod, ScoreMod
from cuattn.compile.chain import Chain
from cuattn.errors import ArgumentError, CompileError
from cuattn.reference import emulate
from cuattn.specs.mods import MOST

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU, gpu_of
from simulated_gpu.score_rules import EXPRESSIONS

SCHEMES = ["int8", "int8-fast", "int8-token", "int4", "int8-fp16", "fp16"]


@pytest.fixture(params=["80", "90a"])
def gpu(request, monkeypatch):
    monkeypatch.setattr("simulated_gpu.score_rules.EXPRESSIONS", EXPRESSIONS)
    return SimulatedGPU(monkeypatch, gpu_of(request.param))


def qkv(rng, seqlen_q=60, seqlen_kv=150, heads=(4, 2), head_dim=40):
    shapes = [(2, heads[0], seqlen_q), (2, heads[1], seqlen_kv), (2, heads[1], seqlen_kv)]
    return [(rng.standard_normal((*x, head_dim)) + 0.5).astype(np.float32) for x in shapes]


def call(arrays, options, **more):
    for mod in (options.get("score_mod"), options.get("mask_mod")):
        if mod is not None:
            EXPRESSIONS[mod.text] = mod
    return cuattn.attention(*arrays, return_lse=True, **options, **more)


@pytest.mark.parametrize("name", MODS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_calls_are_attended_as_in_the_emulation(gpu, rng, name, scheme):
    arrays = qkv(rng)
    options = mod_options(name, rng, arrays[0].shape, 150)
    o, lse = call(arrays, options, scheme=scheme)
    wanted, wanted_lse = emulate.attention(*arrays, scheme=scheme, **as_functions(options))
    off = np.sqrt(np.mean((o - wanted) ** 2))
    assert off <= 1e-3 * np.sqrt(np.mean(wanted**2))
    np.testing.assert_allclose(lse, wanted_lse, rtol=1e-5, atol=1e-4)


def test_addresses_come_in_the_order_of_the_expressions(gpu, rng, monkeypatch):
    given = []
    launch = Chain.__call__
    monkeypatch.setattr(
        Chain, "__call__", lambda self, x, stream: given.append(x) or launch(self, x, stream)
    )
    arrays = qkv(rng)
    a, b, c = (np.arange(4, dtype=np.float32) for _ in range(3))
    score = ScoreMod(
        "score + a[head] + b[head]", arrays={"a": a, "b": b}, reference=lambda score: score
    )
    mask = MaskMod("a[head] >= n", arrays={"a": c}, numbers={"n": 1}, reference=lambda: True)
    call(arrays, {"score_mod": score, "mask_mod": mask})
    assert given[0][-MOST - 1 : -1] == (*(x.ctypes.data for x in (a, b, c)), 0, 0, 0, 0, 0)
    call(arrays, {"mask_mod": mask, "sinks": a})
    assert given[1][-MOST - 1 : -1] == (c.ctypes.data, *[0] * (MOST - 1))
    assert given[1][-4 - MOST] == a.ctypes.data


def test_mistakes_launch_nothing(gpu, rng, monkeypatch):
    monkeypatch.setattr(Chain, "__call__", lambda *_: pytest.fail("launched"))
    arrays = qkv(rng)
    with pytest.raises(
        CompileError, match=r"^score_mod does not compile for sm_\w+\nscore_mod\(1\)"
    ):
        cuattn.attention(*arrays, score_mod="score + nothing")
    x = np.arange(8, dtype=np.float32)
    mod = MaskMod("x[q] > 0", arrays={"x": x[::2]})
    with pytest.raises(ArgumentError, match=r"^mask_mod\.x\.strides must be \(1,\)"):
        cuattn.attention(*arrays, mask_mod=mod)
    out = np.zeros_like(arrays[0])
    mod = MaskMod("x[q] > 0", arrays={"x": out})
    with pytest.raises(
        ArgumentError, match=r"^out must be in memory apart from that of mask_mod\.x"
    ):
        cuattn.attention(*arrays, mask_mod=mod, out=out)
