"""Calls on plain tensors that have been made before: on the simulated GPU, with arrays."""

import numpy as np
import pytest

import cuattn
from cuattn.errors import ArgumentError
from cuattn.plan import repeated
from cuattn.plan.prepared import CALLS
from cuattn.reference import emulate

pytest.importorskip("cupy")
from simulated_gpu.gpu import SimulatedCaller
from simulated_gpu.score_rules import EXPRESSIONS


@pytest.fixture
def looked_at(gpu, monkeypatch):
    """Count the arrays that are looked at one by one."""
    names = []
    look = SimulatedCaller.look
    monkeypatch.setattr(
        SimulatedCaller, "look", lambda self, x, name: names.append(name) or look(self, x, name)
    )
    return names


def inputs(rng, shape=(1, 2, 40, 64)):
    return [rng.standard_normal(shape).astype(np.float16) for _ in "qkv"]


def check(o, given, **options):
    expected, _ = emulate.attention(*given, **options)
    np.testing.assert_allclose(o, expected, rtol=2.0**-10, atol=1e-2)


@pytest.mark.parametrize("scheme", ["int8", "fp16"])
def test_other_arrays_of_the_same_kinds_are_not_looked_at(rng, looked_at, scheme):
    for calls in range(3):
        given = inputs(rng)
        o, lse = cuattn.attention(*given, scheme=scheme, is_causal=True, return_lse=True)
        check(o, given, scheme=scheme, is_causal=True)
        expected = emulate.attention(*given, scheme=scheme, is_causal=True)[1]
        np.testing.assert_allclose(lse, expected, rtol=1e-3, atol=1e-3)
        assert looked_at == ["q", "k", "v"], calls


def test_outputs_are_written(rng, looked_at):
    out = np.empty((1, 2, 40, 64), np.float16)
    for _ in range(3):
        given = inputs(rng)
        assert cuattn.attention(*given, out=out) is out
        check(out, given)
    assert looked_at == ["q", "k", "v", "out"]


def test_outputs_that_may_overlap_are_looked_at(rng, looked_at):
    given = inputs(rng)
    cuattn.attention(*given, out=np.empty_like(given[0]))
    launched = len(looked_at)
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of k"):
        cuattn.attention(*given, out=given[1])
    assert len(looked_at) == launched + 4
    # Parts of packed arrays interleave and do not overlap.
    packed = np.stack([*given, np.zeros_like(given[0])], axis=3)
    parts = [packed[:, :, :, i] for i in range(4)]
    for calls in range(2):
        assert cuattn.attention(*parts[:3], out=parts[3]) is parts[3]
        check(parts[3], given)
        assert len(looked_at) == launched + 8 + 4 * calls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_causal": 0}, "^is_causal must be True or False"),
        ({"return_lse": 0}, "^return_lse must be True or False"),
        ({"scale": True}, "^scale must be a number"),
        ({"scheme": []}, "^scheme"),
        ({"layout": None}, "^layout must be one of"),
        ({"window_size": (True, 0)}, "^window_size must be"),
        ({"softcap": True}, "^softcap must be a number"),
        ({"softcap": None}, "^softcap must be a number"),
    ],
)
def test_options_that_are_equal_to_good_ones_are_still_refused(gpu, rng, options, message):
    given = inputs(rng)
    cuattn.attention(*given)
    cuattn.attention(*given, scale=1.0)
    cuattn.attention(*given, window_size=(1, 0))
    cuattn.attention(*given, softcap=1.0)
    gpu.launched.clear()
    with pytest.raises(ArgumentError, match=message):
        cuattn.attention(*given, **options)
    assert gpu.launched == []


def scores(rng):
    """Return arrays among the options, of a call on `inputs`."""
    return {
        "sinks": rng.standard_normal(2).astype(np.float16),
        "attn_mask": rng.random((40, 40)) < 0.7,
        "alibi_slopes": rng.random(2).astype(np.float32),
    }


@pytest.mark.parametrize(
    "names", [("sinks",), ("attn_mask", "sinks"), ("sinks", "attn_mask", "alibi_slopes")]
)
@pytest.mark.parametrize("with_out", [False, True])
def test_other_masks_of_the_same_kinds_are_not_looked_at(rng, looked_at, names, with_out):
    out = np.empty((1, 2, 40, 64), np.float16) if with_out else None
    for _ in range(3):
        given, arrays = inputs(rng), scores(rng)
        options = {name: arrays[name] for name in names}
        o = cuattn.attention(*given, out=out, softcap=3.0, **options)
        check(o, given, softcap=3.0, **options)
    assert sorted(looked_at) == sorted(["q", "k", "v", *names, *["out"] * with_out])


