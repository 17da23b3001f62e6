"""The kernels beside the quantizer against the reference: means, deltas, rotation, unpacking."""

import numpy as np
import pytest
from helpers.around_quantizer_cases import (
    Place,
    check_block_means,
    check_deltas,
    check_rotation,
    check_unpacked,
    run_block_means,
    run_deltas,
)
from helpers.arrays_in_memory import DTYPES, MEMORY, is_padded

from cuattn.arrays.device import current_device
from cuattn.reference.layout import HEAD_DIMS, pad_head_dim
from cuattn.reference.smoothing import block_means

pytestmark = pytest.mark.gpu

LENGTHS = (0, 1, 127, 128, 129, 1000)
every_type = pytest.mark.parametrize("dtype", DTYPES)
every_head_dim = pytest.mark.parametrize("head_dim", range(8, 257, 8))
of_head_dims = pytest.mark.covering(head_dim=(pad_head_dim, is_padded))
every_length = pytest.mark.parametrize("tokens", LENGTHS)
every_memory = pytest.mark.parametrize("memory", MEMORY)


@pytest.fixture
def gpu(cupy):
    return Place(current_device(), cupy)


def normal(rng, *shape):
    """Return float32 numbers around a vector of their own."""
    return rng.standard_normal(shape, np.float32) + 2 * rng.standard_normal(shape[-1:], np.float32)


def unrounded(rng, *shape):
    """Return float32 numbers whose sign and 24 bits are random."""
    bits = rng.integers(2**23, 2**24, shape) * rng.choice([-1, 1], shape)
    return np.ldexp(bits, -23).astype(np.float32)


@of_head_dims
@every_head_dim
@every_type
def test_means_of_blocks_of_every_head_dim(gpu, rng, head_dim, dtype):
    check_block_means(gpu, normal(rng, 2, 3, 300, head_dim), dtype)


@every_length
@every_type
def test_means_of_blocks_of_every_length(gpu, rng, tokens, dtype):
    check_block_means(gpu, normal(rng, 2, 2, tokens, 72), dtype)


@every_memory
@every_type
def test_means_of_blocks_of_every_stride(gpu, rng, memory, dtype):
    check_block_means(gpu, normal(rng, 2, 3, 140, 72), dtype, memory)


def test_what_is_not_a_number_leaves_means_finite(gpu, rng):
    x = normal(rng, 1, 2, 256, 64)
    x[0, 0, 3, 5], x[0, 0, 200, 6], x[0, 1, 7, 8] = np.nan, np.inf, -np.inf
    got = run_block_means(gpu, gpu.put(x), "float32")
    np.testing.assert_array_equal(got == 0, block_means(x) == 0)
    assert np.isfinite(got).all()


@of_head_dims
@every_head_dim
@every_type
def test_deltas_of_every_head_dim(gpu, rng, head_dim, dtype):
    mean = normal(rng, 2, 4, 3, head_dim)
    k = normal(rng, 2, 2, 200, head_dim)
    check_deltas(gpu, mean, k, dtype, vector=k.mean(axis=2))


@pytest.mark.parametrize("blocks", [1, 2, 8, 15, 16, 17, 40])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_deltas_of_every_length(gpu, rng, tokens, blocks):
    check_deltas(
        gpu, normal(rng, 2, 2, blocks, 128), normal(rng, 2, 2, tokens, 128), "float16", factor=-2.5
    )


@every_memory
@every_type
def test_deltas_of_every_stride(gpu, rng, memory, dtype):
    mean, k = normal(rng, 2, 3, 2, 72), normal(rng, 2, 3, 140, 72)
    check_deltas(gpu, mean, k, dtype, vector=k.mean(axis=2), memory=memory)


@pytest.mark.parametrize("group", [1, 3, 8])
def test_query_heads_share_the_keys(gpu, rng, group):
    k = normal(rng, 2, 2, 130, 64)
    check_deltas(gpu, normal(rng, 2, 2 * group, 5, 64), k, "float16", vector=k[:, :, 0])


