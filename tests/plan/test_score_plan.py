"""Options of scores from arrays to the output, by both families on the simulated GPU."""

import numpy as np
import pytest
from helpers.score_cases import SETS, in_library, score_options

import cuattn
from cuattn.compile.chain import Chain
from cuattn.errors import ArgumentError
from cuattn.reference import emulate, exact
from cuattn.reference.rounding import round_bfloat16
from cuattn.specs.mods import MOST

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU, gpu_of

LENGTHS = [(40, 100), (130, 70), (200, 200), (33, 300), (1, 150)]
SCHEMES = ["int8", "int8-fast", "int8-token", "int4", "int8-fp16", "fp16"]


@pytest.fixture(params=["80", "90a"])
def gpu(request, monkeypatch):
    return SimulatedGPU(monkeypatch, gpu_of(request.param))


def qkv(rng, seqlen_q, seqlen_kv, heads=(4, 2), head_dim=40):
    shapes = [(2, heads[0], seqlen_q), (2, heads[1], seqlen_kv), (2, heads[1], seqlen_kv)]
    return [(rng.standard_normal((*x, head_dim)) + 0.5).astype(np.float32) for x in shapes]


def stored(x, dtype):
    """Return an array of the simulated GPU, on which uint16 stands for bfloat16."""
    if dtype != "bfloat16":
        return x.astype(dtype)
    return (round_bfloat16(x).astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def call(inputs, options, dtype="float32", **more):
    given = in_library(options, dtype, stored)
    return cuattn.attention(*inputs, return_lse=True, **given, **more)


def agree(o, wanted):
    """A P that is nearly between two steps may round the other way, as factors are float32."""
    off = np.sqrt(np.mean((o - wanted) ** 2))
    assert off <= 1e-3 * np.sqrt(np.mean(wanted**2))


def both_agree(found, wanted):
    agree(found[0], wanted[0])
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5, atol=1e-5)


@pytest.mark.covering
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_arrays_are_attended_as_in_the_emulation(gpu, rng, name, scheme, lengths, dtype):
    inputs = qkv(rng, *lengths)
    options = score_options(name, rng, inputs[0].shape, lengths[1])
    found = call(inputs, options, dtype, scheme=scheme)
    both_agree(found, emulate.attention(*inputs, scheme=scheme, **options))
    unseen = np.isneginf(exact.attention(*inputs, **options | {"sinks": None})[1])
    assert not found[0][unseen].any()


SHAPES = [(2, 4, 70, 150), (2, 1, 1, 150), (1, 4, 1, 1), (70, 150), (150,), (4, 70, 1), (1,)]


def spread(x):
    """Return the same numbers with gaps between all, and backwards in memory."""
    wide = np.zeros([2 * n for n in x.shape], x.dtype)
    gaps = wide[tuple(slice(None, None, -2) for _ in x.shape)]
    gaps[...] = x
    return gaps


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["bool", "float16"])
def test_masks_lie_anywhere_and_are_broadcast(gpu, rng, shape, dtype):
    inputs = qkv(rng, 70, 150)
    mask = rng.random(shape) < 0.7
    if dtype == "float16":
        mask = np.where(mask, rng.integers(-8, 9, shape) / 8, -np.inf).astype(dtype)
    wanted = emulate.attention(*inputs, attn_mask=mask)
    for given in (mask, spread(mask), np.broadcast_to(mask, (2, 4, 70, 150))):
        both_agree(cuattn.attention(*inputs, attn_mask=given, return_lse=True), wanted)


@pytest.mark.parametrize("least", [-np.inf, -65504.0])
def test_the_least_number_of_a_type_hides(gpu, rng, least):
    inputs = qkv(rng, 70, 150)
    seen = rng.random((70, 150)) < 0.5
    bias = np.where(seen, 0.0, least).astype(np.float16)
    found = cuattn.attention(*inputs, attn_mask=bias, return_lse=True)
    both_agree(found, emulate.attention(*inputs, attn_mask=seen))


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"sinks": np.zeros(4, np.float32)}])
@pytest.mark.parametrize("scheme", ["int8", "int8-token", "fp16"])
def test_what_smoothing_took_is_there_without_lse(gpu, rng, options, scheme):
    """Also of a quantized Q, of which the caller computes it."""
    inputs = qkv(rng, 70, 150)
    wanted, _ = emulate.attention(*inputs, scheme=scheme, **options)
    o = cuattn.attention(*inputs, scheme=scheme, **options)
    agree(o, wanted)
    if scheme != "fp16":
        q = cuattn.quantize(inputs[0], operand="q", scheme=scheme)
        o = cuattn.attention(q, *inputs[1:], scheme=scheme, **options)
        np.testing.assert_allclose(o, wanted, rtol=1e-2, atol=1e-2)


def test_without_keys_a_sink_is_all_there_is(gpu, rng):
    inputs = qkv(rng, 5, 0)
    sinks = np.array([1.5, -np.inf, 0.0, 3.0], np.float32)
    for dtype in ("float16", "bfloat16", "float32"):
        o, lse = cuattn.attention(*inputs, sinks=stored(sinks, dtype), return_lse=True)
        assert not o.any()
        np.testing.assert_array_equal(lse, np.broadcast_to(sinks[:, None], lse.shape))
    assert gpu.launched == []
    mask = np.zeros((5, 0), bool)
    assert (cuattn.attention(*inputs, attn_mask=mask, return_lse=True)[1] == -np.inf).all()


def test_outputs_lie_apart_from_what_is_read(gpu, rng):
    inputs = qkv(rng, 40, 40)
    memory = np.zeros((2, 4, 40, 41), np.float32)
    out, bias = memory[..., :40], memory[:1, :1, :, :40]
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of attn_mask"):
        cuattn.attention(*inputs, attn_mask=bias, out=out)
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of sinks"):
        cuattn.attention(*inputs, sinks=memory[0, 0, :4, 3], out=out)
    # Arrays that only interleave do not overlap.
    seen = memory.view(np.bool_)[0, :, :, 160:164][..., 0]
    assert seen.shape == (4, 40)
    seen[...] = True
    assert cuattn.attention(*inputs, attn_mask=seen[0], out=out) is out
    agree(out, emulate.attention(*inputs)[0])
    assert seen.all()


def test_addresses_are_in_the_order_of_their_names(gpu, rng, monkeypatch):
    given = []
    launch = Chain.__call__
    monkeypatch.setattr(
        Chain, "__call__", lambda self, x, stream: given.append(x) or launch(self, x, stream)
    )
    inputs = qkv(rng, 40, 100)
    options = score_options("everything", rng, inputs[0].shape, 100)
    call(inputs, options)
    arrays = [options[name] for name in ("sinks", "alibi_slopes", "attn_mask")]
    cuattn.attention(*inputs, attn_mask=arrays[2])
    cuattn.attention(*inputs)
    mask = cuattn.block_mask(arrays[2])
    cuattn.attention(*inputs, attn_mask=mask)
    none = (0,) * MOST
    assert given[1][-4 - MOST :] == (0, 0, arrays[2].ctypes.data, *none, 0)
    assert given[2][-4 - MOST :] == (0, 0, 0, *none, 0)
    assert all(given[0][-4 - MOST : -MOST - 1])
    assert given[4][-4 - MOST :] == (0, 0, arrays[2].ctypes.data, *none, mask.map_ptr)
