"""Expressions of a caller: their text, names and arrays, and what is said of mistakes."""

import pickle

import numpy as np
import pytest

import cuattn
from cuattn import MaskMod, ScoreMod
from cuattn.arrays.view import CUDA, Array
from cuattn.errors import ArgumentError
from cuattn.operands.mods import mod_sources
from cuattn.operands.score_mod import mod_of, mods_of

GPU = (CUDA, 0)


def array(*shape, dtype="float32", strides=None, device=GPU, misalignment=0):
    steps = strides
    if steps is None:
        steps = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return Array(shape, steps, dtype, device, misalignment)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (3, "score_mod.text must be an expression"),
        ("", "score_mod.text must be an expression"),
        ("  \n", "score_mod.text must be an expression"),
        ("score\0", "score_mod.text must be an expression"),
        ("score\ud800", "score_mod.text must be text that UTF-8"),
        ("score + (1", "'(' is not closed"),
        ("score) + (1", "')' closes none"),
        ("score + [1)", "')' closes none"),
        ("#include <x>\nscore", "preprocessor"),
        ("%:define score 1\nscore", "preprocessor"),
        ("score /* and", "a comment or a line that does not end"),
        ("score // and \\", "a comment or a line that does not end"),
    ],
)
def test_text_that_cannot_stand_in_a_function(text, what):
    with pytest.raises(ArgumentError) as error:
        ScoreMod(text)
    assert what in str(error.value)


def test_what_stands_in_comments_and_strings_is_no_mistake():
    ScoreMod("score // ) # not closed")
    ScoreMod("score /* ( */ + (1)")
    MaskMod("q == '('")


@pytest.mark.parametrize(
    "name", ["1x", "a b", "", "é", "if", "lambda", "int", "score", "head", "own", "_x", "NULL", 3]
)
@pytest.mark.parametrize("kind", ["arrays", "numbers"])
@pytest.mark.parametrize("of", [ScoreMod, MaskMod])
def test_names_that_are_none_or_taken(of, kind, name):
    with pytest.raises(ArgumentError, match=rf"^{of.argument}\.{kind} must be named"):
        of("1", **{kind: {name: 1}})


def test_a_name_is_of_one_thing():
    with pytest.raises(ArgumentError, match="a name that no array has"):
        ScoreMod("score", arrays={"x": np.zeros(1)}, numbers={"x": 1})
    with pytest.raises(ArgumentError, match=r"score_mod\.arrays must be a mapping"):
        ScoreMod("score", arrays=[1])


@pytest.mark.parametrize("x", [True, "1", None, 2**31, -(2**31) - 1, 1j, np.zeros(1)])
def test_numbers_are_those_of_c(x):
    with pytest.raises(ArgumentError, match=r"score_mod\.numbers\['n'\] must be an int"):
        ScoreMod("score", numbers={"n": x})


def test_numbers_that_are_equal_but_not_the_same_have_other_keys():
    found = [1, 1.0, 0.0, -0.0, float("nan"), float("inf"), 2**31 - 1]
    keys = [ScoreMod("score * n", numbers={"n": x}).key for x in found]
    assert len(set(keys)) == len(keys)
    assert [k.numbers[0].value for k in keys[:4]] == found[:4]
    again = [ScoreMod("score * n", numbers={"n": x}).key for x in found]
    assert again == keys
    assert ScoreMod("score", numbers={"n": np.float64(0.1)}).key.numbers[0].value == np.float32(0.1)


def test_reference_takes_what_it_can_be_given():
    with pytest.raises(ArgumentError, match=r"score_mod\.reference must be a function of any of"):
        ScoreMod("score", reference=lambda score, b: score)
    with pytest.raises(ArgumentError, match=r"mask_mod\.reference"):
        MaskMod("true", reference=lambda score: score > 0)
    with pytest.raises(ArgumentError, match=r"score_mod\.reference"):
        ScoreMod("score", reference=3)
    ScoreMod("score", reference=lambda score, other=3, **rest: score)


def test_what_is_no_expression():
    for name, wrong in (("score_mod", MaskMod("true")), ("mask_mod", ScoreMod("score"))):
        q = np.zeros((1, 1, 2, 8), np.float32)
        for x in (wrong, 3, lambda score: score):
            with pytest.raises(ArgumentError, match=rf"^{name} must be text, a cuattn\.\w+ or"):
                cuattn.attention(q, q, q, **{name: x})


def test_text_is_an_expression_that_is_checked_once():
    assert mod_of(ScoreMod, "score") is mod_of(ScoreMod, "score")
    assert mod_of(MaskMod, "q > kv").key.name == "mask_mod"


def test_no_more_arrays_and_numbers_than_a_kernel_is_told():
    five = {f"x{i}": np.zeros(1) for i in range(5)}
    with pytest.raises(ArgumentError, match="at most 8 in score_mod and mask_mod"):
        mods_of(ScoreMod("score", arrays=five), MaskMod("true", arrays=five))
    with pytest.raises(ArgumentError, match="at most 8 in mask_mod"):
        mods_of(None, MaskMod("true", numbers={f"x{i}": i for i in range(9)}))


def test_arrays_are_numbered_through():
    score = ScoreMod("score", arrays={"a": 0, "b": 0}, numbers={"n": 1})
    mask = MaskMod("true", arrays={"a": 0}, numbers={"m": 1.5})
    keys, arrays = mods_of(score, mask)
    assert list(arrays) == ["score_mod.a", "score_mod.b", "mask_mod.a"] == [*keys.labels]
    seen = [array(3, dtype="int64"), array(2, 2, dtype="bool"), array(dtype="float16")]
    first, second = mod_sources(keys, seen, GPU)
    assert first.arrays == (("a", "int64"), ("b", "bool"))
    assert (second.arrays, second.first_array) == ((("a", "float16"),), 2)
    assert (second.numbers, second.first_number) == ((("m", "float"),), 1)


@pytest.mark.parametrize(
    ("x", "what"),
    [
        (array(3, dtype="float64"), "score_mod.x.dtype must be one of"),
        (array(3, device=(CUDA, 1)), "score_mod.x.device must be"),
        (array(0), "score_mod.x.shape must be that of an array with elements"),
        (array(3, strides=(2,)), "score_mod.x.strides must be (1,)"),
        (array(2, 3, strides=(1, 2)), "score_mod.x.strides must be (3, 1)"),
        (array(3, misalignment=2), "score_mod.x must be at a multiple of 4 bytes"),
    ],
)
def test_arrays_that_kernels_cannot_index(x, what):
    keys, _ = mods_of(ScoreMod("score", arrays={"x": 0}), None)
    with pytest.raises(ArgumentError) as error:
        mod_sources(keys, [x], GPU)
    assert str(error.value).startswith(what)


def test_steps_that_nobody_takes_do_not_matter():
    keys, _ = mods_of(ScoreMod("score", arrays={"x": 0}), None)
    assert mod_sources(keys, [array(1, 3, 1, strides=(99, 1, 7))], GPU)[0] is not None


def test_errors_can_be_pickled():
    with pytest.raises(ArgumentError) as error:
        ScoreMod("score + (")
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
