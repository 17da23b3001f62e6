"""Masks that are looked at once, on a GPU: calls have the same bits, in graphs and out of them."""

from itertools import product

import numpy as np
import pytest
from helpers.gpu_cases import make, on_gpu, on_host, run
from helpers.score_cases import eighths
from helpers.score_kernels import MASKED, compile_kernels

import cuattn
from cuattn.presets import PRESETS

pytestmark = pytest.mark.gpu

SHAPE = (2, 4, 130, 2200)
SCHEMES = ("int8", "int8-block", "fp16")
AXES = [(), (0,), (1,), (2,), (3,), (0, 1), (0, 1, 2), (1, 3)]
# Number of keys: rows at multiples of 16 bytes, and others.
KEYS = [16, 64, 77, 512, 1000, 2048, 4112]


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    rules = product(SCHEMES, MASKED.values())
    compile_kernels((PRESETS[how], 64, "float16", (False, x)) for how, x in rules)


def qkv(rng, shape=SHAPE):
    batch, heads, *seqlens = shape
    inputs = make(rng, batch=batch, heads=(heads, heads // 2), seqlens=seqlens, head_dim=64)
    return [on_gpu(x, "float16") for x in inputs]


def mask_of(rng, shape, dtype, share=0.7):
    seen = rng.random(shape) < share
    # Whole tiles that are hidden, and whole ones that are seen.
    seen[..., :64, 128:256] = False
    seen[..., 64:, 64:192] = True
    if dtype == "bool":
        return seen
    bias = np.where(seen, eighths(rng, shape), -np.inf).astype(np.float32)
    bias[..., 64:, 64:192] = 0
    return bias


def attend(arrays, scheme, mask):
    return [on_host(x) for x in run(arrays, PRESETS[scheme], attn_mask=mask)]


def same(found, wanted):
    for x, y in zip(found, wanted, strict=True):
        assert x.tobytes() == y.tobytes()


@pytest.mark.covering
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", ["bool", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_calls_are_those_with_the_mask(rng, scheme, dtype, axes):
    shape = [1 if axis in axes else n for axis, n in enumerate(SHAPE)]
    mask, arrays = on_gpu(mask_of(rng, shape, dtype), dtype), qkv(rng)
    wanted = attend(arrays, scheme, mask)
    made = cuattn.block_mask(mask, seqlen_kv=SHAPE[3])
    assert made.shape == (*shape[:3], SHAPE[3])
    if dtype == "bool":
        mask.fill(False)
    for _ in range(2):
        same(attend(arrays, scheme, made), wanted)


def backwards(x):
    return x[..., ::-1, ::-1].copy()[..., ::-1, ::-1]


def odd(x):
    """Rows that begin anywhere."""
    import cupy

    wide = cupy.ones((*x.shape[:3], x.shape[3] + 3), x.dtype)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


def keys_first(x):
    return x.transpose(3, 2, 1, 0).copy().transpose(3, 2, 1, 0)


@pytest.mark.parametrize("dtype", ["bool", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("rows", [1, 63, 200])
def test_maps_and_bits_are_those_of_the_mask(rng, dtype, keys, rows):
    """However it lies in memory, so whichever way it is read."""
    whole = mask_of(rng, (2, 3, rows, keys), dtype, share=0.97)
    seen = whole if dtype == "bool" else whole != -np.inf
    plain = whole if dtype == "bool" else whole == 0
    mask = on_gpu(whole, dtype)
    for given in (mask, backwards(mask), odd(mask), keys_first(mask)):
        made = cuattn.block_mask(given)
        words = made._map.get()
        for which, wanted in ((0, _tiles(seen, np.any)), (1, _tiles(plain, np.all))):
            found = _bits(words[..., which, :])[..., : wanted.shape[-1]]
            np.testing.assert_array_equal(found, wanted)
            assert not _bits(words[..., which, :])[..., wanted.shape[-1] :].any()
        assert made.density == pytest.approx(_tiles(seen, np.any).mean())
        if dtype == "bool":
            np.testing.assert_array_equal(_bits(made._bits.get())[..., :keys], whole)


def _bits(words):
    words = np.ascontiguousarray(words)
    return np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little").astype(bool)


def _tiles(x, of):
    """Return [.., tiles of rows, tiles of keys]."""
    rows, keys = (range(0, n, 64) for n in x.shape[2:])
    return np.stack(
        [
            np.stack([of(x[..., i : i + 64, j : j + 64], axis=(2, 3)) for j in keys], -1)
            for i in rows
        ],
        -2,
    )


@pytest.mark.parametrize("dtype", ["bool", "float16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_layers_of_other_sizes_share_it(rng, scheme, dtype):
    keys = SHAPE[3]
    mask = on_gpu(mask_of(rng, (1, 1, 1, keys), dtype), dtype)
    made = cuattn.block_mask(mask)
    for shape in ((1, 2, 200, keys), (3, 4, 64, keys), (2, 8, 1, keys)):
        arrays = qkv(rng, shape)
        same(attend(arrays, scheme, made), attend(arrays, scheme, mask))


@pytest.mark.parametrize("dtype", ["bool", "float16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_captured_calls_use_it(cupy, rng, scheme, dtype):
    arrays = qkv(rng)
    masks = [on_gpu(mask_of(rng, (1, 1, *SHAPE[2:]), dtype), dtype) for _ in range(2)]
    wanted = [attend(arrays, scheme, x) for x in masks]
    held = masks[0].copy()
    made = cuattn.block_mask(held)
    attend(arrays, scheme, made)
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        outside = run(arrays, PRESETS[scheme], attn_mask=made)
        graph = stream.end_capture()
        stream.begin_capture()  # what is made of the mask is made anew in each replay
        inside = run(arrays, PRESETS[scheme], attn_mask=cuattn.block_mask(held))
        both = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
        same([on_host(x) for x in outside], wanted[0])
        for mask, expected in zip(masks, wanted, strict=True):
            held[...] = mask
            both.launch(stream)
            stream.synchronize()
            same([on_host(x) for x in inside], expected)


def test_tensors_of_pytorch(torch, rng):
    arrays = qkv(rng)
    tensors = [torch.from_dlpack(x) for x in arrays]
    seen = mask_of(rng, (1, 1, *SHAPE[2:]), "bool")
    wanted = attend(arrays, "int8", on_gpu(seen, "bool"))[0]
    for mask in (
        torch.from_numpy(seen).cuda().expand(SHAPE),
        torch.zeros(SHAPE[2:], device="cuda").masked_fill(
            ~torch.from_numpy(seen[0, 0]).cuda(), -np.inf
        ),
    ):
        made = cuattn.block_mask(mask)
        assert made.shape == (1, 1, *SHAPE[2:])
        plain = attend(arrays, "int8", on_gpu(mask.cpu().numpy(), made.dtype))[0]
        for out in (None, None, torch.empty_like(tensors[0]), torch.empty_like(tensors[0])):
            found = cuattn.attention(*tensors, attn_mask=made, out=out)
            np.testing.assert_array_equal(found.cpu().numpy(), plain)
        if made.dtype == "bool":
            np.testing.assert_array_equal(plain, wanted)
