"""Expressions of a caller in kernels on a GPU: against their functions in the emulation."""

from contextlib import nullcontext

import numpy as np
import pytest
from helpers.gpu_cases import (
    DTYPES,
    ROUNDING,
    check,
    make,
    mma_family,
    on_gpu,
    on_host,
    run,
    runs_here,
    tolerance,
)
from helpers.mod_cases import MODS, as_functions, mod_options, with_arrays
from helpers.score_cases import ARRAYS, documents, eighths

import cuattn
from cuattn import MaskMod, ScoreMod
from cuattn.errors import ArgumentError, CompileError
from cuattn.presets import PRESETS
from cuattn.reference import exact

pytestmark = pytest.mark.gpu

NAMES = ("int8", "int8-block", "int8-fast", "int8-token", "int8-fp16", "int4", "fp16", "fp8")
SCHEMES = {name: PRESETS[name] for name in NAMES if runs_here(PRESETS[name])}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
some_schemes = pytest.mark.parametrize("scheme", ["int8", "int8-token", "fp16"])

HEADS = [(2, 2), (8, 2), (8, 1)]
LENGTHS = [(200, 300), (300, 130), (65, 257), (1, 300), (130, 700), (193, 64)]


def as_it_is(x):
    """Return an array of CuPy of the type of NumPy's."""
    return on_gpu(x, x.dtype.name)


def on_device(options):
    """Return options with all arrays on the GPU."""
    moved = with_arrays(options, as_it_is)
    return {name: as_it_is(x) if name in ARRAYS else x for name, x in moved.items()}


def qkv(rng, *, dtype="float16", heads=(4, 2), seqlens=(150, 333), head_dim=64, batch=2):
    inputs = make(rng, batch=batch, heads=heads, seqlens=seqlens, head_dim=head_dim)
    return [on_gpu(x, dtype) for x in inputs]


def close(found, wanted, scheme, dtype="float16", slack=0.0):
    """Compare two results of kernels that add the same in another order."""
    allowed = tolerance(SCHEMES[scheme])
    for x, y, atol in zip(found, wanted, (0.0, allowed.lse_atol), strict=True):
        x, y = (on_host(part).astype(np.float64) for part in (x, y))
        np.testing.assert_array_equal(np.isneginf(x), np.isneginf(y))
        seen = np.isfinite(y)
        norm = np.sqrt(np.mean(y[seen] ** 2))
        off = np.sqrt(np.mean((x[seen] - y[seen]) ** 2))
        assert off <= (2 * allowed.rms + ROUNDING[dtype] + slack) * norm + atol


@every_scheme
@pytest.mark.parametrize("name", MODS)
def test_kernels_match_the_emulation(rng, scheme, name):
    turn = NAMES.index(scheme) + list(MODS).index(name)
    lengths, heads = LENGTHS[turn % len(LENGTHS)], HEADS[turn % len(HEADS)]
    head_dim, dtype = (64, 128)[turn % 2], DTYPES[turn % 3]
    arrays = qkv(rng, dtype=dtype, heads=heads, seqlens=lengths, head_dim=head_dim)
    options = mod_options(name, rng, arrays[0].shape, lengths[1])
    result = run(arrays, SCHEMES[scheme], **on_device(options))
    functions = as_functions(options)
    check(result, arrays, SCHEMES[scheme], **functions)
    alone = {x: y for x, y in functions.items() if x != "sinks"}
    blind = np.isneginf(exact.attention(*map(on_host, arrays), **alone)[1])
    assert not on_host(result[0])[blind].any()
    again = run(arrays, SCHEMES[scheme], **on_device(options))
    for x, y in zip(result, again, strict=True):
        assert on_host(x).tobytes() == on_host(y).tobytes()


@some_schemes
@pytest.mark.parametrize("name", MODS)
def test_kernels_of_single_warps_match_it_too(rng, scheme, name):
    arrays = qkv(rng, seqlens=(130, 333), head_dim=(64, 128)[len(name) % 2])
    options = mod_options(name, rng, arrays[0].shape, 333)
    with mma_family():
        result = run(arrays, SCHEMES[scheme], **on_device(options))
        check(result, arrays, SCHEMES[scheme], **as_functions(options))


