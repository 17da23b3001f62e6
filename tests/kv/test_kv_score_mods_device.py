"""Expressions in attention to a cache on a simulated GPU: what kernels are told of them."""

import numpy as np
import pytest
from helpers.mod_cases import MODS
from kv_cases import FORMATS, HEADS, cache_of, tokens

from cuattn import MaskMod, ScoreMod
from cuattn.compile.chain import Chain
from cuattn.errors import ArgumentError, CompileError
from cuattn.kv import prefill
from cuattn.kv import rows as rows_module

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU
from simulated_gpu.device import gpu_of
from simulated_gpu.score_rules import EXPRESSIONS

BATCH, QUERIES, MANY = 3, 3, 70


@pytest.fixture(params=["90a", "80"])
def gpu(request, monkeypatch):
    return SimulatedGPU(monkeypatch, gpu_of(request.param))


def caches(rng, **others):
    """Return a cache of the simulated GPU and one in host memory, of the same contents."""
    kv_format = FORMATS["8-rotated"]
    given = {"capacity": 300} | others
    both = [cache_of(kv_format, device=device, **given) for device in (None, "cpu")]
    k, v = tokens(rng, BATCH, HEADS, 300, 64)
    for cache in both:
        cache.append(k, v, counts=[300, 0, 131])
    return both


def query(rng, queries=QUERIES, dtype=np.float16):
    return rng.standard_normal((BATCH, 2 * HEADS, queries, 64)).astype(dtype)


def options(rng, name, queries=QUERIES):
    return known(MODS[name](rng, BATCH, 2 * HEADS, queries, 300))


def known(mods):
    """Let the simulated GPU know what expressions say."""
    EXPRESSIONS.update((x.text, x) for x in mods.values() if hasattr(x, "reference"))
    return mods


def assert_alike(both, q, atol=1e-3, **given):
    found, wanted = (cache.attend(q, return_lse=True, **given) for cache in both)
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=atol)
    return found


@pytest.mark.parametrize("name", MODS)
def test_kernels_are_told_what_the_host_does(gpu, rng, name):
    both = caches(rng, page_size=16)
    mods = options(rng, name)
    assert_alike(both, query(rng), **mods)
    spec = gpu.specs[-1]
    for kind in ("score_mod", "mask_mod"):
        assert (getattr(spec, kind) is None) == (kind not in mods)
        assert getattr(spec, kind) is None or getattr(spec, kind).text == mods[kind].text
    assert_alike(both, query(rng))
    assert gpu.specs[-1].score_mod is gpu.specs[-1].mask_mod is None


@pytest.mark.parametrize("name", ["linear", "distances", "both", "masked"])
@pytest.mark.parametrize("room", [2**28, 2 * HEADS * 2 * 384 * 64, 1])
def test_many_queries_are_attended_in_parts(gpu, rng, monkeypatch, name, room):
    """Expressions count sequences and heads of the call, whatever part they are asked for."""
    monkeypatch.setattr(rows_module, "MANY_ROWS", 2 * MANY)
    monkeypatch.setattr(prefill, "WORKSPACE", room)
    both = caches(rng)
    mods, q = options(rng, name, MANY), query(rng, MANY)
    for _ in range(2):
        o, lse = assert_alike(both, q, atol=4e-3, **mods)
    assert "decode" not in gpu.launched
    if "attn_mask" in mods:
        return
    packed = np.concatenate(list(q.swapaxes(1, 2)))
    bounds = MANY * np.arange(BATCH + 1, dtype=np.int32)
    found, of_rows = assert_alike(both, packed, atol=4e-3, cu_seqlens_q=bounds, **mods)
    np.testing.assert_array_equal(np.stack(np.split(found, BATCH)).swapaxes(1, 2), o)
    np.testing.assert_array_equal(np.stack(np.split(of_rows, BATCH, axis=1)), lse)


@pytest.mark.parametrize("queries", [QUERIES, MANY])
def test_what_is_in_arrays_may_change_and_numbers_are_others(gpu, rng, monkeypatch, queries):
    monkeypatch.setattr(rows_module, "MANY_ROWS", 2 * MANY)
    both, q = caches(rng), query(rng, queries)
    slopes = np.ones(2 * HEADS, np.float32)
    specs = set()
    for n in (1, 2, -1):
        slopes += 0.25
        mod = ScoreMod(
            "score * n + slopes[head] * (kv % 3)",
            arrays={"slopes": slopes},
            numbers={"n": n},
            reference=lambda score, head, kv, slopes, n: score * n + slopes[head] * (kv % 3),
        )
        assert_alike(both, q, atol=4e-3, **known({"score_mod": mod}))
        specs.add(gpu.specs[-1])
    assert len(specs) == 1


def test_calls_of_different_expressions_are_not_taken_for_each_other(gpu, rng):
    both, q = caches(rng), query(rng)
    for _ in range(2):
        for by in (1, 2, 3):
            mod = ScoreMod(f"score * {by}", reference=lambda score, by=by: by * score)
            assert_alike(both, q, **known({"score_mod": mod}))


@pytest.mark.parametrize("queries", [QUERIES, MANY])
def test_mistakes_launch_nothing(gpu, rng, monkeypatch, queries):
    monkeypatch.setattr(rows_module, "MANY_ROWS", 2 * MANY)
    (cache, _), q = caches(rng), query(rng, queries)
    monkeypatch.setattr(Chain, "__call__", lambda *_: pytest.fail("launched"))
    with pytest.raises(
        CompileError, match=r"^score_mod does not compile for sm_\w+\nscore_mod\(1\): error"
    ):
        cache.attend(q, score_mod="score + nothing")
    x = np.arange(8, dtype=np.float32)
    with pytest.raises(ArgumentError, match=r"^mask_mod\.x\.strides must be \(1,\)"):
        cache.attend(q, mask_mod=MaskMod("x[q] > 0", arrays={"x": x[::2]}))
    with pytest.raises(ArgumentError, match=r"^mask_mod\.x\.dtype must be one of"):
        cache.attend(q, mask_mod=MaskMod("x[q] > 0", arrays={"x": x.astype(np.float64)}))
    out = np.zeros_like(q)
    mod = MaskMod("x[q] > 0", arrays={"x": out})
    with pytest.raises(
        ArgumentError, match=r"out must be in memory apart from that of mask_mod\.x"
    ):
        cache.attend(q, mask_mod=mod, out=out)
