"""Tensors that are quantized once, of schemes that rotate nothing, Q and K, or all."""

from dataclasses import replace

import numpy as np
import pytest

import cuattn
from cuattn.reference import exact
from cuattn.reference.metrics import relative_l1
from cuattn.reference.quantize import operands

ROTATIONS = ("none", "qk", "qkv")
PRESETS = [cuattn.PRESETS[x] for x in ("int8", "int8-token", "int8-block", "int8-fast", "int4")]
every_scheme = pytest.mark.parametrize(
    "scheme",
    [
        replace(preset, rotate=rotate)
        for preset in PRESETS
        for rotate in ROTATIONS
        if preset.v_scope != "sorted" or rotate != "qkv"
    ],
    ids=lambda scheme: f"{scheme.name}-{scheme.rotate}",
)


def qkv(rng, head_dim=64):
    q, k, v = rng.standard_normal((3, 2, 2, 300, head_dim)).astype(np.float32)
    for x in (q, k):
        x[..., ::16] *= 8
    return q, k + 2, v + 0.5


@every_scheme
def test_codes_stand_for_what_was_quantized(rng, scheme):
    for operand, x in zip("qkv", qkv(rng, 24), strict=True):
        tensor = cuattn.quantize(x, operand=operand, scheme=scheme)
        assert tensor.to_reference().rotated == scheme.rotates(operand)
        bits = 4 if operand != "v" and scheme.qk == "int4" else 8
        # Half a step of the largest number of a token, of all channels that are rotated together.
        allowed = {8: 0.02, 4: 0.35}[bits] * np.abs(x).max()
        np.testing.assert_allclose(tensor.dequantize(), x, atol=allowed)
        of_reference = tensor.to_reference().dequantize()
        if operand != "q" or scheme.smooth_q == "none":
            np.testing.assert_allclose(tensor.dequantize(), of_reference, atol=1e-4)


@every_scheme
def test_attention_takes_them_as_it_takes_arrays(rng, scheme):
    q, k, v = qkv(rng)
    plain = cuattn.attention(q, k, v, scheme=scheme)
    k8, v8 = cuattn.quantize_kv(k, v, scheme=scheme)
    assert relative_l1(cuattn.attention(q, k8, v8, scheme=scheme), plain) < (
        1e-6 if scheme.smooth_q == "none" else 0.2
    )
    truth, _ = exact.attention(q, k, v)
    assert relative_l1(plain, truth) < (0.05 if scheme.qk == "int8" else 0.6)


def test_v_of_another_rotation_is_refused_and_that_of_none_is_not(rng):
    q, k, v = qkv(rng)
    none, qk, qkv_ = (
        replace(cuattn.PRESETS["int8-block"], name=rotate, rotate=rotate) for rotate in ROTATIONS
    )
    v8 = cuattn.quantize(v, operand="v", scheme=none)
    np.testing.assert_array_equal(
        cuattn.attention(q, k, v8, scheme=qk), cuattn.attention(q, k, v, scheme=qk)
    )
    with pytest.raises(cuattn.ArgumentError, match=r"^v must be v as scheme 'qkv' has it"):
        cuattn.attention(q, k, v8, scheme=qkv_)
    k8 = cuattn.quantize(k, operand="k", scheme=none)
    with pytest.raises(cuattn.ArgumentError, match=r"^k must be k as scheme 'qk' has it"):
        cuattn.attention(q, k8, v, scheme=qk)


def test_reference_rotates_what_the_scheme_says(rng):
    for rotate in ROTATIONS:
        scheme = replace(cuattn.PRESETS["int8-block"], rotate=rotate)
        ops = operands(*qkv(rng), scheme)
        found = [x.rotated for x in (ops.q, ops.k, ops.v)]
        assert found == [scheme.rotates(x) for x in "qkv"]
