"""The example for CuPy alone: queries about the same keys.

On the GPU if there is one, else with NumPy's arrays.
"""

import numpy as np
import pytest
from helpers.example_modules import example, normal, on_gpu

import cuattn

cupy_arrays = example("cupy_arrays")


@pytest.fixture(scope="module")
def xp():
    if not on_gpu():
        return np
    import cupy

    return cupy


def on_host(x):
    return x if isinstance(x, np.ndarray) else x.get()


@pytest.mark.parametrize("scheme", ["int8", "int8-block"])
def test_keys_quantized_once_give_the_same(cupy_arrays, xp, rng, scheme):
    *batches, k, v = (xp.asarray(normal(rng)) for _ in range(5))
    for q, o in zip(batches, cupy_arrays.answer(batches, k, v, scheme), strict=True):
        expected = cuattn.attention(q, k, v, scheme=scheme)
        np.testing.assert_array_equal(on_host(o), on_host(expected))


def test_cupy_program_says_what_came_out(cupy_arrays, capsys):
    cupy_arrays.main()
    assert "the same: True" in capsys.readouterr().out