@pytest.mark.parametrize("head_dim", [64, 256])
@pytest.mark.parametrize("last_key", [-300, -1, 0, 77, 640])
@pytest.mark.parametrize("group", [1, 3])
def test_what_some_query_of_a_block_sees_is_there(gpu, rng, group, last_key, head_dim):
    mean, k = normal(rng, 1, group, 40, head_dim), normal(rng, 1, 1, 3000, head_dim)
    whole = run_deltas(gpu, gpu.put(mean), gpu.put(k), None, "float32", 1.0)
    part = run_deltas(gpu, gpu.put(mean), gpu.put(k), None, "float32", 1.0, last_key)
    last_query = 128 * np.arange(40)[:, None] + 127
    seen = np.arange(whole.shape[3]) <= last_query + last_key
    assert seen.any()
    np.testing.assert_array_equal(part[..., seen], whole[..., seen])


# Products of a number and 1 leave no room for rounding: they tell every term of both operands.
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_all_bits_of_the_means_count(gpu, rng, head_dim):
    mean, ones = unrounded(rng, 1, 1, 33, head_dim), np.eye(head_dim, dtype=np.float32)
    got = run_deltas(gpu, gpu.put(mean), gpu.put(ones[None, None]), None, "float32", 1.0)
    np.testing.assert_array_equal(got[..., :head_dim], mean)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_all_bits_of_the_keys_count(gpu, rng, head_dim):
    k, ones = unrounded(rng, 1, 1, 150, head_dim), np.eye(head_dim, dtype=np.float32)
    got = run_deltas(gpu, gpu.put(ones[None, None]), gpu.put(k), None, "float32", 1.0)
    np.testing.assert_array_equal(got[..., :150], k.swapaxes(2, 3))


def test_products_of_second_terms_count(gpu):
    # 1 + 2^-9 are two terms; the square has 19 bits.
    x = np.eye(64, dtype=np.float32)[None, None] * np.float32(1 + 2.0**-9)
    got = run_deltas(gpu, gpu.put(x), gpu.put(x), None, "float32", 1.0)
    np.testing.assert_array_equal(got[..., :64], x * x)


def test_a_key_that_is_not_a_number_keeps_to_itself(gpu, rng):
    mean, k = normal(rng, 1, 1, 4, 64), normal(rng, 1, 1, 200, 64)
    clean = run_deltas(gpu, gpu.put(mean), gpu.put(k), None, "float32", 1.0)
    k[0, 0, 17, 3], k[0, 0, 150, 63] = np.nan, np.inf
    got = run_deltas(gpu, gpu.put(mean), gpu.put(k), None, "float32", 1.0)
    spoilt = np.isin(np.arange(got.shape[3]), [17, 150])
    assert not np.isfinite(got[..., spoilt]).any()
    np.testing.assert_array_equal(got[..., ~spoilt], clean[..., ~spoilt])


@of_head_dims
@every_head_dim
@every_type
@pytest.mark.parametrize("smooth", [False, True])
def test_rotation_of_every_head_dim_is_bit_exact(gpu, rng, head_dim, dtype, smooth):
    x = normal(rng, 2, 3, 130, head_dim)
    check_rotation(gpu, x, dtype, vector=x.mean(axis=2) if smooth else None)


@every_length
@every_type
def test_rotation_of_every_length_is_bit_exact(gpu, rng, tokens, dtype):
    check_rotation(gpu, normal(rng, 2, 2, tokens, 96), dtype)


@every_memory
@every_type
def test_rotation_of_every_stride_is_bit_exact(gpu, rng, memory, dtype):
    x = normal(rng, 2, 3, 140, 72)
    check_rotation(gpu, x, dtype, vector=x.mean(axis=2), memory=memory)


@pytest.mark.parametrize("codes", [16, 32, 16 * 1023, 16 * 1024, 16 * 1025, 16 * 5000])
def test_codes_are_unpacked(gpu, rng, codes):
    check_unpacked(gpu, rng.integers(-8, 8, codes).astype(np.int8))
