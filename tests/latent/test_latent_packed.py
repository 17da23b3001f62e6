"""Tokens for a latent cache of several sequences end to end."""

import numpy as np
import pytest
from latent_cases import BATCH, cache_of, everything

from cuattn.errors import ArgumentError

# Of steps the tokens of each sequence.
STEPS = ([70, 0, 5], [1, 1, 1], [0, 0, 0], [0, 130, 63])


def drawn(rng, counts, dtype=np.float16, behind=0):
    """Return tokens of both parts end to end, one array as models have it, and their bounds."""
    whole = rng.standard_normal((sum(counts) + behind, 576)).astype(dtype)
    whole[sum(counts) :] = np.nan
    return whole[:, :512], whole[:, 512:], np.cumsum([0, *counts]).astype(np.int32)


def append_apart(cache, latent, rope, bounds, sequences=(0, 1, 2)):
    for i, b in enumerate(sequences):
        rows = slice(bounds[i], bounds[i + 1])
        counts = np.zeros(BATCH, np.int64)
        counts[b] = rows.stop - rows.start
        cache.append(*(np.repeat(x[None, rows], BATCH, 0) for x in (latent, rope)), counts=counts)


def assert_same_tokens(cache, expected):
    np.testing.assert_array_equal(cache.lengths, expected.lengths)
    for name in ("codes", "scale", "rope"):
        x, y = (getattr(one.codes(), name) for one in (cache, expected))
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("page_size", [0, 64])
@pytest.mark.parametrize("device", ["cpu", None])
def test_is_the_same_as_appending_each_sequence(gpu, rng, device, page_size, dtype):
    cache, expected = (cache_of(200, x, page_size=page_size) for x in (device, "cpu"))
    for counts in STEPS:
        latent, rope, bounds = drawn(rng, counts, dtype, behind=2)
        cache.append(latent, rope, cu_seqlens_k=bounds.tolist())
        append_apart(expected, latent, rope, bounds)
    assert_same_tokens(cache, expected)
    latent, rope, bounds = drawn(rng, [3, 60], dtype)
    cache.append(latent, rope, cu_seqlens_k=bounds.tolist(), sequences=[1, 0])
    append_apart(expected, latent, rope, bounds, (1, 0))
    assert_same_tokens(cache, expected)


def test_the_gpu_checks_bounds_of_its_own(gpu, rng):
    cache, expected = cache_of(device=None), cache_of()
    for counts in STEPS:
        latent, rope, bounds = drawn(rng, counts, behind=1)
        cache.append(latent, rope, cu_seqlens_k=bounds)
        append_apart(expected, latent, rope, bounds)
    for wrong in ([0, 5, 4, 6], [0, 1, 2, 300], [-1, 0, 0, 0], [0, 0, 0, 299]):
        latent, rope, _ = drawn(rng, [299, 0, 0])
        cache.append(latent, rope, cu_seqlens_k=np.array(wrong, np.int32))
        with pytest.raises(ArgumentError, match="the GPU has refused"):
            _ = cache.lengths
    assert_same_tokens(cache, expected)


@pytest.mark.parametrize("device", ["cpu", None])
def test_what_is_wrong_is_named_and_changes_nothing(gpu, rng, device):
    cache = cache_of(device=device)
    latent, rope, bounds = drawn(rng, [7, 0, 2])
    cache.append(latent, rope, cu_seqlens_k=bounds.tolist())
    before, launched = everything(cache), len(gpu.launched)
    for given, message in (
        ({"counts": [1, 1, 1]}, "^counts must be None, as cu_seqlens_k is given"),
        ({"cu_seqlens_k": [0, 7, 6, 9]}, "^cu_seqlens_k must be bounds from 0 to 9"),
        ({"latent": latent[None]}, r"^latent\.shape must be \[n, 512\], as cu_seqlens_k is given"),
        ({"latent": latent[:, :64]}, r"^latent\.shape must be \[9, 512\]"),
        ({"rope": rope[:8]}, r"^rope\.shape must be \[9, 64\], as cu_seqlens_k is given"),
        ({"sequences": [0, 1, 1]}, "^sequences must be different"),
        ({"cu_seqlens_k": None}, r"^latent\.shape must be \[3, n, 512\], as the cache has it"),
    ):
        with pytest.raises(ArgumentError, match=message):
            cache.append(
                **{"latent": latent, "rope": rope, "cu_seqlens_k": bounds.tolist()} | given
            )
    for x, y in zip(everything(cache), before, strict=True):
        np.testing.assert_array_equal(x, y)
    assert len(gpu.launched) == launched
