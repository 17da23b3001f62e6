"""Calls with options of scores on a GPU: of any library and type, in graphs and in place."""

from itertools import product

import numpy as np
import pytest
from helpers.gpu_cases import make, on_gpu, on_host, run
from helpers.score_cases import eighths, in_library, score_options
from helpers.score_kernels import MASKED, compile_kernels, rules_of

import cuattn
from cuattn.errors import ArgumentError
from cuattn.presets import PRESETS
from cuattn.specs.rules import Rules

pytestmark = pytest.mark.gpu

SHAPE = (2, 4, 130, 200)
some_schemes = pytest.mark.parametrize("scheme", ["int8", "fp16"])
every_type = pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    int8, fp16 = PRESETS["int8"], PRESETS["fp16"]
    kinds = [(int8, 64, "float32", (False, Rules(alibi=True)))]
    kinds += [(int8, 64, "float16", (False, MASKED["bool"]))]
    kinds += [(int8, 64, "float16", rules_of("everything", "bfloat16"))]
    for how, name in product((int8, fp16), ("sliding", "padding", "everything")):
        kinds.append((how, 64, "float16", rules_of(name, "float32")))
    for how, name in product(CODED, CODED_SETS):
        kinds.append((PRESETS[how], 64, "float32", rules_of(name, "float32")))
    compile_kernels(kinds)


CODED, CODED_SETS = ("int8", "int8-token", "int4"), ("softcap", "sliding", "everything")


def qkv(rng, dtype="float16", seqlens=SHAPE[2:], head_dim=64):
    inputs = make(rng, batch=2, heads=(4, 2), seqlens=seqlens, head_dim=head_dim)
    return [on_gpu(x, dtype) for x in inputs]


def attend(arrays, scheme, **options):
    return [on_host(x) for x in run(arrays, PRESETS[scheme], **options)]


def same(found, wanted):
    for x, y in zip(found, wanted, strict=True):
        assert x.tobytes() == y.tobytes()


@every_type
def test_sinks_and_slopes_of_every_type_and_stride(rng, dtype):
    arrays = qkv(rng, "float32")
    sinks = eighths(rng, 4)
    slopes = np.abs(eighths(rng, (2, 4), most=1))
    wanted = attend(
        arrays, "int8", sinks=on_gpu(sinks, "float32"), alibi_slopes=on_gpu(slopes, "float32")
    )
    for memory in (
        lambda x: x,
        lambda x: x[..., ::-1].copy()[..., ::-1],
        lambda x: x.repeat(3, axis=-1)[..., ::3],
    ):
        options = {
            "sinks": memory(on_gpu(sinks, dtype)),
            "alibi_slopes": memory(on_gpu(slopes, dtype)),
        }
        same(attend(arrays, "int8", **options), wanted)
    of_heads = on_gpu(slopes[:1].repeat(2, axis=0), dtype), on_gpu(slopes[0], dtype)
    same(*(attend(arrays, "int8", alibi_slopes=x) for x in of_heads))


@pytest.mark.parametrize("name", ["sliding", "everything"])
@some_schemes
def test_layouts_and_outputs(cupy, rng, scheme, name):
    arrays = qkv(rng)
    options = in_library(score_options(name, rng, SHAPE, SHAPE[3]), "float32", on_gpu)
    o, lse = attend(arrays, scheme, **options)
    nhd = [cupy.ascontiguousarray(x.transpose(0, 2, 1, 3)) for x in arrays]
    out = cupy.full_like(nhd[0], np.nan)
    found, found_lse = run(nhd, PRESETS[scheme], layout="NHD", out=out, **options)
    assert found is out
    same([on_host(out).swapaxes(1, 2).copy(), on_host(found_lse)], [o, lse])
    # An output whose rows begin at odd elements is written by a copy.
    wide = cupy.zeros((*arrays[0].shape[:3], 71), np.float16)
    run(arrays, PRESETS[scheme], out=wide[..., 3:67], **options)
    same([np.ascontiguousarray(on_host(wide)[..., 3:67])], [o])
    assert not on_host(wide)[..., :3].any()


