"""The rotation of head_dim: orthogonal, undone exactly, good against outliers."""

import numpy as np
import pytest
from scipy.linalg import hadamard

from cuattn.errors import ArgumentError
from cuattn.reference.quantize import quantize, smoothing_vector
from cuattn.reference.rotation import (
    hadamard_block,
    rotate,
    rotate_exactly,
    rotation_factor,
    signs,
    turn,
    unrotate,
)


@pytest.mark.parametrize("head_dim", [2, 40, 64, 96, 128, 256, 320, 512])
def test_rotation_is_orthogonal(rng, head_dim):
    matrix = rotate_exactly(np.eye(head_dim))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(head_dim), atol=1e-14)
    x = rng.standard_normal((2, 3, head_dim))
    np.testing.assert_allclose(unrotate(rotate_exactly(x)), x, atol=1e-14)
    # The float32 that kernels have.
    narrow = rotate(x.astype(np.float32))
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, rotate_exactly(x), atol=1e-5)


def test_rotation_is_hadamards():
    block = 8
    wanted = signs(block)[:, None] * hadamard(block) / np.sqrt(block)
    np.testing.assert_allclose(rotate_exactly(np.eye(block)), wanted, atol=1e-15)


@pytest.mark.parametrize(("head_dim", "block"), [(8, 8), (40, 8), (96, 32), (128, 128), (192, 64)])
def test_blocks_are_powers_of_two(head_dim, block):
    assert hadamard_block(head_dim) == block
    # Channels of other blocks have no part.
    one = rotate_exactly(np.eye(head_dim)[0])
    assert np.count_nonzero(one) == block
    np.testing.assert_allclose(np.abs(one[:block]), block**-0.5)


def test_rotation_of_nothing_is_nothing():
    none = np.zeros((2, 0, 40), np.float32)
    assert rotate(none).shape == unrotate(none).shape == none.shape


def test_signs_are_balanced_and_always_the_same():
    assert set(signs(256)) == {-1.0, 1.0}
    assert abs(signs(256).sum()) < 64
    np.testing.assert_array_equal(signs(64), signs(256)[:64])


@pytest.mark.parametrize("head_dim", [8, 64, 96, 128])
def test_factor_of_a_rotation_multiplies_scales_or_elements(rng, head_dim):
    x = rng.standard_normal((1, 2, 50, head_dim)).astype(np.float32)
    r, turned = rotation_factor(head_dim), turn(x)
    largest = np.abs(turned).max(axis=-1)
    found = quantize(x, scope="token", rotated=True)
    np.testing.assert_array_equal(found.scale, r * largest / np.float32(127))
    steps = np.float32(127) / (r * largest) * r
    np.testing.assert_array_equal(found.codes, np.rint(turned * steps[..., None]))
    # Of V a kernel writes the rotated elements before another one looks for the largest.
    first = quantize(x, scope="token", rotated=True, factor_first=True)
    of_rotated = quantize(rotate(x), scope="token")
    np.testing.assert_array_equal(first.codes, of_rotated.codes)
    np.testing.assert_array_equal(first.scale, of_rotated.scale)
    np.testing.assert_allclose(first.dequantize(), found.dequantize(), atol=0.1)


def test_rotation_is_undone_and_spreads_an_outlier_channel(rng):
    x = rng.standard_normal((1, 1, 100, 128)) + 3
    x[..., 5] *= 50
    vector = smoothing_vector(x, "mean")
    both = [quantize(x, scope="token", to="int4", vector=vector, rotated=r) for r in (False, True)]
    errors = [np.abs(q.dequantize() - x).mean() for q in both]
    assert errors[1] < 0.8 * errors[0]
    unrounded = quantize(x, scope="token", rotated=True, vector=vector, rounded=False)
    np.testing.assert_allclose(unrounded.dequantize(), x, atol=1e-5)


def test_odd_head_dim_is_refused():
    with pytest.raises(ArgumentError, match=r"^head_dim must be"):
        rotate(np.zeros((1, 7), np.float32))
