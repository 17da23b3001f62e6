"""Masks that are looked at once, by both families on the simulated GPU."""

import copy
import pickle

import numpy as np
import pytest
from helpers.score_cases import documents, masked

import cuattn
from cuattn.errors import ArgumentError
from cuattn.plan.prepared import CALLS
from cuattn.reference.rounding import round_bfloat16

pytest.importorskip("cupy")
from simulated_gpu import SimulatedGPU, gpu_of
from simulated_gpu.gpu import SimulatedCaller

SHAPE = (2, 4, 70, 150)
AXES = [(), (0,), (1,), (2,), (3,), (0, 1), (0, 1, 2), (1, 3), (0, 1, 2, 3)]


@pytest.fixture(params=["80", "90a"])
def gpu(request, monkeypatch):
    return SimulatedGPU(monkeypatch, gpu_of(request.param))


def qkv(rng, batch=2, heads=(4, 2), seqlens=SHAPE[2:], head_dim=40):
    shapes = [
        (batch, h, n) for h, n in zip((*heads, heads[1]), (*seqlens, seqlens[1]), strict=True)
    ]
    return [rng.standard_normal((*x, head_dim)).astype(np.float32) for x in shapes]


def stored(x, dtype):
    if dtype == "bool":
        return x
    if dtype != "bfloat16":
        return x.astype(dtype)
    return (round_bfloat16(x).astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def mask_of(rng, shape, dtype):
    if dtype == "bool":
        return rng.random(shape) < 0.7
    return stored(masked(rng, shape), dtype)


def same(found, wanted):
    for x, y in zip(found, wanted, strict=True):
        assert x.tobytes() == y.tobytes()


def attend(inputs, mask, **options):
    return cuattn.attention(*inputs, attn_mask=mask, return_lse=True, **options)


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("dtype", ["bool", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("scheme", ["int8", "int8-block", "fp16"])
@pytest.mark.covering
def test_calls_have_the_same_result_without_another_look(gpu, rng, axes, dtype, scheme):
    shape = tuple(1 if axis in axes else n for axis, n in enumerate(SHAPE))
    mask, inputs = mask_of(rng, shape, dtype), qkv(rng)
    wanted = attend(inputs, mask, scheme=scheme)
    made = cuattn.block_mask(mask, seqlen_kv=SHAPE[3])
    assert made.shape == (*shape[:3], SHAPE[3])
    assert (made.dtype, made.device) == (dtype, (2, 0))
    gpu.launched.clear()
    if dtype == "bool":
        mask[...] = False  # its bits are there
    for _ in range(2):
        same(attend(inputs, made, scheme=scheme), wanted)
    assert not any("mask_map" in name for name in gpu.launched)


def test_expanded_axes_fit_any_size(gpu, rng):
    row = rng.random(SHAPE[3]) < 0.5
    made = cuattn.block_mask(np.broadcast_to(row, SHAPE))
    assert made.shape == (1, 1, 1, SHAPE[3])
    for batch, heads, rows in ((1, (4, 2), 70), (3, (2, 1), 200), (2, (4, 4), 1)):
        inputs = qkv(rng, batch, heads, (rows, SHAPE[3]))
        same(attend(inputs, made), attend(inputs, row))


def test_sizes_that_are_given_are_those_of_calls(gpu, rng):
    row = rng.random((2, 1, 1, 150)) < 0.5
    made = cuattn.block_mask(row, seqlen_q=np.int64(70), seqlen_kv=150)
    assert made.shape == (2, 1, 70, 150)
    inputs = qkv(rng)
    same(attend(inputs, made), attend(inputs, row))
    for other in (
        qkv(rng, seqlens=(71, 150)),
        qkv(rng, seqlens=(70, 149)),
        qkv(rng, batch=1),
    ):
        with pytest.raises(
            ArgumentError, match=r"^attn_mask\.shape must be \(\d, 4, .*2, 1, 70, 150"
        ):
            attend(other, made)


WRONG = [
    ((70, 150), {"seqlen_q": 71}, r"^seqlen_q must be 70, the rows of attn_mask, got 71"),
    ((70, 150), {"seqlen_kv": 70}, r"^seqlen_kv must be 150, the keys of attn_mask, got 70"),
    ((70, 150), {"seqlen_kv": -1}, r"^seqlen_kv must be an integer of at least 0"),
    ((70, 150), {"seqlen_q": True}, r"^seqlen_q must be an integer"),
    ((70, 1), {}, r"^seqlen_kv must be given, as attn_mask has one column"),
    ((1, 1, 1, 70, 150), {}, r"^attn_mask\.shape must be one that broadcasts"),
]


@pytest.mark.parametrize(("shape", "options", "message"), WRONG)
def test_what_is_wrong_is_named(gpu, shape, options, message):
    with pytest.raises(ArgumentError, match=message):
        cuattn.block_mask(np.ones(shape, bool), **options)
    assert gpu.launched == []


def test_what_is_no_mask_is_named(gpu):
    with pytest.raises(ArgumentError, match=r"^attn_mask\.dtype must be one of"):
        cuattn.block_mask(np.ones((3, 3), np.int32))
    made = cuattn.block_mask(np.ones((3, 3), bool))
    with pytest.raises(ArgumentError, match=r"^attn_mask must be an array"):
        cuattn.block_mask(made)
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="make it anew"):
            copied(made)
    assert repr(made) == "BlockMask((1, 1, 3, 3) of bool, 56 bytes on GPU 0)"


def test_it_knows_its_size_and_density(gpu, rng):
    seen = np.zeros((2, 1, 130, 200), bool)
    seen[0, 0, 129, 199] = seen[1, 0, :64, :65] = True
    made = cuattn.block_mask(seen)
    assert made.nbytes == 4 * (2 * 130 * 8 + 2 * 3 * 2 * 1)
    assert made.density == 3 / 24
    bias = np.where(seen, np.float16(0.5), np.float16(-np.inf))
    of_floats = cuattn.block_mask(bias)
    assert of_floats.nbytes == 4 * 2 * 3 * 2
    assert of_floats.density == 3 / 24


@pytest.mark.parametrize("shape", [(0, 1, 5, 7), (2, 4, 0, 7), (2, 4, 5, 0)])
def test_masks_without_elements(gpu, rng, shape):
    made = cuattn.block_mask(np.ones(shape, bool))
    assert gpu.launched == []
    assert made.shape == shape
    assert made.density == 0
    inputs = qkv(rng, shape[0], (4, 2), shape[2:])
    same(attend(inputs, made), attend(inputs, np.ones(shape, bool)))


def test_outputs_lie_apart_from_floats_that_are_read(gpu, rng):
    inputs = qkv(rng, seqlens=(40, 40))
    memory = np.zeros((2, 4, 40, 41), np.float32)
    out, bias = memory[..., :40], memory[:1, :1, :, :40]
    made = cuattn.block_mask(bias)
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of attn_mask"):
        attend(inputs, made, out=out)
    seen = memory.view(np.bool_)[:1, :1, :, :40]
    seen[...] = True
    wanted = attend(inputs, seen)
    assert attend(inputs, cuattn.block_mask(seen), out=out)[0] is out
    same([np.ascontiguousarray(out)], wanted[:1])


@pytest.mark.parametrize("dtype", ["bool", "float32"])
@pytest.mark.parametrize("with_out", [False, True])
def test_repeated_calls_find_their_masks(gpu, rng, monkeypatch, dtype, with_out):
    looks = []
    look = SimulatedCaller.look
    monkeypatch.setattr(
        SimulatedCaller, "look", lambda self, x, name: looks.append(name) or look(self, x, name)
    )
    sinks = rng.standard_normal(4).astype(np.float32)
    inputs = qkv(rng)
    results, kept = [], []
    for more in ({}, {"sinks": sinks}):
        for _ in range(3):
            mask = mask_of(rng, (1, 1, *SHAPE[2:]), dtype)
            made = cuattn.block_mask(mask)
            looks.clear()
            out = np.zeros_like(inputs[0]) if with_out else None
            results.append(attend(inputs, made, out=out, **more))
            kept.append((mask, more))
        assert looks == []
    for found, (mask, more) in zip(results, kept, strict=True):
        same(found, attend(inputs, mask, **more))
    assert len(CALLS) == 4


def test_a_bias_may_be_the_output_of_no_repeated_call(gpu, rng):
    inputs = qkv(rng, 1, (1, 1), (40, 40), 40)
    bias = np.zeros((1, 1, 40, 40), np.float32)
    made = cuattn.block_mask(bias)
    attend(inputs, made, out=np.zeros((1, 1, 40, 40), np.float32))
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of attn_mask"):
        attend(inputs, made, out=bias)


def test_other_rules_act_as_well(gpu, rng):
    inputs = qkv(rng)
    seen = documents(rng, *SHAPE[2:])
    options = {"window_size": (40, 10), "softcap": 3.0, "sinks": np.zeros(4, np.float32)}
    made = cuattn.block_mask(seen)
    same(attend(inputs, made, **options), attend(inputs, seen, **options))
