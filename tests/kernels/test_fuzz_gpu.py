"""Shapes, strides and options that nobody thought of, on a GPU."""

import numpy as np
import pytest
from helpers.arrays_in_memory import memories, placed
from helpers.gpu_cases import SCHEMES, _kernels, check, on_gpu, on_host  # noqa: F401
from hypothesis import given, note, settings
from hypothesis import strategies as st

import cuattn

pytestmark = pytest.mark.gpu


@st.composite
def calls(draw):
    kv_heads = draw(st.integers(1, 3))
    return {
        "scheme": draw(st.sampled_from(sorted(SCHEMES))),
        "dtype": draw(st.sampled_from(["float16", "float32"])),
        "layout": draw(st.sampled_from(["HND", "NHD"])),
        "is_causal": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, 0.0, 0.01, 0.3])),
        "batch": draw(st.integers(1, 3)),
        "heads": (kv_heads * draw(st.integers(1, 3)), kv_heads),
        "seqlens": (draw(st.integers(0, 280)), draw(st.integers(0, 400))),
        "head_dim": 8 * draw(st.integers(1, 32)),
        "memories": [draw(memories()) for _ in range(4)],
        "together": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


@settings(max_examples=100)
@given(call=calls())
def test_any_call_matches_the_emulation(call):
    import cupy

    note(call)
    rng = np.random.default_rng(call["seed"])
    q_heads, kv_heads = call["heads"]
    seqlen_q, seqlen_kv = call["seqlens"]
    batch, head_dim = call["batch"], call["head_dim"]
    shapes = [(q_heads, seqlen_q), (kv_heads, seqlen_kv), (kv_heads, seqlen_kv)]
    arrays = [
        on_gpu(rng.standard_normal((batch, *shape, head_dim)), call["dtype"]) for shape in shapes
    ]
    # The output like Q, somewhere else.
    arranged = [
        placed(x, m, cupy) for x, m in zip([*arrays, arrays[0]], call["memories"], strict=True)
    ]
    if call["layout"] == "NHD":
        arranged = [x.transpose(0, 2, 1, 3) for x in arranged]
    *inputs, out = arranged
    before = [on_host(x) for x in inputs]
    options = {"is_causal": call["is_causal"], "scale": call["scale"]}
    scheme = SCHEMES[call["scheme"]]
    given_kv = inputs[1:]
    if call["together"] and "fp16" not in (scheme.qk, scheme.pv) and scheme.smooth_q == "none":
        given_kv = cuattn.quantize_kv(*inputs[1:], scheme=scheme, layout=call["layout"])
    result, lse = cuattn.attention(
        inputs[0],
        *given_kv,
        scheme=scheme,
        layout=call["layout"],
        return_lse=True,
        out=out,
        **options,
    )
    assert result is out
    o = out.transpose(0, 2, 1, 3) if call["layout"] == "NHD" else out
    check((o, lse), arrays, call["scheme"], **options)
    for x, was in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(on_host(x), was)
