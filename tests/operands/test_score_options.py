"""What is left of a call's window, cap, sinks, slopes and mask, and which of them are refused."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuattn.arrays.view import Array
from cuattn.errors import ArgumentError
from cuattn.operands.masks import ScoreMask
from cuattn.operands.problem import Options, Problem
from cuattn.operands.score_arrays import ScoreArrays
from cuattn.operands.scores import ALL_KEYS, ScoreOptions, Vector, checked_window
from cuattn.presets import PRESETS
from cuattn.reference.arrays import Shape
from cuattn.reference.masking import Mask
from cuattn.specs.attention import Type

GPU = (2, 0)
# [batch, num_q_heads, seqlen_q, seqlen_kv]
SHAPE = (2, 8, 64, 100)
DEFAULTS = Options(scheme="int8", scale=None, is_causal=False, return_lse=False, layout="HND")


def array(*shape, dtype="float32", **fields):
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return Array(**{"shape": shape, "strides": strides, "dtype": dtype, "device": GPU} | fields)


def problem(sinks=None, alibi_slopes=None, attn_mask=None, *, shape=SHAPE, **options):
    batch, heads, seqlen_q, seqlen_kv = shape
    q = array(batch, heads, seqlen_q, 64, dtype="float16")
    kv = array(batch, 1, seqlen_kv, 64, dtype="float16")
    arrays = ScoreArrays(sinks, alibi_slopes, attn_mask)
    return Problem.of(q, kv, kv, DEFAULTS._replace(**options), arrays)


def scores(*args, **options):
    return problem(*args, **options).scores


def test_a_call_without_any_is_plain():
    assert scores() == ScoreOptions(ALL_KEYS)
    assert scores().is_plain
    assert scores(is_causal=True) == ScoreOptions((-1, 0))
    assert scores(is_causal=True).is_plain
    for options in (
        {"window_size": (5, 0)},
        {"window_size": (-1, 5)},
        {"softcap": 30.0},
        {"sinks": array(8)},
        {"alibi_slopes": array(8)},
        {"attn_mask": array(64, 100, dtype="bool")},
    ):
        assert not scores(**options).is_plain


def test_causal_is_a_window_without_keys_behind():
    assert problem(window_size=(-1, 0)) == problem(is_causal=True)
    assert problem(window_size=(-1, 0)).is_causal
    assert problem(window_size=(99, 0)) == problem(is_causal=True, window_size=(-1, 7))
    assert scores(is_causal=True, window_size=(10, 20)).window_size == (10, 0)
    assert not problem(window_size=(10, 0)).is_causal
    # One row is beside the last key, so nothing is behind it; that is no reason for other kernels.
    assert problem(window_size=(-1, 0), shape=(1, 2, 1, 9)).is_causal


SIDES = range(-1, 9)


@pytest.mark.parametrize("seqlen_q", [1, 2, 5, 7])
@pytest.mark.parametrize("seqlen_kv", [0, 1, 4, 5, 7])
def test_sides_are_unlimited_where_they_hide_nothing(seqlen_q, seqlen_kv):
    def visible(is_causal, window_size):
        shape = Shape(1, 2, 2, seqlen_q, seqlen_kv, 64)
        return [x.tolist() for x in Mask(shape, is_causal, window_size).bounds(range(seqlen_q))]

    rows = range(seqlen_q)
    own = np.array(rows) + seqlen_kv - seqlen_q
    for left, right, is_causal in product(SIDES, SIDES, (False, True)):
        options = {"is_causal": is_causal, "window_size": (left, right)}
        found = scores(shape=(1, 2, seqlen_q, seqlen_kv), **options).window_size
        assert visible(False, found) == visible(**options)
        end = 0 if is_causal else right
        assert found[0] == (-1 if left < 0 or (own - left <= 0).all() else left)
        assert found[1] == (-1 if end and (end < 0 or own[0] + end >= seqlen_kv - 1) else end)
        assert found[0] < max(seqlen_kv, 1)
        assert found[1] < max(seqlen_q, 1)


def test_windows_are_two_integers_of_python():
    for given_window in ([3, 0], (np.int32(3), np.int64(0)), (3, 0)):
        found = checked_window(given_window)
        assert found == (3, 0)
        assert {type(side) for side in found} == {int}
    assert checked_window((2**40, -1)) == (2**40, -1)
    assert checked_window(ALL_KEYS) == ALL_KEYS


@pytest.mark.parametrize(
    "window", [5, None, (5,), (5, 0, 0), (True, 0), (5, None), (-2, 0), (0, -2), (1.0, 0), "50"]
)
def test_other_windows_are_refused(window):
    with pytest.raises(ArgumentError) as error:
        checked_window(window)
    assert str(error.value).startswith(
        "window_size must be (left, right), how many keys before and behind its own a row sees, "
        "-1 for all, got "
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("softcap", [0, 0.0, 50, 30.0, np.float16(5), np.float32(0.5), np.int64(2)])
def test_numbers_of_any_kind_are_caps(softcap):
    found = scores(softcap=softcap).softcap
    assert (found, type(found)) == (float(softcap), float)


@pytest.mark.parametrize(
    ("softcap", "words"),
    [
        (-1.0, "at least 0, which is none, and finite in float32, got -1.0"),
        (float("nan"), "got nan"),
        (float("inf"), "got inf"),
        (np.float16("inf"), "finite in float32"),
        (3e38, "finite in float32"),
        (10**400, "finite in float32"),
        (True, "a number, 0 for none, got True"),
        (None, "a number, 0 for none, got None"),
        ("50", "a number, 0 for none, got '50'"),
        (np.ones(1), "a number, 0 for none"),
        (1e-40, "0 for none, or such that scale / softcap is finite; scale is 0.125, got 1e-40"),
    ],
)
def test_other_caps_are_refused(softcap, words):
    with pytest.raises(ArgumentError, match=r"^softcap must be ") as error:
        scores(softcap=softcap)
    assert words in str(error.value)


FLOATS = {"float16": Type.fp16, "bfloat16": Type.bf16, "float32": Type.fp32}


@pytest.mark.parametrize("dtype", FLOATS)
def test_sinks_are_numbers_of_query_heads(dtype):
    assert scores(array(8, dtype=dtype)).sinks == Vector(FLOATS[dtype], (0, 1))
    apart = array(8, dtype=dtype, strides=(-3,))
    assert scores(apart).sinks == Vector(FLOATS[dtype], (0, -3))
    # A stride that is never taken is 0, so that fewer kinds of calls are told apart.
    alone = array(1, dtype=dtype, strides=(7,))
    assert scores(alone, shape=(2, 1, 4, 4)).sinks == Vector(FLOATS[dtype], (0, 0))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("shape", "strides"),
    [((8,), (0, 1)), ((2, 8), (8, 1)), ((1, 8), (0, 1)), ((2, 1), (1, 0)), ((), (0, 0))],
)
def test_slopes_are_broadcast(dtype, shape, strides):
    found = scores(alibi_slopes=array(*shape, dtype=dtype)).alibi_slopes
    assert found == Vector(FLOATS[dtype], strides)


@pytest.mark.parametrize("dtype", [*FLOATS, "bool"])
@pytest.mark.parametrize("shape", list(product((2, 1), (8, 1), (64, 1), (100, 1))))
def test_masks_are_broadcast_on_every_axis(dtype, shape):
    x = array(*shape, dtype=dtype)
    wanted = tuple(step if n > 1 else 0 for n, step in zip(shape, x.strides, strict=True))
    kind = FLOATS.get(dtype, "bool")
    assert scores(attn_mask=x).attn_mask == ScoreMask(kind, wanted)
    # With axes that are missing, and some that somebody else has broadcast.
    while x.shape and x.shape[0] == 1:
        x = x._replace(shape=x.shape[1:], strides=x.strides[1:])
        assert scores(attn_mask=x).attn_mask == ScoreMask(kind, wanted)
    expanded = array(*SHAPE, dtype=dtype, strides=wanted)
    assert scores(attn_mask=expanded).attn_mask == ScoreMask(kind, wanted)


def test_masks_have_one_order_of_axes_whatever_the_layout():
    q, kv = (array(2, n, heads, 64, dtype="float16") for n, heads in ((64, 8), (100, 2)))
    arrays = ScoreArrays(attn_mask=array(*SHAPE, dtype="bool"))
    found = Problem.of(q, kv, kv, DEFAULTS._replace(layout="NHD"), arrays)
    assert found.scores == scores(attn_mask=arrays.attn_mask)


@pytest.mark.parametrize(
    ("arrays", "argument", "words"),
    [
        ({"sinks": array(2)}, "sinks.shape", "(8,), one for each query head, got (2,)"),
        ({"sinks": array(1)}, "sinks.shape", "got (1,)"),
        ({"sinks": array(1, 8)}, "sinks.shape", "got (1, 8)"),
        (
            {"sinks": array(8, dtype="float64")},
            "sinks.dtype",
            "one of ['float16', 'bfloat16', 'float32'], got 'float64'",
        ),
        ({"sinks": array(8, device=(1, 0))}, "sinks.device", "(2, 0), the device of q, got (1, 0)"),
        ({"sinks": array(8, misalignment=2)}, "sinks", "at a multiple of 4 bytes"),
        (
            {"alibi_slopes": array(2)},
            "alibi_slopes.shape",
            "(8,) or (2, 8): [num_q_heads] or [batch, num_q_heads], got (2,)",
        ),
        ({"alibi_slopes": array(8, 2)}, "alibi_slopes.shape", "got (8, 2)"),
        ({"alibi_slopes": array(1, 2, 8)}, "alibi_slopes.shape", "got (1, 2, 8)"),
        ({"alibi_slopes": array(8, dtype="bool")}, "alibi_slopes.dtype", "got 'bool'"),
        ({"alibi_slopes": array(8, device=(2, 1))}, "alibi_slopes.device", "got (2, 1)"),
        (
            {"attn_mask": array(100, 64, dtype="bool")},
            "attn_mask.shape",
            "one that broadcasts to (2, 8, 64, 100), which is [batch, num_q_heads, seqlen_q, "
            "seqlen_kv], got (100, 64)",
        ),
        ({"attn_mask": array(2, 2, 64, 100)}, "attn_mask.shape", "got (2, 2, 64, 100)"),
        ({"attn_mask": array(1, 2, 8, 64, 100)}, "attn_mask.shape", "got (1, 2, 8, 64, 100)"),
        ({"attn_mask": array(64, 0)}, "attn_mask.shape", "got (64, 0)"),
        (
            {"attn_mask": array(100, dtype="uint8")},
            "attn_mask.dtype",
            "one of ['float16', 'bfloat16', 'float32', 'bool'], got 'uint8'",
        ),
        ({"attn_mask": array(100, device=(1, 0))}, "attn_mask.device", "got (1, 0)"),
        (
            {"attn_mask": array(100, dtype="bfloat16", misalignment=3)},
            "attn_mask",
            "at a multiple of 2 bytes, the size of its elements, got",
        ),
    ],
)
def test_errors_name_argument_value_and_expectation(arrays, argument, words):
    with pytest.raises(ArgumentError) as error:
        scores(**arrays)
    assert error.value.argument == argument
    assert str(error.value).startswith(f"{argument} must be ")
    assert words in str(error.value)


def test_bytes_of_masks_lie_anywhere():
    x = array(64, 100, dtype="bool", misalignment=5)
    assert scores(attn_mask=x).attn_mask == ScoreMask("bool", (0, 0, 100, 1))


def test_lengths_may_be_0():
    for shape in ((2, 8, 0, 9), (2, 8, 9, 0), (2, 0, 9, 9), (0, 8, 9, 9)):
        mask = array(*shape, dtype="bool")
        found = scores(array(shape[1]), array(*shape[:2]), mask, shape=shape)
        assert found.attn_mask.dtype == "bool"
        assert scores(attn_mask=array(1, 1), shape=shape).attn_mask.strides == (0, 0, 0, 0)


def test_equal_options_are_one_key():
    options = {"window_size": (5, 3), "softcap": 2.0}
    one, other = (
        problem(array(8), array(2, 8), array(64, 100, dtype="bool"), **options) for _ in range(2)
    )
    assert one == other
    assert hash(one) == hash(other)
    assert one != problem(array(8), array(2, 8), array(64, 100), **options)
    assert one.scores != replace(one.scores, softcap=3.0)


@given(
    scheme=st.sampled_from(sorted(PRESETS)),
    return_lse=st.booleans(),
    softcap=st.sampled_from([0.0, 5.0]),
    with_sinks=st.booleans(),
)
def test_what_smoothing_took_is_needed_by_lse_caps_and_sinks(
    scheme, return_lse, softcap, with_sinks
):
    p = problem(
        array(8) if with_sinks else None,
        array(8),
        array(100, dtype="bool"),
        scheme=scheme,
        return_lse=return_lse,
        softcap=softcap,
        window_size=(5, 0),
    )
    wanted = return_lse or softcap > 0 or with_sinks
    assert p.needs_lse_shift == (wanted and PRESETS[scheme].smooth_k != "none")
