"""Masks that are looked at once, in host memory."""

import numpy as np
import pytest
from helpers.score_cases import documents, masked

import cuattn
from cuattn.errors import ArgumentError


def qkv(rng, batch=2, seqlens=(70, 150)):
    shapes = [(batch, 4, seqlens[0], 32), *2 * [(batch, 2, seqlens[1], 32)]]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def same(inputs, made, mask):
    for x, y in zip(
        cuattn.attention(*inputs, attn_mask=made, return_lse=True),
        cuattn.attention(*inputs, attn_mask=mask, return_lse=True),
        strict=True,
    ):
        assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("shape", [(70, 150), (150,), (2, 1, 70, 1), (1, 4, 1, 150), (1,)])
@pytest.mark.parametrize("dtype", ["bool", "float16", "float32"])
def test_calls_are_those_with_the_mask(rng, shape, dtype):
    inputs = qkv(rng)
    mask = np.asarray(rng.random(shape) < 0.7)
    if dtype != "bool":
        mask = masked(rng, (1, 1, *shape))[0, 0].astype(dtype)
    made = cuattn.block_mask(mask, seqlen_kv=150)
    assert made.shape == (*[1] * (4 - len(shape)), *shape[:-1], 150)[-4:]
    assert (made.dtype, made.device) == (dtype, (1, 0))
    before = mask.copy()
    if dtype == "bool":
        mask[...] = ~mask
    same(inputs, made, before)
    same(inputs, cuattn.block_mask(np.broadcast_to(before, (2, 4, 70, 150))), before)


def test_it_knows_its_size_and_density(rng):
    seen = documents(rng, 130, 200)
    seen[0, 0] = True
    tiles = [seen[i : i + 64, j : j + 64].any() for i in (0, 64, 128) for j in (0, 64, 128, 192)]
    made = cuattn.block_mask(seen)
    assert made.density == np.mean(tiles)
    assert made.nbytes == seen.nbytes
    least = np.finfo(np.float16).min
    bias = np.where(seen, np.float16(0), least)
    assert cuattn.block_mask(bias).density == np.mean(tiles)
    assert cuattn.block_mask(bias).nbytes == 0
    assert repr(made) == "BlockMask((1, 1, 130, 200) of bool, 26000 bytes in host memory)"
    assert cuattn.block_mask(np.ones((3, 0), bool)).density == 0


def test_what_is_wrong_is_named(rng):
    inputs = qkv(rng)
    with pytest.raises(ArgumentError, match=r"^stream must be None"):
        cuattn.block_mask(np.ones((70, 150), bool), stream=0)
    with pytest.raises(ArgumentError, match=r"^attn_mask must be an array"):
        cuattn.block_mask("causal")
    made = cuattn.block_mask(np.ones((1, 1), bool), seqlen_q=70, seqlen_kv=140)
    with pytest.raises(ArgumentError, match=r"^attn_mask\.shape must be \(2, 4, 70, 150\)"):
        cuattn.attention(*inputs, attn_mask=made)
    bias = np.zeros((70, 150), np.float32)
    made = cuattn.block_mask(bias)
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of attn_mask"):
        cuattn.attention(
            *qkv(rng, 1, (70, 150)), attn_mask=made, out=bias.ravel()[:8960].reshape(1, 4, 70, 32)
        )
    for name in ("sinks", "alibi_slopes"):
        with pytest.raises(ArgumentError, match=rf"^{name}\."):
            cuattn.attention(*inputs, **{name: made})