@pytest.mark.parametrize("order", [1, -1])
def test_other_arrays_of_expressions_are_not_looked_at(rng, looked_at, monkeypatch, order):
    """Those of `score_mod` come first, however the caller puts them."""
    for _ in range(3):
        given, arrays = inputs(rng), rng.standard_normal((2, 40)).astype(np.float32)
        score_mod = cuattn.ScoreMod(
            "score + bias[kv]",
            arrays={"bias": arrays[0]},
            reference=lambda score, kv, bias: score + bias[kv],
        )
        mask_mod = cuattn.MaskMod(
            "seen[kv] > 0", arrays={"seen": arrays[1]}, reference=lambda kv, seen: seen[kv] > 0
        )
        for mod in (score_mod, mask_mod):
            monkeypatch.setitem(EXPRESSIONS, mod.text, mod)
        options = dict([("mask_mod", mask_mod), ("score_mod", score_mod)][::order])
        o = cuattn.attention(*given, **options)
        bias = np.where(arrays[1] > 0, arrays[0], -np.inf).astype(np.float32)
        check(o, given, attn_mask=np.broadcast_to(bias, (40, 40)))
    assert len(looked_at) == 5


def test_calls_with_other_arrays_are_of_other_kinds(rng, looked_at):
    given, arrays = inputs(rng), scores(rng)
    # Sinks and slopes may be of one type, and have one shape.
    arrays["alibi_slopes"] = arrays["alibi_slopes"].astype(np.float16)
    for name in (None, "sinks", "alibi_slopes", "attn_mask", None, "sinks", "alibi_slopes"):
        options = {} if name is None else {name: arrays[name]}
        check(cuattn.attention(*given, **options), given, **options)
    assert len(looked_at) == 3 + 3 * 4


def test_outputs_that_may_overlap_a_mask_are_looked_at(rng, looked_at):
    given = inputs(rng)
    memory = np.zeros(40 * 64 * 2 + 40 * 40, np.float16)
    out = memory[: 2 * 40 * 64].reshape(1, 2, 40, 64)
    apart, within = memory[2 * 40 * 64 :].reshape(40, 40), memory[: 40 * 40].reshape(40, 40)
    for _ in range(2):
        check(cuattn.attention(*given, attn_mask=apart, out=out), given)
    assert len(looked_at) == 5
    with pytest.raises(ArgumentError, match=r"^out must be in memory apart from that of attn_mask"):
        cuattn.attention(*given, attn_mask=within, out=out)


def columns_apart(x):
    wide = np.zeros((*x.shape, 2), x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def test_what_is_copied_first_is_copied_each_time(rng, looked_at):
    for calls in range(1, 3):
        given = inputs(rng)
        check(cuattn.attention(given[0], columns_apart(given[1]), given[2]), given)
        assert len(looked_at) == 3 * calls
    assert len(CALLS) == 0


def test_outputs_that_no_kernel_writes_are_written_each_time(rng, looked_at):
    for calls in range(1, 3):
        given, out = inputs(rng), columns_apart(np.zeros((1, 2, 40, 64), np.float16))
        cuattn.attention(*given, out=out)
        check(out, given)
        assert len(looked_at) == 4 * calls


def test_other_kinds_are_looked_at(rng, looked_at):
    given = inputs(rng)
    cuattn.attention(*given)
    calls = (
        {"scheme": "int8-block"},
        {"is_causal": True},
        {"scale": 0.5},
        {"return_lse": True},
        {"window_size": (7, 0)},
        {"window_size": (7, 1)},
        {"softcap": 5.0},
        {"softcap": 6.0},
        {"check_finite": True},
    )
    for count, options in enumerate(calls, 2):
        cuattn.attention(*given, **options)
        assert len(looked_at) == 3 * count
    read_only = given[2].copy()
    read_only.flags.writeable = False
    cuattn.attention(*given[:2], read_only)
    assert len(looked_at) == 3 * len(calls) + 6


def test_a_process_remembers_a_bounded_number_of_kinds(gpu, rng, monkeypatch):
    monkeypatch.setattr(repeated, "_REMEMBERED", 2)
    for tokens in (1, 2, 3, 4, 5):
        given = inputs(rng, (1, 1, tokens, 64))
        check(cuattn.attention(*given), given)
        assert 1 <= len(CALLS) <= 2
