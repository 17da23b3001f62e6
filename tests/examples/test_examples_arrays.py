"""The examples for CuPy alone: queries about the same keys, and a diffusion transformer.

On the GPU if there is one, else with NumPy's arrays.
"""

import numpy as np
import pytest
from helpers.example_modules import example, normal, on_gpu, relative_l1

import cuattn

cupy_arrays = example("cupy_arrays")
diffusion = example("diffusion")


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


def test_errors_of_all_steps_stay_small(diffusion, xp, rng):
    model = diffusion.Transformer(xp)
    noise = xp.asarray(rng.standard_normal((150, 16), np.float32))
    exact, int8, int_flash = (
        on_host(diffusion.sample(model, noise, 3, scheme))
        for scheme in ("fp16", "int8", "int-flash")
    )
    assert exact.dtype == np.float32
    assert relative_l1(exact, on_host(noise)) > 0.1
    # Keys have a bias, which int-flash does not take out.
    assert 0 < relative_l1(int8, exact) < relative_l1(int_flash, exact) < 0.02


def test_diffusion_program_compares_schemes(diffusion, capsys):
    sizes = ["--tokens", "130", "--steps", "2", "--heads", "1", "--layers", "1"]
    diffusion.main([*sizes, "--schemes", "int8", "fp16"])
    *_, int8, fp16 = capsys.readouterr().out.splitlines()
    assert (int8.split()[0], fp16.split()[:3]) == ("int8", ["fp16", "0.000", "0.0e+00"])