@pytest.mark.parametrize("scheme", ["int8", "int8-block", "int8-token", "fp16"])
def test_expressions_can_say_what_options_say(rng, scheme):
    arrays = qkv(rng)
    how = SCHEMES[scheme]
    bias = eighths(rng, (8 // 2, 150, 333))
    slopes = np.array([0.5, 0.25, 0.125, 0.0], np.float32)
    of_bias = ScoreMod(
        "score + bias[(head * 150 + q) * keys + kv]",
        arrays={"bias": as_it_is(bias)},
        numbers={"keys": 333},
    )
    of_slopes = ScoreMod("score - s[head] * abs(own - kv)", arrays={"s": as_it_is(slopes)})
    pairs = [
        ({"attn_mask": as_it_is(bias)}, {"score_mod": of_bias}, 0.0),
        ({"alibi_slopes": as_it_is(slopes)}, {"score_mod": of_slopes}, 0.0),
        ({"softcap": 5.0}, {"score_mod": "5.f * tanhf(score / 5.f)"}, 2**-8),
        (
            {"softcap": 5.0, "alibi_slopes": as_it_is(slopes), "is_causal": True},
            {"score_mod": of_slopes, "softcap": 5.0, "is_causal": True},
            0.0,
        ),
        ({}, {"score_mod": "score"}, 0.0),
    ]
    for options, mods, slack in pairs:
        close(run(arrays, how, **mods), run(arrays, how, **options), scheme, slack=slack)


# Slopes of heads that a kernel takes for its unit or begins scores at, or not, and those for which
# it asks key by key.
STEEP = np.float32([0.25, 2.0**-9, 0.0, -0.125])
ODD = np.float32([0.5, np.inf, np.nan, 100.0])


@pytest.mark.parametrize("family", ["wgmma", "mma"])
@pytest.mark.parametrize(
    ("scheme", "options", "text"),
    [
        ("int8", {}, "score - slopes[head] * (q - kv) + of_batch[batch]"),
        (
            "int8-block",
            {"is_causal": True},
            "score - slopes[head] * fabsf(float(own - kv)) + of_batch[batch]",
        ),
        (
            "int8-fast",
            {"window_size": (90, 40)},
            "score + of_batch[batch] + (kv - own) * slopes[head]",
        ),
        ("fp16", {"window_size": (100, 0)}, "score - slopes[head] * abs(kv - own) + of_batch[0]"),
    ],
)
def test_linear_expressions_give_what_the_loop_makes_of_them(rng, scheme, options, text, family):
    dtype = DTYPES[len(scheme) % 3]
    arrays = qkv(rng, dtype=dtype, seqlens=(333, 450), head_dim=(64, 128)[len(options)])
    of_batch = as_it_is(np.float32([1.5, -np.inf]))
    with mma_family() if family == "mma" else nullcontext():
        for slopes in (STEEP, ODD):
            held = {"slopes": as_it_is(slopes), "of_batch": of_batch}
            found, wanted = (
                run(arrays, SCHEMES[scheme], score_mod=ScoreMod(mod, arrays=held), **options)
                # No text with a comparison is taken for a linear one.
                for mod in (text, f"kv >= 0 ? {text} : score")
            )
            for x, y in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(np.isnan(on_host(x)), np.isnan(on_host(y)))
            close(found, wanted, scheme, dtype)


@pytest.mark.parametrize("scheme", ["int8", "int8-block", "fp16"])
def test_linear_expressions_are_as_alibi(rng, scheme):
    arrays = qkv(rng, seqlens=(333, 333), head_dim=128)
    slopes = as_it_is(np.float32([0.5, 0.25, 0.125, 0.0]))
    wanted = run(arrays, SCHEMES[scheme], alibi_slopes=slopes, is_causal=True)
    for text in ("score - s[head] * (q - kv)", "score + s[head] * (kv - own)"):
        mod = ScoreMod(text, arrays={"s": slopes})
        close(run(arrays, SCHEMES[scheme], score_mod=mod, is_causal=True), wanted, scheme)


def test_a_captured_slope_may_become_none(cupy, rng):
    """One that was a kernel's unit is 0, negative or infinite when the graph is replayed."""
    arrays = qkv(rng, seqlens=(150, 333), head_dim=128)
    held = cupy.full(4, 0.25, np.float32)
    mod = ScoreMod("score + x[head] * (kv - q)", arrays={"x": held})
    asked = ScoreMod("kv < 0 ? score : score + x[head] * (kv - q)", arrays={"x": held})
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    run(arrays, SCHEMES["int8-block"], score_mod=mod)
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        result = run(arrays, SCHEMES["int8-block"], score_mod=mod)
        graph = stream.end_capture()
        for slope in (0.25, 0.0, -0.5, np.inf, 0.125):
            held[...] = slope
            graph.launch(stream)
            stream.synchronize()
            wanted = run(arrays, SCHEMES["int8-block"], score_mod=asked)
            stream.synchronize()
            for x, y in zip(result, wanted, strict=True):
                x, y = (on_host(part).astype(np.float64) for part in (x, y))
                np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
                np.testing.assert_allclose(x, y, atol=2e-2, rtol=2e-2)


@every_scheme
@pytest.mark.parametrize("is_causal", [False, True])
def test_masks_can_be_said(rng, scheme, is_causal):
    arrays = qkv(rng, seqlens=(150, 333))
    how = {"is_causal": is_causal}
    seen = documents(rng, 150, 333)
    of_bytes = MaskMod("seen[q * 333 + kv]", arrays={"seen": as_it_is(seen)})
    wanted = run(arrays, SCHEMES[scheme], attn_mask=as_it_is(seen), **how)
    close(run(arrays, SCHEMES[scheme], mask_mod=of_bytes, **how), wanted, scheme)
    hides = ScoreMod("seen[q * 333 + kv] ? score : -INFINITY", arrays={"seen": as_it_is(seen)})
    close(run(arrays, SCHEMES[scheme], score_mod=hides, **how), wanted, scheme)
    close(
        run(arrays, SCHEMES[scheme], mask_mod="kv <= own"),
        run(arrays, SCHEMES[scheme], is_causal=True),
        scheme,
    )
    plain = run(arrays, SCHEMES[scheme], **how)
    close(run(arrays, SCHEMES[scheme], mask_mod="true", **how), plain, scheme)
    o, lse = map(on_host, run(arrays, SCHEMES[scheme], mask_mod="false", **how))
    assert not o.any()
    assert np.isneginf(lse).all()


@some_schemes
def test_chunks_of_llama_4(rng, scheme):
    arrays = qkv(rng, seqlens=(600, 600), head_dim=128)
    q, kv = np.arange(600)[:, None], np.arange(600)
    seen = q // 200 == kv // 200
    found = run(arrays, SCHEMES[scheme], mask_mod="q / 200 == kv / 200", is_causal=True)
    wanted = run(arrays, SCHEMES[scheme], attn_mask=as_it_is(seen), is_causal=True)
    close(found, wanted, scheme)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int32", "int64", "float16", "bfloat16", "float32"]
)
def test_arrays_of_every_type(rng, dtype):
    arrays = qkv(rng)
    x = rng.integers(0, 2, (4,)) if dtype == "bool" else rng.integers(0, 4, (4,))
    mod = ScoreMod("score + x[head] * (kv % 2)", arrays={"x": on_gpu(x, dtype)})
    of_numpy = {"score_mod": lambda score, head, kv: score + x[head] * (kv % 2)}
    result = run(arrays, SCHEMES["int8"], score_mod=mod)
    check(result, arrays, SCHEMES["int8"], **of_numpy)


def test_numbers_are_read_when_they_are_called_for(rng):
    arrays = qkv(rng)
    for n, x in ((1, 0.5), (2, 0.5), (-3, 1e-3), (2.0, -0.0)):
        mod = ScoreMod("score * x + n * (kv % 3)", numbers={"n": n, "x": x})
        of_numpy = {"score_mod": lambda score, kv, n=n, x=x: score * x + n * (kv % 3)}
        check(run(arrays, SCHEMES["int8"], score_mod=mod), arrays, SCHEMES["int8"], **of_numpy)


def test_expressions_do_not_meet_one_another(rng):
    arrays = qkv(rng)
    for _ in range(2):
        for factor in (1, 2, 3):
            result = run(arrays, SCHEMES["int8"], score_mod=f"score * {factor}")
            of_numpy = {"score_mod": lambda score, by=factor: by * score}
            check(result, arrays, SCHEMES["int8"], **of_numpy)


@every_scheme
def test_nan_of_hidden_values_stays_hidden(rng, scheme):
    inputs = make(rng, heads=(4, 2), seqlens=(130, 512))
    inputs[1][:, :, :256] = inputs[2][:, :, :256] = np.nan
    arrays = [on_gpu(x, "float32") for x in inputs]
    seen = np.ones((1, 512), bool)
    seen[:, :256] = False
    wanted = run(arrays, SCHEMES[scheme], attn_mask=as_it_is(seen))
    for options in (
        {"mask_mod": "kv >= 256"},
        {"score_mod": "kv >= 256 ? score : -INFINITY"},
    ):
        found = run(arrays, SCHEMES[scheme], **options)
        for x, y in zip(found, wanted, strict=True):
            finite = np.isfinite(on_host(y))
            if SCHEMES[scheme].pv != "fp16":  # in IEEE arithmetic 0 * NaN is NaN
                assert np.isfinite(on_host(x)[finite]).all()


@some_schemes
def test_captured_calls_read_what_is_there_when_they_are_replayed(cupy, rng, scheme):
    arrays = qkv(rng)
    first, second = (eighths(rng, (4,)) for _ in range(2))
    held = as_it_is(first)
    mod = ScoreMod("score * x[head]", arrays={"x": held})
    expected = []
    for x in (first, second):
        other = ScoreMod("score * x[head]", arrays={"x": as_it_is(x)})
        expected.append([on_host(y) for y in run(arrays, SCHEMES[scheme], score_mod=other)])
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        result = run(arrays, SCHEMES[scheme], score_mod=mod)
        graph = stream.end_capture()
        for x, wanted in zip((first, second), expected, strict=True):
            held[...] = as_it_is(x)
            graph.launch(stream)
            stream.synchronize()
            for a, b in zip(result, wanted, strict=True):
                assert on_host(a).tobytes() == b.tobytes()


@pytest.mark.parametrize("scheme", ["int8", "int8-token", "int4"])
def test_quantized_operands_have_them_too(rng, scheme):
    arrays = qkv(rng, dtype="float32")
    options = on_device(mod_options("both", rng, arrays[0].shape, 333))
    how = SCHEMES[scheme]
    whole = on_host(cuattn.attention(*arrays, scheme=how, **options))
    k, v = cuattn.quantize_kv(*arrays[1:], scheme=how)
    q = cuattn.quantize(arrays[0], operand="q", scheme=how)
    for given in ((arrays[0], k, v), (q, *arrays[1:]), (q, k, v)):
        found = on_host(cuattn.attention(*given, scheme=how, **options))
        np.testing.assert_allclose(found, whole, atol=0.3 if how.qk == "int4" else 0.05)


def test_tensors_of_pytorch(torch, rng):
    arrays = qkv(rng)
    tensors = [torch.from_dlpack(x) for x in arrays]
    for _ in range(3):
        options = mod_options("both", rng, arrays[0].shape, 333)
        wanted = on_host(cuattn.attention(*arrays, **on_device(options)))
        of_torch = with_arrays(options, lambda x: torch.from_numpy(np.asarray(x)).cuda())
        of_torch |= {
            name: torch.from_numpy(x).cuda() for name, x in options.items() if name in ARRAYS
        }
        found = cuattn.attention(*tensors, **of_torch)
        np.testing.assert_array_equal(found.cpu().numpy(), wanted)
    ids = torch.arange(333, device="cuda") // 100
    mod = MaskMod("ids[own] == ids[kv]", arrays={"ids": ids})
    seen = (ids[-150:, None] == ids).cpu().numpy()
    found = cuattn.attention(*tensors, mask_mod=mod)
    wanted = on_host(cuattn.attention(*arrays, attn_mask=as_it_is(seen)))
    np.testing.assert_allclose(found.float().cpu().numpy(), wanted, atol=5e-3)


def test_mistakes_launch_and_write_nothing(cupy, rng):
    arrays = qkv(rng)
    out = cupy.full_like(arrays[0], 7)
    with pytest.raises(CompileError, match=r"score_mod\(1\): error:"):
        cuattn.attention(*arrays, score_mod="score + nothing", out=out)
    mod = ScoreMod("score + x[0]", arrays={"x": np.zeros(1, np.float32)})
    with pytest.raises(ArgumentError, match=r"^score_mod\.x\.device must be"):
        cuattn.attention(*arrays, score_mod=mod, out=out)
    mod = ScoreMod("score + x[0]", arrays={"x": cupy.zeros(8, np.float32)[::2]})
    with pytest.raises(ArgumentError, match=r"^score_mod\.x\.strides must be"):
        cuattn.attention(*arrays, score_mod=mod, out=out)
    mod = MaskMod("x[0] > 0", arrays={"x": out})
    with pytest.raises(ArgumentError, match=r"apart from that of mask_mod\.x"):
        cuattn.attention(*arrays, mask_mod=mod, out=out)
    assert (on_host(out) == 7).all()
