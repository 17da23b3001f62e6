"""The stored form of V: slot order, padding, round trip."""

import numpy as np
import pytest

from cuattn.errors import ArgumentError
from cuattn.reference.layout import TOKEN_OF_SLOT, in_slots, in_tokens
from cuattn.reference.quantize import pad_head_dim, transpose_v, untranspose_v


def codes(*shape):
    return np.random.default_rng(0).integers(-127, 128, shape, dtype=np.int8)


def test_slots_hold_the_tokens_of_the_accumulators():
    tokens = np.arange(128, dtype=np.int8)[None, None, :, None]
    stored = transpose_v(np.repeat(tokens, 32, axis=3))
    expected = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    for group in range(8):
        slots = stored[0, 0, 0, 5, 16 * group : 16 * group + 16]
        np.testing.assert_array_equal(slots, np.array(expected) + 16 * group)


@pytest.mark.parametrize("shape", [(16,), (2, 3, 128), (2, 0), (0, 32)])
def test_scales_of_tokens_take_the_same_slots(shape):
    x = np.arange(np.prod(shape)).reshape(shape)
    groups = x.reshape(*shape[:-1], shape[-1] // 16, 16)
    np.testing.assert_array_equal(in_slots(x), groups[..., TOKEN_OF_SLOT].reshape(shape))
    np.testing.assert_array_equal(in_tokens(in_slots(x)), x)


@pytest.mark.parametrize("n", [0, 1, 31, 128, 129, 300])
@pytest.mark.parametrize("d", [8, 32, 72, 128, 256])
def test_transpose_v_round_trips_and_pads_with_zeros(n, d):
    v = codes(2, 3, n, d)
    stored = transpose_v(v)
    assert stored.shape == (2, 3, -(-n // 128), pad_head_dim(d), 128)
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(untranspose_v(stored, n, d), v)
    # Padding holds nothing, so the sums of magnitudes agree.
    assert np.abs(stored.astype(int)).sum() == np.abs(v.astype(int)).sum()


def test_untranspose_v_refuses_other_shapes():
    with pytest.raises(ArgumentError, match=r"^stored\.shape must be"):
        untranspose_v(codes(1, 1, 32, 128), 129, 32)


@pytest.mark.parametrize(
    ("head_dim", "padded"),
    [(1, 32), (32, 32), (40, 64), (64, 64), (72, 96), (104, 128), (136, 192), (200, 256)],
)
def test_pad_head_dim_finds_the_next_kernel(head_dim, padded):
    assert pad_head_dim(head_dim) == padded


@pytest.mark.parametrize("head_dim", [0, -8, 513])
def test_pad_head_dim_refuses_what_no_kernel_can_do(head_dim):
    with pytest.raises(ArgumentError, match=r"^head_dim must be"):
        pad_head_dim(head_dim)