@pytest.mark.parametrize("scheme", CODED)
@pytest.mark.parametrize("name", CODED_SETS)
def test_quantized_operands_have_them_too(rng, scheme, name):
    arrays = qkv(rng, "float32")
    of_numpy = score_options(name, rng, SHAPE, SHAPE[3])
    options = in_library(of_numpy, "float32", on_gpu)
    how = PRESETS[scheme]
    whole = on_host(cuattn.attention(*arrays, scheme=how, **options))
    k, v = cuattn.quantize_kv(*arrays[1:], scheme=how)
    q = cuattn.quantize(arrays[0], operand="q", scheme=how)
    for given_arrays in ((arrays[0], k, v), (q, *arrays[1:]), (q, k, v)):
        found = on_host(cuattn.attention(*given_arrays, scheme=how, **options))
        # What smoothing took from the logits of a quantized Q is that of its codes; of a quantized
        # K, what it took from Q's is.
        exactly = given_arrays[0] is arrays[0] and how.smooth_q == "none"
        atol = 0 if exactly else 0.05 if how.qk == "int8" else 0.3
        np.testing.assert_allclose(found, whole, atol=atol)


def test_without_keys_a_sink_is_all_there_is(rng):
    arrays = qkv(rng, seqlens=(5, 0))
    sinks = np.array([1.5, -np.inf, 0.0, 3.0], np.float32)
    for dtype in ("float16", "bfloat16", "float32"):
        o, lse = attend(arrays, "int8", sinks=on_gpu(sinks, dtype))
        assert not o.any()
        np.testing.assert_array_equal(lse, np.broadcast_to(sinks[:, None], lse.shape))


@some_schemes
@pytest.mark.parametrize("name", ["sliding", "padding", "everything"])
def test_captured_calls_read_what_is_there_when_they_are_replayed(cupy, rng, scheme, name):
    arrays = qkv(rng)
    cases = [score_options(name, rng, SHAPE, SHAPE[3]) for _ in range(2)]
    first, second = (in_library(x, "float32", on_gpu) for x in cases)
    expected = [attend(arrays, scheme, **x) for x in (first, second)]
    held = {n: x.copy() if hasattr(x, "copy") else x for n, x in first.items()}
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        o, lse = run(arrays, PRESETS[scheme], **held)
        graph = stream.end_capture()
        for options, wanted in ((first, expected[0]), (second, expected[1])):
            for n, x in held.items():
                if hasattr(x, "copy"):
                    x[...] = options[n]
            graph.launch(stream)
            stream.synchronize()
            same([on_host(o), on_host(lse)], wanted)


def test_tensors_of_pytorch_are_looked_at_once(torch, rng):
    arrays = qkv(rng)
    tensors = [torch.from_dlpack(x) for x in arrays]
    for _ in range(3):
        of_numpy = score_options("everything", rng, SHAPE, SHAPE[3])
        options = in_library(of_numpy, "float32", on_gpu)
        wanted = on_host(cuattn.attention(*arrays, **options))
        of_torch = {
            n: torch.from_dlpack(x) if hasattr(x, "shape") else x for n, x in options.items()
        }
        for mask in (of_torch["attn_mask"], of_torch["attn_mask"].expand(SHAPE)):
            found = cuattn.attention(*tensors, **{**of_torch, "attn_mask": mask})
            np.testing.assert_array_equal(found.cpu().numpy(), wanted)
    seen = torch.ones(SHAPE[2:], dtype=torch.bool, device="cuda").tril(70)
    bf16 = torch.zeros(4, dtype=torch.bfloat16, device="cuda")
    found = cuattn.attention(*tensors, attn_mask=seen, sinks=bf16)
    options = {
        "attn_mask": on_gpu(seen.cpu().numpy(), "bool"),
        "sinks": on_gpu(np.zeros(4), "float32"),
    }
    wanted = on_host(cuattn.attention(*arrays, **options))
    np.testing.assert_array_equal(found.cpu().numpy(), wanted)
    with torch.no_grad():
        sinks = torch.nn.Parameter(bf16)
        assert torch.equal(cuattn.attention(*tensors, attn_mask=seen, sinks=sinks), found)


def test_arrays_of_jax(jax, rng):
    arrays = qkv(rng)
    of_numpy = score_options("everything", rng, SHAPE, SHAPE[3])
    options = in_library(of_numpy, "bfloat16", lambda x, d: jax.numpy.asarray(x).astype(d))
    found = cuattn.attention(*(jax.numpy.asarray(on_host(x)) for x in arrays), **options)
    wanted = cuattn.attention(*arrays, **in_library(of_numpy, "bfloat16", on_gpu))
    np.testing.assert_array_equal(np.asarray(found), on_host(wanted))
    seen = np.ones(SHAPE[2:], bool)
    with pytest.raises(ArgumentError, match=r"^attn_mask\.device must be"):
        cuattn.attention(*arrays, attn_mask=seen)
