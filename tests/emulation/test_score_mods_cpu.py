"""Expressions of a caller on arrays in host memory: their functions in the emulation."""

import numpy as np
import pytest
from helpers.mod_cases import MODS, as_functions, mod_options

import cuattn
from cuattn import MaskMod, ScoreMod
from cuattn.errors import ArgumentError
from cuattn.reference import emulate, exact

SHAPE = (2, 4, 90, 24)


def qkv(rng, seqlens=(90, 150), batch=2, heads=(4, 2), head_dim=24):
    shapes = ((heads[0], seqlens[0]), (heads[1], seqlens[1]), (heads[1], seqlens[1]))
    return [(rng.standard_normal((batch, *x, head_dim)) + 0.5).astype(np.float32) for x in shapes]


@pytest.mark.parametrize("name", MODS)
@pytest.mark.parametrize("scheme", ["int8", "int8-token", "int4", "fp16", "int8-fast"])
def test_calls_are_the_emulation(rng, scheme, name):
    arrays = qkv(rng)
    options = mod_options(name, rng, arrays[0].shape, 150)
    o, lse = cuattn.attention(*arrays, scheme=scheme, return_lse=True, **options)
    wanted, wanted_lse = emulate.attention(*arrays, scheme=scheme, **as_functions(options))
    np.testing.assert_allclose(o, wanted, atol=2e-6)
    np.testing.assert_allclose(lse, wanted_lse, atol=2e-6)
    truth, true_lse = exact.attention(*arrays, **as_functions(options))
    np.testing.assert_array_equal(np.isneginf(lse), np.isneginf(true_lse))
    assert np.abs(o - truth).sum() <= (0.25 if scheme == "int4" else 0.06) * np.abs(truth).sum()


@pytest.mark.parametrize("reference", [exact.attention, emulate.attention])
def test_what_options_say_expressions_can_say_too(rng, reference):
    arrays = qkv(rng)
    seen = rng.random((2, 4, 90, 150)) < 0.5
    seen[:, :, 3:7] = False
    bias = rng.standard_normal((4, 90, 150))
    slopes = np.array([0.5, 0.25, 0.0, 1.0])
    pairs = [
        ({"attn_mask": seen}, {"mask_mod": lambda batch, head, q, kv: seen[batch, head, q, kv]}),
        ({"attn_mask": bias}, {"score_mod": lambda score, head, q, kv: score + bias[head, q, kv]}),
        (
            {"alibi_slopes": slopes},
            {"score_mod": lambda score, head, own, kv: score - slopes[head] * abs(own - kv)},
        ),
        ({"softcap": 3.0}, {"score_mod": lambda score: 3 * np.tanh(score / 3)}),
        ({"is_causal": True}, {"mask_mod": lambda own, kv: kv <= own}),
        (
            {"attn_mask": seen},
            {
                "score_mod": lambda score, batch, head, q, kv: np.where(
                    seen[batch, head, q, kv], score, -np.inf
                )
            },
        ),
        ({}, {"mask_mod": lambda: True}),
        ({}, {"score_mod": lambda score: score}),
    ]
    for options, mods in pairs:
        for x, y in zip(reference(*arrays, **options), reference(*arrays, **mods), strict=True):
            np.testing.assert_allclose(y, x, atol=1e-9)


def test_rows_that_see_nothing_are_zeros(rng):
    arrays = qkv(rng)
    arrays[2][:, :, 40:] = np.nan
    mod = MaskMod("kv < 40 && q != 5", reference=lambda q, kv: (kv < 40) & (q != 5))
    o, lse = cuattn.attention(*arrays, scheme="fp16", mask_mod=mod, return_lse=True)
    assert np.isfinite(o).all()
    assert not o[:, :, 5].any()
    assert np.isneginf(lse[:, :, 5]).all()
    assert np.isfinite(np.delete(lse, 5, axis=2)).all()


def test_functions_are_wanted_in_host_memory(rng):
    arrays = qkv(rng)
    for options in ({"score_mod": "score"}, {"mask_mod": MaskMod("true")}):
        (name,) = options
        with pytest.raises(ArgumentError, match=rf"^{name}\.reference must be given for arrays in"):
            cuattn.attention(*arrays, **options)
    wrong = ScoreMod("score", reference=lambda score: score[:, :1].T)
    with pytest.raises(ArgumentError, match="score_mod must be a function whose results broadcast"):
        cuattn.attention(*arrays, score_mod=wrong)
    with pytest.raises(ArgumentError, match="score_mod must be a function of any of"):
        exact.attention(*arrays, score_mod=lambda x: x)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"score_mod": ScoreMod("score", reference=lambda score: None)}, "got None"),
        ({"mask_mod": MaskMod("true", reference=lambda: None)}, "got None"),
        ({"score_mod": ScoreMod("score", reference=lambda score: 1j)}, "got 1j"),
    ],
)
def test_functions_return_numbers(rng, options, given):
    arrays = qkv(rng)
    (name,) = options
    with pytest.raises(ArgumentError, match=rf"^{name} must be a function that returns .*{given}"):
        cuattn.attention(*arrays, **options)


def test_arrays_of_every_type_are_widened(rng):
    arrays = qkv(rng)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = rng.integers(0, 2, (4,))

    def of_numpy(score, head, x):
        return score + x[head]

    wanted = exact.attention(*arrays, score_mod=lambda score, head: score + x[head])[0]
    types = [
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        np.int8,
        np.uint8,
        np.int32,
        np.int64,
        bool,
    ]
    found = [
        cuattn.attention(
            *arrays,
            score_mod=ScoreMod(
                "score + x[head]", arrays={"x": x.astype(dtype)}, reference=of_numpy
            ),
        )
        for dtype in types
    ]
    for o in found:
        assert o.tobytes() == found[0].tobytes()
    np.testing.assert_allclose(found[0], wanted, atol=0.1)


def test_arrays_are_checked_in_host_memory_too(rng):
    arrays = qkv(rng)
    mod = ScoreMod("score + x[head]", arrays={"x": np.zeros(8)[::2]}, reference=lambda score: score)
    with pytest.raises(ArgumentError, match=r"^score_mod\.x\.dtype must be one of"):
        cuattn.attention(*arrays, score_mod=mod)
    strided = {"x": np.zeros(8, np.float32)[::2]}
    mod = ScoreMod("score + x[head]", arrays=strided, reference=lambda score: score)
    with pytest.raises(ArgumentError, match=r"^score_mod\.x\.strides must be"):
        cuattn.attention(*arrays, score_mod=mod)
    out = np.zeros_like(arrays[0])
    mod = ScoreMod("score + x[0]", arrays={"x": out.reshape(-1)}, reference=lambda score: score)
    with pytest.raises(ArgumentError, match=r"apart from that of score_mod\.x"):
        cuattn.attention(*arrays, score_mod=mod, out=out)
