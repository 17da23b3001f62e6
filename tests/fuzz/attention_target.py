"""Calls of `attention` and `quantize`: any shape, memory, type, scheme and option, and wrong ones.

A call is either right, within the error that its scheme may have, with inputs as they were and the
output where it was wanted, or it ends in an exception of ours.
"""

from dataclasses import replace

import numpy as np
from helpers.arrays_in_memory import memories, placed
from helpers.score_cases import SETS, in_library, score_options
from hypothesis import given
from hypothesis import strategies as st

import cuattn
from cuattn.reference import exact

PRESETS = cuattn.PRESETS
# And what no preset has: sorted keys that are smoothed and rotated otherwise, and rotated values.
SCHEMES = {
    **PRESETS,
    "sorted": replace(PRESETS["int8"], name="sorted", rotate="none", smooth_k="mean"),
    "bare sorted": replace(PRESETS["int8"], name="bare", smooth_k="none", smooth_v="none"),
    "tokens rotated": replace(PRESETS["int8-token"], name="turned", rotate="qk"),
    "all rotated": replace(PRESETS["int8-block"], name="rotated", rotate="qkv"),
}

# Root of the mean square of the error, relative to that of V: what 8 and 4 bits of Q, K, V and P
# may come to on normal numbers, with room for the few that are drawn.
BOUNDS = {"int4": 0.6, "fp8": 0.12, "int8": 0.06, "fp16": 0.006}


def padded(x, axis):
    """Return an array that is longer by one along an axis."""
    return np.pad(x, [(0, int(n == axis)) for n in range(x.ndim)])


# What is wrong with a call, and so must be refused.
WRONG = {
    "rank": lambda call: call["values"].update(q=call["values"]["q"][..., None]),
    "head_dim": lambda call: call["values"].update(k=call["values"]["k"][..., :-1]),
    "v's shape": lambda call: call["values"].update(v=padded(call["values"]["v"], axis=2)),
    "batch": lambda call: call["values"].update(k=padded(call["values"]["k"], axis=0)),
    "dtype": lambda call: call["values"].update(v=call["values"]["v"].astype(np.float64)),
    "scheme": lambda call: call["options"].update(scheme="int7"),
    "layout": lambda call: call["options"].update(layout="DNH"),
    "scale": lambda call: call["options"].update(scale=float("nan")),
    "negative scale": lambda call: call["options"].update(scale=-1.0),
    "is_causal": lambda call: call["options"].update(is_causal="yes"),
    "return_lse": lambda call: call["options"].update(return_lse=1),
    "window": lambda call: call["options"].update(window_size=(-2, 0)),
    "softcap": lambda call: call["options"].update(softcap=-1.0),
    "sinks": lambda call: call["options"].update(sinks=np.zeros((1, 1), np.float32)),
    "mask": lambda call: call["options"].update(attn_mask=np.ones([1] * 5, bool)),
    "no array": lambda call: call["values"].update(k=[[1.0]]),
    "stream": lambda call: call["options"].update(stream=object()),
}


@st.composite
def calls(draw):
    kv_heads = draw(st.integers(1, 3))
    return {
        "scheme": draw(st.sampled_from(sorted(SCHEMES))),
        "dtype": draw(st.sampled_from(["float16", "float32"])),
        "layout": draw(st.sampled_from(["HND", "NHD"])),
        "is_causal": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, 0.0, 0.01, 0.2])),
        "scores": draw(st.none() | st.sampled_from(sorted(SETS))),
        "batch": draw(st.integers(0, 3)),
        "heads": (kv_heads * draw(st.integers(1, 3)), kv_heads),
        "seqlens": (draw(st.integers(0, 140)), draw(st.integers(0, 300))),
        "head_dim": 8 * draw(st.integers(1, 32)),
        "memories": [draw(memories()) for _ in range(4)],
        "quantized": draw(st.sets(st.sampled_from("qkv"))),
        "together": draw(st.booleans()),
        "with_out": draw(st.booleans()),
        "wrong": draw(st.none() | st.none() | st.sampled_from(sorted(WRONG))),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def run(place, count, configured, config, seed):
    del config, seed

    @given(call=calls())
    def attention(call):
        count(_tried(call, place))

    configured(attention)()


