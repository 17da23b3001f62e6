"""Quantizing arrays in host memory whose axes lie in any order, and arrays without elements."""

from itertools import permutations

import numpy as np
import pytest

import cuattn

AXES = list(permutations(range(3)))


@pytest.mark.parametrize("scheme", ["int8", "int8-token", "int4", "int8-block"])
@pytest.mark.parametrize("operand", ["q", "k", "v"])
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_the_order_of_axes_in_memory_makes_no_difference(rng, axes, operand, scheme):
    x = rng.standard_normal((2, 3, 40, 16)).astype(np.float32)
    moved = np.ascontiguousarray(x.transpose(*axes, 3)).transpose(*np.argsort(axes), 3)
    found = cuattn.quantize(moved, operand=operand, scheme=scheme)
    wanted = cuattn.quantize(x, operand=operand, scheme=scheme)
    np.testing.assert_array_equal(found.codes, wanted.codes)
    np.testing.assert_array_equal(found.scale, wanted.scale)
    np.testing.assert_allclose(found.dequantize(), wanted.dequantize(), rtol=1e-6)


@pytest.mark.parametrize("scheme", sorted(cuattn.PRESETS))
@pytest.mark.parametrize("shape", [(0, 1, 3, 8), (1, 0, 3, 8), (1, 1, 0, 8)], ids=str)
def test_nothing_is_quantized_to_nothing(shape, scheme):
    empty = np.zeros(shape, np.float16)
    how = cuattn.PRESETS[scheme]
    quantized = [name for name in "qkv" if (how.pv if name == "v" else how.qk) != "fp16"]
    if how.k_scope == "group":  # of more channels than there are here
        quantized = ["v"]
    for operand in quantized:
        tensor = cuattn.quantize(empty, operand=operand, scheme=scheme)
        assert tensor.to_reference().codes.shape == shape
        assert tensor.dequantize().shape == shape