def _tried(call, place):
    rng = np.random.default_rng(call["seed"])
    (q_heads, kv_heads), (seqlen_q, seqlen_kv) = call["heads"], call["seqlens"]
    batch, head_dim = call["batch"], call["head_dim"]
    sizes = {"q": (q_heads, seqlen_q), "k": (kv_heads, seqlen_kv), "v": (kv_heads, seqlen_kv)}
    values = {
        name: rng.standard_normal((batch, *size, head_dim)).astype(call["dtype"])
        for name, size in sizes.items()
    }
    options = {key: call[key] for key in ("layout", "is_causal", "scale")}
    options["scheme"] = SCHEMES[call["scheme"]]
    scores = {}
    if call["scores"] is not None:
        scores = score_options(call["scores"], rng, values["q"].shape, seqlen_kv)
    options |= in_library(scores, "float32", lambda x, dtype: library(place).asarray(x, dtype))
    given_call = {"values": dict(values), "options": {**options, "return_lse": True}}
    if call["wrong"] is not None:
        WRONG[call["wrong"]](given_call)
    xp = library(place)
    arrays = {
        name: arranged(x, memory, xp, call["layout"])
        for (name, x), memory in zip(given_call["values"].items(), call["memories"], strict=False)
    }
    before = {name: _host(x).copy() for name, x in arrays.items() if hasattr(x, "dtype")}
    out = None
    if call["with_out"] and call["wrong"] is None:
        out = xp.full_like(arrays["q"], np.nan)
    try:
        arrays |= _quantized(arrays, call)
        o, lse = cuattn.attention(**arrays, **given_call["options"], out=out)
    except cuattn.CuattnError:
        if call["wrong"] is None and not _may_be_refused(call, place):
            raise
        return "refused"
    assert call["wrong"] is None, f"{call['wrong']} was taken"
    assert out is None or o is out
    for name, was in before.items():
        if name not in call["quantized"]:
            np.testing.assert_array_equal(_host(arrays[name]), was)
    o = _host(o)
    o = o.transpose(0, 2, 1, 3) if call["layout"] == "NHD" else o
    _check(o, _host(lse), values, scores, call)
    return "right"


def _quantized(arrays, call):
    """Return operands quantized beforehand, of those that the scheme does not leave as they are."""
    scheme = SCHEMES[call["scheme"]]
    options = {"scheme": scheme, "layout": call["layout"]}
    products = {"q": scheme.qk, "k": scheme.qk, "v": scheme.pv}
    names = [name for name in sorted(call["quantized"]) if products[name] != "fp16"]
    made = {}
    if call["together"] and {"k", "v"} <= set(names):
        made = dict(zip("kv", cuattn.quantize_kv(arrays["k"], arrays["v"], **options), strict=True))
    for name in names:
        if name not in made:
            made[name] = cuattn.quantize(arrays[name], operand=name, **options)
    return made


def _may_be_refused(call, place):
    """Whether a call that is right may still have no kernel: groups need whole groups."""
    scheme = SCHEMES[call["scheme"]]
    grouped = scheme.k_scope == "group" and call["head_dim"] % scheme.qk_group
    return bool(grouped) or (place == "gpu" and "fp8" in (scheme.qk, scheme.pv))


def _check(o, lse, values, scores, call):
    options = {"is_causal": call["is_causal"], "scale": call["scale"], **scores}
    wide = [x.astype(np.float64) for x in values.values()]
    truth, true_lse = exact.attention(*wide, **options)
    assert o.shape == truth.shape
    assert o.dtype == call["dtype"]
    assert lse.shape == true_lse.shape
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(true_lse))
    blind = np.isneginf(exact.attention(*wide, **options | {"sinks": None})[1])
    assert not o[blind].any()
    assert np.isfinite(o).all()
    if not o.size or blind.all():
        return
    scheme = SCHEMES[call["scheme"]]
    worst = max((scheme.qk, scheme.pv), key=lambda kind: BOUNDS[kind])
    norm = np.sqrt(np.mean(values["v"].astype(np.float64) ** 2))
    error = np.sqrt(np.mean((o.astype(np.float64) - truth) ** 2))
    assert error <= BOUNDS[worst] * norm, (error / norm, worst)


def library(place):
    """Return the library of arrays of the host or of the GPU."""
    if place == "cpu":
        return np
    import cupy

    return cupy


def arranged(x, memory, xp, layout):
    """Return what a caller gives: an array of `xp` somehow in memory, or what is no such array."""
    if not isinstance(x, np.ndarray):
        return x
    if x.ndim != 4:
        return xp.asarray(x)
    x = placed(xp.asarray(x), memory, xp)
    return x.transpose(0, 2, 1, 3) if layout == "NHD" else x


def _host(x):
    return x if isinstance(x, np.ndarray) else x.get()
